"""``vlmbatch correct``: corrections back into an OUTPUT."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.media import write_picture
from tests.run.jobs import job, start
from vlmbatch.correct import Corrected, correct_output
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import JobError, NothingFound, OutputError, OutputLockedError
from vlmbatch.run.pipeline import Run
from vlmbatch.write import read_records


@pytest.fixture(params=["jsonl", "csv", "parquet"])
def output(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The OUTPUT of three pictures with texts beside them."""
    for number in range(3):
        write_picture(tmp_path / "photos" / "2019" / f"{number}.png", seed=number)
    path = tmp_path / f"out.{request.param}"
    start(job(tmp_path / "photos", output=str(path), sidecar="txt"))
    return path


def rows(output: Path) -> list[dict[str, Any]]:
    return list(read_records(output))


def lines(path: Path, *values: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in values))
    return path


def test_a_table_corrects_and_the_model_s_text_stays_beside_it(output: Path) -> None:
    before = rows(output)
    file = lines(
        output.parent / "fixed.jsonl",
        {"id": "2019/1.png", "text": "a red barn"},
        {"id": "2019/2.png", "text": before[2]["text"]},
        {"id": "2019/0.png", "text": ""},
        {"id": "2019/9.png", "text": "not here"},
    )
    unused = ("line 4: OUTPUT has no such row of '2019/9.png'",)
    assert correct_output(str(output), file) == Corrected(1, 1, unused)
    after = rows(output)
    assert [row["text"] for row in after] == [before[0]["text"], "a red barn", before[2]["text"]]
    assert [row["text_original"] for row in after] == [None, before[1]["text"], None]
    lines(file, {"id": "2019/1.png", "text": "a red barn in the snow"})
    correct_output(str(output), file)
    assert rows(output)[1]["text_original"] == before[1]["text"]


def test_corrections_stay_in_later_runs(output: Path) -> None:
    file = lines(output.parent / "fixed.jsonl", {"id": "2019/1.png", "text": "a red barn"})
    correct_output(str(output), file)
    for number in range(3):
        write_picture(output.parent / "photos" / "2019" / f"{number}.png", seed=50 + number)
    outcome, engine = start(job(output.parent / "photos", output=str(output)))
    assert {key for key, _ in engine.answered} == {"2019/0.png", "2019/2.png"}
    assert outcome.summary["kept"]["edited"] == 1
    row = rows(output)[1]
    assert row["text"] == "a red barn"
    assert row["text_original"]


def test_the_edited_files_beside_pictures_correct(output: Path) -> None:
    before = rows(output)
    folder = output.parent / "photos"
    (folder / "2019" / "2.txt").write_text("\ufefftwo dogs\r\n", encoding="utf-8")
    assert correct_output(str(output), folder) == Corrected(1, 2, ())
    assert [row["text"] for row in rows(output)][1:] == [before[1]["text"], "two dogs"]
    start(job(folder, output=str(output), sidecar="txt"))
    assert (folder / "2019" / "2.txt").read_text("utf-8-sig").strip() == "two dogs"


def test_what_vlmbatch_wrote_takes_no_correction_back(output: Path) -> None:
    before = [row["text"] for row in rows(output)]
    folder, fixed, sheet = output.parent / "photos", "2019/0.png", output.parent / "sheet.jsonl"
    lines(sheet, *({"id": f"2019/{n}.png", "text": before[n]} for n in range(3)))
    changed = lines(output.parent / "fixed.jsonl", {"id": fixed, "text": "a red barn"})
    correct_output(str(output), changed)
    (folder / "2019" / "2.txt").write_text("two dogs\n")
    # The sidecar of the corrected row has the model's text still, and nobody edited it.
    assert correct_output(str(output), folder) == Corrected(1, 2, (), kept=(fixed,))
    # Nor do the rows of a sheet that was written before.
    kept = (fixed, "2019/2.png")
    assert correct_output(str(output), sheet) == Corrected(0, 3, (), kept=kept)
    wanted = ["a red barn", before[1], "two dogs"]
    assert [row["text"] for row in rows(output)] == wanted
    assert [row["text_original"] for row in rows(output)] == [before[0], None, before[2]]
    # A run writes the corrected texts into the sidecars: these are no corrections either.
    start(job(folder, output=str(output), sidecar="txt"))
    lines(changed, {"id": fixed, "text": "a barn"})
    assert correct_output(str(output), changed) == Corrected(1, 0, (), replaced=(fixed,))
    assert correct_output(str(output), folder) == Corrected(0, 3, (), kept=(fixed,))
    assert [row["text"] for row in rows(output)] == ["a barn", *wanted[1:]]


