"""Commands that read an OUTPUT take a URL too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner, Result

from tests.cli.conftest import Command
from tests.write.rows import record, store
from vlmbatch.cli.main import cli

URL = "memory://bucket/run.parquet"


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An OUTPUT of two rows in a store, and nothing in the current folder."""
    with store(tmp_path / "run.parquet") as rows:
        for number in range(2):
            rows.write(record(number))
    files = fsspec.filesystem("memory")
    files.pipe("/bucket/run.parquet", (tmp_path / "run.parquet").read_bytes())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    files.rm("/bucket", recursive=True)


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_stats() -> None:
    assert json.loads(call("stats", URL, "--json").stdout)["items"] == 2
    assert call("stats", URL).stdout.startswith(f"{URL}: 2 items, 2 rows\n")


def test_export_writes_to_the_current_folder() -> None:
    call("export", URL, "--to", "jsonl")
    assert [json.loads(line)["text"] for line in Path("run.jsonl").read_text().splitlines()] == [
        "picture 0",
        "picture 1",
    ]
    for _ in range(2):
        call("export", URL, "--to", "txt", "-o", "texts")  # the second time it knows its own files
    assert Path("texts/00001.txt").read_text() == "picture 1\n"
    assert sorted(path.name for path in Path().iterdir()) == [
        "run.jsonl",
        "run.parquet.sidecars",
        "texts",
    ]


def test_export_writes_to_a_url() -> None:
    files = fsspec.filesystem("memory")
    call("export", URL, "--to", "csv", "-o", "memory://bucket/rows.csv", "--bom")
    assert files.cat("/bucket/rows.csv").startswith(b"\xef\xbb\xbfid,source,")
    call("export", "memory://bucket/rows.csv", "--to", "jsonl", "-o", "memory://bucket/back.jsonl")
    assert [json.loads(line)["text"] for line in files.cat("/bucket/back.jsonl").splitlines()] == [
        "picture 0",
        "picture 1",
    ]
    call(
        "export",
        URL,
        "--to",
        "jsonl",
        "--status",
        "ok",
        "--overwrite",
        "-o",
        "memory://bucket/rows.jsonl",
    )
    call("export", URL, "--to", "parquet", "-o", f"file://{Path.cwd()}/new/rows.parquet")
    assert [path.name for path in Path("new").iterdir()] == ["rows.parquet"]
    assert sorted(path.name for path in Path().iterdir()) == ["new"]


def test_export_of_one_picture_writes_a_text_to_a_url(tmp_path: Path) -> None:
    with store(tmp_path / "one.jsonl") as rows:
        rows.write(record(7))
    call("export", str(tmp_path / "one.jsonl"), "--to", "txt", "-o", "memory://bucket/seven.txt")
    assert fsspec.filesystem("memory").cat("/bucket/seven.txt") == b"picture 7\n"


@pytest.mark.parametrize(
    ("form", "target", "code", "message"),
    [
        (
            "csv",
            URL.replace("run.parquet", "there.csv"),
            1,
            "memory://bucket/there.csv is there; --overwrite replaces it",
        ),
        ("parquet", URL, 2, "is the OUTPUT itself"),
        (
            "csv",
            "memory://bucket/rows.jsonl",
            2,
            "--to csv writes a file that ends in .csv, not memory://bucket/rows.jsonl",
        ),
        (
            "csv",
            "https://user:word@example.com/rows.csv?token=1",
            2,
            "such as s3://, gs:// or hf://, not https://example.com/rows.csv",
        ),
        ("csv", "zip::memory://bucket/rows.csv", 2, "a URL of a store that can be written"),
        ("csv", "nothing://bucket/rows.csv", 2, "nothing"),
        ("txt", "memory://bucket/texts", 2, "txt files go to a folder of this disk"),
        ("srt", "memory://bucket/two.srt", 2, "has no times"),
    ],
)
def test_export_to_a_url_says_what_goes_wrong(
    vlmbatch: Command, form: str, target: str, code: int, message: str
) -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/bucket/there.csv", b"mine")
    result = vlmbatch("export", URL, "--to", form, "-o", target)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "user:word" not in result.stderr
    assert files.cat("/bucket/there.csv") == b"mine"
    assert not list(Path().iterdir())


def test_export_never_takes_the_place_of_what_it_reads(vlmbatch: Command, tmp_path: Path) -> None:
    with store(tmp_path / "o n.jsonl") as rows:
        rows.write(record(7))
    before = (tmp_path / "o n.jsonl").read_bytes()
    for target in (f"file://{tmp_path}/o n.jsonl", f"file://{tmp_path}/x/../o%20n.jsonl"):
        result = vlmbatch(
            "export",
            str(tmp_path / "o n.jsonl"),
            "--to",
            "jsonl",
            "--status",
            "error",
            "--overwrite",
            "-o",
            target,
        )
        assert (result.returncode, "is the OUTPUT itself" in result.stderr) == (2, True), (
            result.stderr
        )
    assert (tmp_path / "o n.jsonl").read_bytes() == before


def test_eval_against_another() -> None:
    Path("right.csv").write_text("id,answer\n00000.jpg,picture 0\n00001.jpg,a cat\n")
    found = json.loads(
        call(
            "eval", URL, "--reference", "right.csv", "--against", URL, "--metric", "exact", "--json"
        ).stdout
    )
    assert found["all"]["scores"]["exact"]["value"] == 0.5
    assert found["output"] == URL
