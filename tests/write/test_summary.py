"""OUTPUT.summary.json."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from vlmbatch.errors import OutputError
from vlmbatch.write import read_summary, summary_path, write_summary


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert read_summary(output) is None
    path = write_summary(
        output, {"counts": {"ok": 3}, "rate": math.nan, "name": "naïve", "sizes": (1, 2)}
    )
    assert path == summary_path(output) == tmp_path / "out.jsonl.summary.json"
    assert read_summary(output) == {
        "counts": {"ok": 3},
        "rate": None,
        "name": "naïve",
        "sizes": [1, 2],
    }
    assert "\n  " in path.read_text(encoding="utf-8")


def test_a_damaged_one_is_an_output_error(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    summary_path(output).write_text("{")
    with pytest.raises(OutputError, match="cannot read"):
        read_summary(output)