def test_a_sidecar_without_an_index_takes_no_correction_back(output: Path) -> None:
    file = lines(output.parent / "fixed.jsonl", {"id": "2019/0.png", "text": "a red barn"})
    correct_output(str(output), file)
    folder = output.parent / "photos"
    (folder / "2019" / ".vlmbatch-sidecars").unlink()
    assert correct_output(str(output), folder) == Corrected(0, 3, (), kept=("2019/0.png",))
    assert rows(output)[0]["text"] == "a red barn"


def test_a_csv_of_a_spreadsheet_corrects_one_of_two_questions(output: Path) -> None:
    asked = job(
        output.parent / "photos", output=str(output.parent / "qa.jsonl"), task="vqa",
        questions=["Who?", "Where?"],
    )  # fmt: skip
    start(asked)
    path = output.parent / "fixed.csv"
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=";").writerows(
            [("id", "prompt", "text"), ("2019/1.png", "Where?", "at home")]
        )
    qa = output.parent / "qa.jsonl"
    assert correct_output(str(qa), path) == Corrected(1, 0, ())
    assert [row["text"] for row in rows(qa)].index("at home") == 3
    path.write_text("id,text\n2019/1.png,at home\n")
    with pytest.raises(JobError, match=r"line 2: '2019/1.png' has several rows: add a column prom"):
        correct_output(str(qa), path)


def test_what_cannot_be_used_is_said_and_changes_nothing(output: Path) -> None:
    before = output.read_bytes()
    file = output.parent / "fixed.csv"
    for content, error, said in (
        (
            "id,n\na,b\n",
            JobError,
            "no column named text or caption or answer; there is id, n",
        ),
        ("id,text\nx.png,b\n", NothingFound, "line 2: OUTPUT has no such row of 'x.png'"),
    ):
        file.write_text(content)
        with pytest.raises(error, match=said):
            correct_output(str(output), file)
    with pytest.raises(JobError, match=r"give a \.jsonl or \.csv file"):
        correct_output(str(output), output.with_suffix(".xlsx"))
    file.write_text("id,text\n2019/1.png,b\n")
    running = Run(job(output.parent / "photos", output=str(output)), engine=ScriptedEngine())
    with pytest.raises(OutputLockedError):
        correct_output(str(output), file)
    running.writer.close()
    for suffix in (".journal", ".summary.json"):
        Path(f"{output}{suffix}").unlink()
    with pytest.raises(OutputError, match="neither its journal nor its summary"):
        correct_output(str(output), file)
    assert output.read_bytes() == before


def test_a_correction_that_was_killed_is_whole_or_not_there(output: Path) -> None:
    file = lines(
        output.parent / "fixed.jsonl", *({"id": f"2019/{n}.png", "text": "b"} for n in range(3))
    )
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from vlmbatch import correct\n"
        "from vlmbatch.write import OutputStore\n"
        "class Dying(OutputStore):\n"
        "    def close(self, *, finished=True):\n"
        "        self.commit()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "correct.OutputStore = Dying\n"
        "correct.correct_output(sys.argv[1], Path(sys.argv[2]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(output), str(file)], check=False)
    assert done.returncode == -signal.SIGKILL
    outcome, engine = start(job(output.parent / "photos", output=str(output)))
    assert not engine.answered
    assert outcome.summary["kept"]["edited"] == 3
    assert [row["text"] for row in rows(output)] == ["b", "b", "b"]
    assert all(row["text_original"] for row in rows(output))
