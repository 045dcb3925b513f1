"""``vlmbatch eval`` as a user runs it: files in, a table or JSON out, an exit code for CI."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.write.rows import SUFFIXES, failed, record, store
from vlmbatch.cli import main

JOINED = ("--answer-column", "content", "--id-prefix", "pictures/")
"""Options that join the reference below."""


def run(*arguments: object) -> Result:
    from vlmbatch.errors import VlmbatchError

    result = CliRunner().invoke(main.cli, ["eval", *map(str, arguments)])
    if isinstance(result.exception, VlmbatchError):
        result.exit_code = result.exception.exit_code
    return result


@pytest.fixture(params=SUFFIXES)
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two right answers, a wrong one, and an error."""
    path = tmp_path / f"out.{request.param}"
    with store(path) as opened:
        for made in (
            record(0, "A red circle."),
            record(1, "A blue square."),
            record(2, "A star."),
            failed(3),
        ):
            opened.write(made)
    return path


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "right.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "content"])
        writer.writerows(
            [
                (f"pictures/{number:05d}.jpg", text)
                for number, text in enumerate(
                    ["a red circle", "A blue square.", "A moon.", "A line.", "A dot."]
                )
            ]
        )
    return path


def test_a_table_says_how_good_the_answers_are(output: Path, reference: Path) -> None:
    result = run(output, "--reference", reference, *JOINED)
    assert result.exit_code == 0, result.output
    assert "4 rows scored" in result.output
    assert "1 error row among these" in result.output
    assert "1 of 5 right answers not in OUTPUT: pictures/00004.jpg" in result.output
    assert "exact                         0.2500   0.0000 to 0.7500" in result.output
    assert "normalized                    0.5000   0.0000 to 1.0000" in result.output


def test_longer_ids_of_a_reference_are_joined_by_the_end_of_the_path(
    output: Path, reference: Path
) -> None:
    result = run(output, "--reference", reference, "--answer-column", "content")
    assert result.exit_code == 0, result.output
    assert "4 rows scored" in result.output
    assert "no id is the same on both sides: joined 4 ids by the end of the path" in result.output
    assert "4 ids of the reference begin with pictures/" in result.output


def test_json_goes_to_stdout_or_to_a_file(output: Path, reference: Path, tmp_path: Path) -> None:
    arguments = [output, "--reference", reference, *JOINED, "--json"]
    printed = json.loads(run(*arguments).stdout)
    assert printed["all"]["scores"]["normalized"]["value"] == 0.5
    assert run(*arguments, tmp_path / "scores.json").stdout.startswith(str(output))
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8")) == printed
    before = output.read_bytes()
    refused = run(*arguments, tmp_path / "scores.csv")
    assert refused.exit_code == 2
    assert output.read_bytes() == before


def test_a_limit_that_is_not_held_is_exit_code_4(output: Path, reference: Path) -> None:
    arguments = [output, "--reference", reference, *JOINED]
    assert (
        run(*arguments, "--fail-under", "normalized=0.5", "--fail-under", "cer=0.9").exit_code == 0
    )
    result = run(*arguments, "--fail-under", "normalized=0.6", "--fail-under", "coverage=1")
    assert result.exit_code == 4
    assert result.stderr.splitlines() == [
        "vlmbatch: normalized is 0.5000, under 0.6 (--fail-under)",
        "vlmbatch: coverage is 0.8000, under 1 (--fail-under)",
    ]


def test_what_cannot_be_understood_is_exit_code_2(
    output: Path, reference: Path, tmp_path: Path
) -> None:
    assert run(output).exit_code == 2
    assert run(output, "--reference", reference).exit_code == 2
    assert "file, content" in str(run(output, "--reference", reference).exception)
    assert run(output, "--reference", tmp_path / "none.csv").exit_code == 2
    assert run(tmp_path / "none.jsonl", "--reference", reference).exit_code == 2
    assert run(reference, "--reference", reference, "--answer-column", "content").exit_code == 1


def test_two_outputs_side_by_side(output: Path, reference: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    with store(other) as opened:
        for made in (record(0, "A red circle."), record(1, "A blue square."), record(2, "A moon.")):
            opened.write(made)
    result = run(output, "--against", other, "--reference", reference, *JOINED, "--metric", "exact")
    assert result.exit_code == 0, result.output
    assert "3 rows scored" in result.output
    assert "1 row not in" in result.output
    assert (
        "exact                         0.3333    0.6667     -0.3333   -1.0000 to +0.0000"
        in result.output
    )
    assert "expected  A moon." in result.output
