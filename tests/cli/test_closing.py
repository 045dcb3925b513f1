"""What a run says at its end, and a dry run beforehand."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Command
from tests.media import write_picture


def test_files_with_the_id_of_another_one_are_said_with_an_example(
    vlmbatch: Command, tiny: Path, tmp_path: Path
) -> None:
    write_picture(tmp_path / "a" / "1.png", seed=1)
    write_picture(tmp_path / "b" / "1.png", seed=2)
    caption = ("-o", "x.jsonl", "--model", tiny, "--max-new-tokens", 2)
    assert "id of another one" not in vlmbatch("caption", "a", *caption).stderr
    line = (
        "1 file has the id of another one, whose row is replaced (1.png: was a/1.png, is b/1.png "
        "now); another OUTPUT or their common folder as INPUT keeps both"
    )
    assert f"# {line}\n" in vlmbatch("caption", "b", *caption, "--dry-run").stdout
    assert line in vlmbatch("caption", "b", *caption).stderr
    (tmp_path / "fixed.csv").write_text("id,text\n1.png,a red barn\n")
    vlmbatch("correct", "x.jsonl", "fixed.csv")
    line = (
        "1 file has the id of another one, whose corrected text is kept (1.png: it is of b/1.png, "
        "and a/1.png gets no row); another OUTPUT or"
    )
    assert f"# {line}" in vlmbatch("caption", "a", *caption, "--dry-run").stdout
    assert line in vlmbatch("caption", "a", *caption).stderr
