"""Exports without a row say why."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.write.rows import failed, record, store


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        (("--task", "ocr"), "no task is ocr: there is caption, vqa"),
        (("--status", "similar"), "no status is similar: there is ok, error"),
        (("--prompt", "How?", "--task", "ocr"), "no task is ocr: there is caption, vqa; no prompt"),
        (
            ("--task", "vqa", "--status", "ok"),
            "none of 2 rows has the task and the status that was chosen",
        ),
    ],
)
def test_a_filter_that_takes_no_row(
    vlmbatch: Command, tmp_path: Path, chosen: tuple[str, ...], why: str
) -> None:
    with store(tmp_path / "out.jsonl") as rows:
        rows.write(record(0))
        rows.write(dataclasses.replace(failed(1), task="vqa", prompt="Who?"))
    for form, target in (("csv", "new.csv"), ("csv", "-"), ("txt", "texts")):
        export = ("export", "out.jsonl", "--to", form, "-o", target)
        done = vlmbatch(*export, *chosen)
        assert f"no rows of out.jsonl: {why}" in done.stderr
        assert done.returncode == 0
        assert "no rows" not in vlmbatch(*export, "--overwrite").stderr


def test_an_output_without_rows(vlmbatch: Command, tmp_path: Path) -> None:
    store(tmp_path / "out.jsonl").close()
    done = vlmbatch("export", "out.jsonl", "--to", "csv", "--wide", "-o", "new.csv")
    assert done.stderr == "no rows of out.jsonl: it has no rows\n0 rows -> new.csv\n"
