"""``--choices``, ``--regex`` and ``--schema``: every answer is valid, or an error row."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cli.conftest import Command

IMAGES = Path(__file__).parents[2] / "sample_data" / "images"
SCHEMA = {
    "type": "object",
    "properties": {
        "shape": {"type": "string", "maxLength": 8},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["shape", "count"],
    "additionalProperties": False,
}
ASK = ("-q", "What color is the shape?", "--model", "demo", "--limit", "4")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_answer_is_one_of_the_choices(vlmbatch: Command, tmp_path: Path) -> None:
    texts = ("red", "dark  green", "no color")
    result = vlmbatch("vqa", IMAGES, *ASK, "--choices", ",".join(texts), "-o", "out.jsonl")
    assert result.returncode == 0, result.stderr
    found = rows(tmp_path / "out.jsonl")
    assert len(found) == 4
    assert {row["text"] for row in found} <= set(texts)
    assert {row["finish_reason"] for row in found} == {"stop"}
    again = vlmbatch("vqa", IMAGES, *ASK, "--choices", ",".join(texts), "-o", "out.jsonl")
    assert again.returncode == 0
    assert rows(tmp_path / "out.jsonl") == found


def test_every_answer_matches_the_expression(vlmbatch: Command, tmp_path: Path) -> None:
    expression = r"[A-Z][a-z]{2,5}: [0-9]+(\.[0-9]{2})?"
    result = vlmbatch("caption", IMAGES, *ASK[2:], "--regex", expression, "-o", "out.jsonl")
    assert result.returncode == 0, result.stderr
    for row in rows(tmp_path / "out.jsonl"):
        assert re.fullmatch(expression, row["text"])


def test_every_answer_is_valid_under_the_schema(vlmbatch: Command, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    asked = ("vqa", IMAGES, *ASK, "--schema", "s.json", "-o", "out.jsonl")
    assert vlmbatch(*asked, "--max-new-tokens", "64").returncode == 0
    for row in rows(tmp_path / "out.jsonl"):
        jsonschema.validate(json.loads(row["text"]), SCHEMA)
        assert row["mean_logprob"] < 0


def test_an_answer_that_is_cut_off_is_an_error_row_that_is_asked_again(
    vlmbatch: Command, tmp_path: Path
) -> None:
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    asked = ("vqa", IMAGES, *ASK, "--schema", "s.json", "-o", "out.jsonl")
    result = vlmbatch(*asked, "--max-new-tokens", "5")
    assert result.returncode == 3
    for row in rows(tmp_path / "out.jsonl"):
        assert (row["status"], row["text"]) == ("error", None)
        assert row["error_type"] == "IncompleteAnswer"
        assert row["error"] == "--max-new-tokens 5 ended the answer before it was whole: allow more"
    again = vlmbatch(*asked, "--redo", "cut-off", "--max-new-tokens", "64")
    assert again.returncode == 0, again.stderr
    assert {row["status"] for row in rows(tmp_path / "out.jsonl")} == {"ok"}


def test_an_output_belongs_to_the_form_of_its_task(vlmbatch: Command, tmp_path: Path) -> None:
    assert vlmbatch("vqa", IMAGES, *ASK, "--choices", "red,blue", "-o", "o.jsonl").returncode == 0
    for other, names in (
        (("--choices", "red"), r"choices: sha256:\w+ there, sha256:\w+ here"),
        (("--regex", "red"), r"regex: none there, sha256:\w+ here; .*choices: sha256:\w+ there"),
        ((), r"choices: sha256:\w+ there, none here"),
    ):
        result = vlmbatch("vqa", IMAGES, *ASK, *other, "-o", "o.jsonl")
        assert result.returncode == 1
        assert re.search(names, result.stderr), result.stderr
        assert "--redo stale" in result.stderr
    # Another task in the same OUTPUT has no constraint of its own.
    assert vlmbatch("caption", IMAGES, *ASK[2:], "-o", "o.jsonl").returncode == 0
    assert vlmbatch("vqa", IMAGES, *ASK, "--choices", "red,blue", "-o", "o.jsonl").returncode == 0
    redone = vlmbatch("vqa", IMAGES, *ASK, "--choices", "green", "-o", "o.jsonl", "--redo", "stale")
    assert redone.returncode == 0, redone.stderr
    found = rows(tmp_path / "o.jsonl")
    assert {row["text"] for row in found if row["task"] == "vqa"} == {"green"}
    assert len(found) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--regex", "a("], "regex cannot be compiled: unclosed group"),
        (["--schema", "bad.json"], "schema cannot be compiled: Invalid type: foo"),
        (["--schema", "list.json"], "schema list.json: a JSON Schema is an object"),
        (["--schema", "no.json"], "schema no.json: Expecting value"),
        (["--schema", "none.json"], "schema none.json: No such file"),
        (["--regex", ""], "regex is empty"),
        (["--choices", "a,,b"], "choices must not be empty"),
        (["--choices", "a", "--regex", "b"], "give one of regex and choices"),
        (["--choices", "a", "--engine", "transformers"], "engine transformers has no --choices"),
        (["--regex", "a", "--engine", "onnx,llama-server"], "engine llama-server has no --regex"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",), ("--estimate",)])
def test_what_cannot_be_had_is_refused_before_a_model_is_loaded(
    vlmbatch: Command, tmp_path: Path, arguments: list[str], message: str, dry: tuple[str, ...]
) -> None:
    (tmp_path / "bad.json").write_text('{"type": "foo"}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "no.json").write_text("no json")
    result = vlmbatch("caption", IMAGES, "--model", "nobody/nothing", *arguments, *dry)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_tiles_are_joined_and_have_no_constraint(vlmbatch: Command) -> None:
    result = vlmbatch("ocr", IMAGES, "--model", "demo", "--per", "tile", "--choices", "a,b")
    assert result.returncode == 2
    assert "--per tile joins several" in result.stderr


def test_a_job_file_has_the_options_too(vlmbatch: Command, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        f"inputs: {IMAGES}\ntask: vqa\nquestions: What is it?\nmodel: demo\nlimit: 2\n"
        "output: out.jsonl\nchoices: [one, 'two, or more', 3]\n"
    )
    printed = vlmbatch("run", "job.yaml", "--dry-run")
    assert yaml.safe_load(printed.stdout)["choices"] == ["one", "two, or more", "3"]
    (tmp_path / "again.yaml").write_text(printed.stdout)
    assert vlmbatch("run", "job.yaml").returncode == 0
    assert vlmbatch("run", "again.yaml").returncode == 0
    found = [row["text"] for row in rows(tmp_path / "out.jsonl")]
    assert len(found) == 2
    assert set(found) <= {"one", "two, or more", "3"}
    changed = vlmbatch("run", "job.yaml", "--set", "choices=one,two", "--dry-run")
    assert "the run is refused: out.jsonl was made with other settings (choices:" in changed.stdout


def test_help_has_them_in_the_group_of_generation(vlmbatch: Command) -> None:
    shown = vlmbatch("vqa", "--help").stdout
    group = shown.partition("Generation:")[2].partition("Model:")[0]
    assert re.findall(r"--(?:schema FILE|regex RE|choices A,B,…)", group)
