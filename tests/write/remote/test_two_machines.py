"""Two machines with one OUTPUT behind a URL: nothing is mixed, nothing is lost."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.write.remote.machines import (
    ALL_THE_TIME,
    ALWAYS,
    URL,
    Flaky,
    is_done,
    numbers,
    parts,
    rows_of,
    staged,
)
from tests.write.rows import SUFFIXES, record
from vlmbatch.errors import OutputError
from vlmbatch.write import (
    CommitPolicy,
)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_of_the_later_of_two_runs_are_published_beside_output(
    tmp_path: Path, suffix: str, memory: MemoryFileSystem
) -> None:
    url = f"memory://bucket/run.{suffix}"
    with staged(tmp_path / "here", url) as output:
        output.write(record(0, "first"), "x")
    here = staged(tmp_path / "here", url, run_id="20260131T120000-abcdef")
    there = staged(tmp_path / "there", url)
    there.write(record(1, "there"), "x")
    there.close()
    here.write(record(1, "here"), "y")
    here.write(record(2, "here"), "x")
    part = f"memory://bucket/run.part-20260131T120000-abcdef.{suffix}"
    with pytest.raises(
        OutputError,
        match=rf"^{url} was written by another run meanwhile; the rows of this run are in {part}, "
        "and the same command goes on from what the other run wrote$",
    ):
        here.close()
    assert [row["text"] for row in rows_of(url)] == ["first", "there"]
    assert [row["text"] for row in rows_of(part)] == ["first", "here", "here"]
    with staged(tmp_path / "here", url) as output:
        assert [is_done(output, number) for number in range(3)] == [True, True, False]
        output.write(record(2, "again"), "x")
    assert [row["text"] for row in rows_of(url)] == ["first", "there", "again"]
    assert len(parts(memory)) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_that_a_killed_run_left_are_published_beside_an_output_that_others_continued(
    tmp_path: Path, suffix: str, memory: MemoryFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"memory://bucket/run.{suffix}"
    here = staged(tmp_path / "here", url, keep=("label",))
    here.write(record(1, "here", extra={"label": "kept"}), "y")
    here.commit()
    here.abandon()
    with staged(tmp_path / "there", url) as output:
        output.write(record(2, "there"), "x")
    with caplog.at_level(logging.WARNING), staged(tmp_path / "here", url) as output:
        assert [is_done(output, number) for number in (1, 2)] == [False, True]
    (part,) = parts(memory)
    assert f"rows that only this machine had are in memory://bucket/{part}" in caplog.text
    assert [(row["text"], row["label"]) for row in rows_of(f"memory://bucket/{part}")] == [
        ("here", "kept")
    ]
    assert [row["text"] for row in rows_of(url)] == ["there"]


def test_a_part_that_cannot_be_uploaded_stays_here_and_is_published_by_the_same_command(
    tmp_path: Path, flaky: type[Flaky]
) -> None:
    url = "flaky://run.jsonl"
    options = {"allow_private_urls": True, "wait": lambda seconds: None}
    here, there = staged(tmp_path / "here", url, **options), staged(tmp_path / "b", url, **options)
    there.write(record(1, "there"), "x")
    there.close()
    here.write(record(2, "here"), "x")
    flaky.failures = [PermissionError("Access Denied")]
    with pytest.raises(OutputError, match="Access Denied; every finished row is kept in"):
        here.close()
    staged(tmp_path / "here", url, **options).close()
    (part,) = (name for name in flaky.store if ".part-" in name)
    assert [row["text"] for row in rows_of("flaky://" + Path(part).name)] == ["here"]


def test_a_killed_run_without_rows_of_its_own_leaves_no_part(
    tmp_path: Path, memory: MemoryFileSystem
) -> None:
    with staged(tmp_path / "here") as output:
        output.write(record(0), "x")
    output = staged(tmp_path / "here")
    output.write(record(1), "x")
    output.abandon()
    with staged(tmp_path / "there") as output:
        output.write(record(2), "x")
    staged(tmp_path / "here").close()
    assert parts(memory) == []
    assert numbers() == [0, 2]


def test_a_run_that_sees_another_one_uploads_nothing_more_until_its_end(
    tmp_path: Path, memory: MemoryFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    here = staged(tmp_path / "here", policy=ALWAYS, uploads=ALL_THE_TIME)
    with staged(tmp_path / "there") as output:
        output.write(record(0, "there"), "x")
    with caplog.at_level(logging.WARNING), pytest.raises(OutputError, match="by another run"):
        for number in range(4):
            here.write(record(number, "here"), "x")
            here.tick()
            if here._thread is not None:
                here._thread.join()
        here.close()
    assert caplog.text.count("was written by another run meanwhile; the run goes on") == 1
    assert [row["text"] for row in rows_of()] == ["there"]
    (part,) = parts(memory)
    assert len(rows_of(f"memory://bucket/{part}")) == 4


def test_what_another_machine_did_is_taken_when_nothing_is_left_to_upload_here(
    tmp_path: Path,
) -> None:
    with staged(tmp_path / "here") as output:
        output.write(record(0, "here"), "x")
    with staged(tmp_path / "there") as output:
        output.write(record(0, "there"), "y")
        output.write(record(1, "there"), "x")
    with staged(tmp_path / "here") as output:
        assert is_done(output, 0, "y")
        assert not is_done(output, 0, "x")
    assert [row["text"] for row in rows_of()] == ["there", "there"]


def test_rows_that_another_machine_made_with_other_settings_are_not_mixed_with_ours(
    tmp_path: Path, memory: MemoryFileSystem
) -> None:
    output = staged(tmp_path / "here")
    output.write(record(0), "x")
    output.commit()
    output.abandon()
    with staged(tmp_path / "there", identity={"detail": "low"}) as output:
        output.write(record(1), "x")
    for _ in range(2):
        with pytest.raises(
            OutputError,
            match=rf"{URL} was made with other settings \(detail: low there, full here\)",
        ):
            staged(tmp_path / "here")
    assert numbers() == [1]
    (part,) = parts(memory)
    assert numbers(f"memory://bucket/{part}") == [0]
    with pytest.raises(OutputError, match="detail: low there, full here"):
        staged(tmp_path / "a third machine")


def test_overwrite_starts_anew_and_an_overwrite_that_did_nothing_costs_nothing(
    tmp_path: Path,
) -> None:
    with staged(tmp_path / "there", identity={"detail": "low"}) as output:
        output.write(record(0, "old"), "x")
        output.write(record(1, "old"), "x")
    staged(tmp_path / "here", overwrite=True).abandon()
    with staged(tmp_path / "here", identity={"detail": "low"}) as output:
        assert output.totals()["rows"] == 2
    output = staged(
        tmp_path / "here", overwrite=True, policy=CommitPolicy(rows=1), uploads=ALL_THE_TIME
    )
    output.tick()
    output.write(record(0, "new"), "x")
    output.tick()
    assert output._thread is None  # what stands in the staging folder is still the old one
    output.abandon()
    with staged(tmp_path / "here") as output:
        assert output.totals()["rows"] == 1
    assert [row["text"] for row in rows_of()] == ["new"]
    with staged(tmp_path / "there") as output:
        assert is_done(output, 0)
