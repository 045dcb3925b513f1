"""``--redo``: some rows of an OUTPUT are asked about again, with the settings given now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.media import write_picture
from tests.run.jobs import job, rows, start
from tests.write.rows import PROMPT, failed, record, store
from vlmbatch.errors import JobError, OutputError


@pytest.fixture(params=["jsonl", "csv", "parquet"])
def answered(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Pictures with rows of each kind: good, cut off, unsure, an error, edited."""
    folder = tmp_path / "photos"
    for number in range(6):
        write_picture(folder / f"{number:05d}.jpg", seed=number)
    output = tmp_path / f"out.{request.param}"
    with store(output, prompt=PROMPT) as found:
        found.write(record(0))
        found.write(record(1, finish_reason="length"))
        found.write(record(2, mean_logprob=-2.5))
        found.write(failed(3))
        found.write(record(4, finish_reason="length"))
    return output


def redo(output: Path, *chosen: str, **values: Any) -> list[str]:
    asked = job(
        output.parent / "photos",
        output=str(output), redo=list(chosen), prompt=PROMPT, **values,
    )  # fmt: skip
    outcome, engine = start(asked)
    assert outcome.error is None
    return sorted(key for key, _ in engine.answered)


@pytest.mark.parametrize(
    ("chosen", "asked"),
    [
        (["cut-off"], ["00001.jpg", "00004.jpg"]),
        (["errors"], ["00003.jpg"]),
        (["unsure:-1"], ["00002.jpg"]),
        (["errors", "unsure:-1"], ["00002.jpg", "00003.jpg"]),
        (["edited"], []),
        (["stale"], [f"{number:05d}.jpg" for number in range(5)]),
    ],
)
def test_only_the_chosen_rows_are_asked_again(
    answered: Path, chosen: list[str], asked: list[str]
) -> None:
    before = list(rows(job(answered.parent / "photos", output=str(answered))))
    assert redo(answered, *chosen, max_new_tokens=256) == asked
    after = rows(job(answered.parent / "photos", output=str(answered)))
    assert [row["id"] for row in after] == [row["id"] for row in before], "no new rows"
    for old, new in zip(before, after, strict=True):
        assert (new["run_id"] != old["run_id"]) == (new["id"] in asked)
        assert (new["text"] == old["text"]) == (new["id"] not in asked)


def test_rows_say_which_model_and_settings(answered: Path) -> None:
    redo(answered, "cut-off", max_new_tokens=256)
    found = rows(job(answered.parent / "photos", output=str(answered)))
    assert [json.loads(row["settings"])["max_new_tokens"] for row in found] == [
        64,
        256,
        64,
        64,
        256,
    ]
    assert found[0]["model"] == json.loads(found[0]["settings"])["model"] == "demo"
    assert found[1]["model"] != "demo"
    # What is stale then is what was not asked again, and afterwards OUTPUT is of these settings.
    assert redo(answered, "stale", max_new_tokens=256) == ["00000.jpg", "00002.jpg", "00003.jpg"]
    assert redo(answered, "stale", max_new_tokens=256) == []
    outcome, engine = start(
        job(answered.parent / "photos", output=str(answered), prompt=PROMPT, max_new_tokens=256)
    )
    assert outcome.exit_code == 0
    assert [key for key, _ in engine.answered] == ["00005.jpg"]


def test_settings_that_every_row_was_asked_again_with_are_those_of_output(tmp_path: Path) -> None:
    for number in range(2):
        write_picture(tmp_path / "photos" / f"{number:05d}.jpg", seed=number)
    output = tmp_path / "out.jsonl"
    start(job(tmp_path / "photos", prompt=PROMPT))
    (tmp_path / "all.txt").write_text("00000.jpg\n00001.jpg\n")
    other = job(tmp_path / "photos", prompt=PROMPT, max_new_tokens=256)
    with pytest.raises(OutputError, match=r"256 here\); --overwrite .*, --redo stale asks again"):
        start(other)
    assert len(redo(output, f"ids:{tmp_path / 'all.txt'}", max_new_tokens=256)) == 2
    outcome, engine = start(other)
    assert (outcome.exit_code, engine.answered) == (0, [])


def test_ids_of_a_file_are_asked_again_and_edited_rows_only_when_named(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for number in range(3):
        write_picture(folder / f"{number:05d}.jpg", seed=number)
    output = tmp_path / "out.jsonl"
    start(job(folder, prompt=PROMPT))
    lines = output.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "text": "corrected"})
    output.write_text("\n".join(lines) + "\n")
    (tmp_path / "again.txt").write_text("00001.jpg\n00002.jpg\n")
    ids = f"ids:{tmp_path / 'again.txt'}"
    assert redo(output, ids, "stale") == ["00002.jpg"]
    assert rows(job(folder))[1]["text"] == "corrected"
    assert redo(output, "edited") == ["00001.jpg"]
    assert rows(job(folder))[1]["text"] != "corrected"
    assert "settings" not in rows(job(folder))[1], "they are those of the first run"


def test_what_cannot_be_redone_is_said(tmp_path: Path) -> None:
    write_picture(tmp_path / "photos" / "a.png")
    with pytest.raises(JobError, match="redo takes cut-off, errors"):
        job(tmp_path / "photos", redo=["everything"])
    with pytest.raises(JobError, match="leave out overwrite"):
        job(tmp_path / "photos", redo=["errors"], overwrite=True)
    with pytest.raises(OutputError, match="has no rows to ask again for"):
        start(job(tmp_path / "photos", redo=["errors"]))
    assert not list(tmp_path.glob("out.jsonl.journal"))
    start(job(tmp_path / "photos"))
    with pytest.raises(JobError, match=r"redo ids:none\.txt: No such file"):
        start(job(tmp_path / "photos", redo=["ids:none.txt"]))
    with pytest.raises(OutputError, match=r"other settings .*pages"):
        start(job(tmp_path / "photos", redo=["errors"], pages="1"))
