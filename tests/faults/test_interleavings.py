"""Any order of runs that end well, fail or die, with files that come, change and go in between:
what OUTPUT holds is what was answered, once.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.media import picture
from tests.write.rows import record, store
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import NothingFound, OutputError
from vlmbatch.job import Job
from vlmbatch.run.pipeline import Run
from vlmbatch.write import CommitPolicy, OutputStore, read_records

FILES = 6
SUFFIXES = ("jsonl", "parquet", "csv")
EAGER = CommitPolicy(rows=2, publish_seconds=0.0, publish_share=float("inf"))

STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["write", "delete"]), st.integers(0, FILES - 1)),
        st.tuples(st.sampled_from(["run", "retry"]), st.just(0)),
        st.tuples(st.sampled_from(["engine dies", "killed"]), st.integers(0, FILES)),
    ),
    max_size=14,
)


class Killed(BaseException):
    """In the place of ``kill -9``: nothing after it reaches the disk."""


def write_file(path: Path, version: int) -> None:
    """Another version is a picture of another size, and of a time of its own."""
    from PIL import Image

    Image.fromarray(picture(4 + version, 4)).save(path)
    os.utime(path, ns=(0, version * 10**9))


def one_run(
    folder: Path,
    output: Path,
    engine: ScriptedEngine,
    killed_after: int | None = None,
    **options: Any,
) -> int:
    """Runs the job; after so many rows the process is as good as gone."""
    running = Run(Job(inputs=(str(folder),), output=str(output), **options), engine=engine)
    rows = running.writer
    assert isinstance(rows, OutputStore)
    rows._policy = EAGER
    if killed_after is None:
        return running.start().exit_code
    write, written = rows.write, 0

    def until_killed(*values: Any, **options: Any) -> None:
        nonlocal written
        if written == killed_after:
            rows.abandon()
            raise Killed
        written += 1
        write(*values, **options)

    rows.write = until_killed  # type: ignore[method-assign]
    outcome = running.start()
    rows.abandon()
    assert outcome.error is None or isinstance(outcome.error, Killed | NothingFound)
    return outcome.exit_code


@settings(max_examples=40)
@given(steps=STEPS, suffix=st.sampled_from(SUFFIXES))
def test_any_order_of_runs_and_changes_leaves_every_row_once(
    steps: list[tuple[str, int]], suffix: str
) -> None:
    root = Path(tempfile.mkdtemp())
    folder, output = root / "photos", root / f"out.{suffix}"
    folder.mkdir()
    versions = dict.fromkeys(range(3), 0)
    for number in versions:
        write_file(folder / f"{number}.png", 0)
    try:
        for step, (what, number) in enumerate([*steps, ("run", 0), ("retry", 0)], 1):
            if what == "write":
                versions[number] = step
                write_file(folder / f"{number}.png", step)
            elif what == "delete":
                (folder / f"{number}.png").unlink(missing_ok=True)
                versions.pop(number, None)
            elif what == "killed":
                one_run(folder, output, ScriptedEngine(), killed_after=number)
            else:
                engine = ScriptedEngine(
                    die_after=number if what == "engine dies" else None,
                    fail=lambda key: what == "run" and key == "1.png",
                )
                code = one_run(folder, output, engine, retry_errors=what == "retry")
                assert code in (0, 1, 3) or (code == 66 and not versions)
            if not output.exists():
                continue
            found = {row["id"]: row for row in read_records(output)}
            assert len(found) == sum(1 for _ in read_records(output))
            if what in ("run", "retry"):
                # Rows of files that are gone stay.
                assert set(found) >= {f"{number}.png" for number in versions}
                for number, version in versions.items():
                    row = found[f"{number}.png"]
                    assert row["width"] == 4 + version
                    assert row["status"] == "ok" or (number == 1 and what == "run")
    finally:
        shutil.rmtree(root)


@settings(max_examples=150)
@given(data=st.data(), suffix=st.sampled_from(SUFFIXES))
def test_a_journal_with_any_damage_gives_good_rows_or_is_refused(
    data: st.DataObject, suffix: str
) -> None:
    folder = Path(tempfile.mkdtemp())
    output = folder / f"out.{suffix}"
    journal = Path(f"{output}.journal")
    try:
        with store(output) as rows:
            for number in range(3):
                rows.write(record(number), "x")
        rows = store(output)
        for number in range(3, 6):
            rows.write(record(number, "new"), "x")
        rows.commit()
        rows.abandon()
        content = bytearray(journal.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(content) - 1))
            kind = data.draw(st.sampled_from(["flip", "cut", "zero", "insert", "repeat"]))
            if kind == "flip":
                content[place] ^= data.draw(st.integers(1, 255))
            elif kind == "cut":
                del content[max(place, 1) :]
            elif kind == "zero":
                content[place : place + 50] = bytes(50)
            elif kind == "insert":
                content[place:place] = b"\nhalf a line\n"
            else:
                content += content[place:]
        journal.write_bytes(content)
        before = output.read_bytes()
        try:
            rows = store(output)
        except OutputError:
            assert output.read_bytes() == before
            return
        rows.write(record(9, "last"), "x")
        rows.close()
        found = {row["id"]: row["text"] for row in read_records(output)}
        good = {
            f"{number:05d}.jpg": f"picture {number}" if number < 3 else "new" for number in range(6)
        } | {"00009.jpg": "last"}
        assert found.items() <= good.items()
        assert {f"{number:05d}.jpg" for number in (0, 1, 2, 9)} <= found.keys()
        assert len(found) == sum(1 for _ in read_records(output))
    finally:
        shutil.rmtree(folder)
