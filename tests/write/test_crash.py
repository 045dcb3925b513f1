"""Nothing that was committed is lost, and nothing is there twice, whatever happens in between."""

from __future__ import annotations

import dataclasses
import logging
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processes import start
from tests.write.rows import ONLY_WHEN_ASKED, SUFFIXES, ids, is_done, record, store, texts
from vlmbatch.errors import OutputError, OutputLockedError
from vlmbatch.write import read_records
from vlmbatch.write.atomic import replacing
from vlmbatch.write.journal import write_journal

ROOT = Path(__file__).parents[2]


def child(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.write.child", *map(str, arguments)]
    return start(command, cwd=ROOT, stdout=subprocess.PIPE)


def killed_run(output: Path, n_rows: int) -> bytes:
    """Leaves what a run leaves that was killed after its commit.

    Returns:
        The journal.
    """
    rows = store(output)
    for number in range(n_rows):
        rows.write(record(number), "x")
    rows.commit()
    rows.abandon()
    return Path(f"{output}.journal").read_bytes()


def test_reading_before_the_first_publishing_says_what_the_journal_holds(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    killed_run(output, 1)
    store(output).abandon()
    with pytest.raises(
        OutputError,
        match=r"out\.jsonl: not written yet, .* out\.jsonl\.journal holds 1 row, and the same "
        "command goes on from there",
    ):
        read_records(output)
    with store(output) as rows:
        rows.write(record(1), "x")
    assert len(texts(output)) == 2
    output.unlink()
    with pytest.raises(OutputError, match="No such file"):
        read_records(output)
    Path(f"{output}.journal").unlink()
    store(output).abandon()
    with pytest.raises(OutputError, match="holds no rows yet"):
        read_records(output)


class TestDamagedJournal:
    def test_a_last_line_cut_at_any_byte_loses_that_row_only(self, tmp_path: Path) -> None:
        output = tmp_path / "out.jsonl"
        journal = Path(f"{output}.journal")
        content = killed_run(output, 3)
        last = content[:-1].rindex(b"\n") + 1
        for cut in range(last, len(content) + 1):
            journal.write_bytes(content[:cut])
            rows = store(output)
            assert rows.n_rows == (3 if cut == len(content) else 2)
            assert journal.stat().st_size == (cut if cut == len(content) else last)
            rows.abandon()
        journal.write_bytes(content[:-20])
        with store(output) as rows:
            rows.write(record(2, "again"))
        assert texts(output) == ["picture 0", "picture 1", "again"]

    def test_zeros_after_the_last_line_are_cut_off(self, tmp_path: Path) -> None:
        output = tmp_path / "out.jsonl"
        Path(f"{output}.journal").write_bytes(killed_run(output, 3) + bytes(5000))
        with store(output) as rows:
            rows.write(record(3))
        assert len(ids(output)) == 4

    def test_a_damaged_line_in_the_middle_costs_its_row_and_is_said(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        output = tmp_path / "out.jsonl"
        lines = killed_run(output, 5).splitlines(keepends=True)
        lines[3] = lines[3].replace(b"picture", b"pictvre")
        Path(f"{output}.journal").write_bytes(b"".join(lines))
        with caplog.at_level(logging.WARNING), store(output) as rows:
            assert [is_done(rows, record(number), "x") for number in range(5)] == [
                True,
                True,
                False,
                True,
                True,
            ]
            rows.write(record(2, "again"), "x")
        assert "1 damaged line" in caplog.text
        assert texts(output) == ["picture 0", "picture 1", "again", "picture 3", "picture 4"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_crash_between_publishing_and_shortening_the_journal_is_harmless(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / f"out.{suffix}"
    with store(output) as rows:
        rows.write(record(0), "x")
    rows = store(output)
    rows.write(record(1), "x")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):

        def power_cut(*_: object) -> None:
            raise OSError("power cut")

        patch.setattr("vlmbatch.write.known.stored_rows.write_journal", power_cut)
        rows.close()
    assert ids(output) == ["00000.jpg", "00001.jpg"]
    with store(output) as rows:
        assert rows.n_rows == 2
        assert is_done(rows, record(1), "x")
        assert not is_done(rows, record(1), "y")
    assert ids(output) == ["00000.jpg", "00001.jpg"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_kill_9_at_any_moment_loses_nothing_committed_and_doubles_nothing(
    tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"out.{suffix}"
    total, committed, dice = 400, set[int](), random.Random(suffix)
    for _ in range(6):
        process = child("write_until_killed", output, total)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        for _ in range(dice.randrange(4)):
            committed.update(map(int, process.stdout.readline().split()[1:]))
        time.sleep(dice.random() * 0.03)  # a random moment is what is tested
        process.kill()
        for line in process.stdout.read().splitlines(keepends=True):
            if line.startswith("committed") and line.endswith("\n"):
                committed.update(map(int, line.split()[1:]))
        process.wait()
        process.stdout.close()
        if output.exists():
            found = ids(output)
            assert found == sorted(set(found))
        rows = store(output)
        assert all(is_done(rows, record(number), "size") for number in committed)
        rows.abandon()
    assert committed
    process = child("write_until_killed", output, total)
    assert process.communicate()[0].endswith("finished\n")
    assert ids(output) == [f"{number:05d}.jpg" for number in range(total)]
    assert texts(output) == [f"{number} " * 50 for number in range(total)]
    assert len(list(tmp_path.iterdir())) == 2


class TestLock:
    def test_a_second_run_ends_at_once_and_kill_9_frees_the_lock(self, tmp_path: Path) -> None:
        output = tmp_path / "out.jsonl"
        process = child("hold", output)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(
            OutputLockedError, match=rf"another run \(process {process.pid}\) holds .*out\.jsonl"
        ) as caught:
            store(output)
        assert caught.value.exit_code == 75
        process.kill()
        process.wait()
        process.stdout.close()
        store(output).close()

    def test_the_file_goes_with_the_lock(self, tmp_path: Path) -> None:
        output = tmp_path / "out.jsonl"
        rows = store(output)
        assert Path(f"{output}.lock").exists()
        with pytest.raises(OutputLockedError):
            store(output)
        rows.close()
        assert not Path(f"{output}.lock").exists()


class TestFullDisk:
    def test_it_ends_the_run_in_one_line_and_keeps_what_was_committed(self, tmp_path: Path) -> None:
        output = tmp_path / "out.jsonl"
        said = child("fill_disk", output, 50_000).communicate()[0]
        committed, message = said.split(" ", 1)
        assert "cannot write" in message
        assert "File too large" in message
        assert message.count("\n") == 1
        assert int(committed) > 10
        with store(output) as rows:
            assert rows.n_rows == int(committed)
        assert len(ids(output)) == int(committed)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_one_that_has_no_room_for_output_keeps_the_old_one_and_the_journal(
        self, tmp_path: Path, suffix: str
    ) -> None:
        output = tmp_path / f"out.{suffix}"
        with store(output) as rows:
            rows.write(record(0, "old"))
        before = output.read_bytes()
        said = child("publish_on_full_disk", output, 3_000).communicate()[0]
        assert "File too large; what was finished is kept in" in said
        assert output.read_bytes() == before
        assert not Path(f"{output}.tmp").exists()
        store(output).close()
        assert len(ids(output)) == 200

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_one_without_room_for_rows_that_change_places_keeps_output(
        self, tmp_path: Path, suffix: str
    ) -> None:
        output = tmp_path / f"out.{suffix}"
        with store(output) as rows:
            for number in range(50):
                rows.write(record(number))
        before = output.read_bytes()
        said = child("reorder_on_full_disk", output, 3_000).communicate()[0]
        assert "File too large; what was finished is kept" in said
        assert output.read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            output.name,
            f"{output.name}.journal",
        ]

    def test_after_a_failed_commit_no_more_rows_are_taken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output = tmp_path / "out.jsonl"
        rows = store(output)
        rows.write(record(0))
        rows.commit()
        rows.write(record(1))
        with monkeypatch.context() as patch:

            def full(*_: object) -> int:
                raise OSError(28, "No space left on device")

            patch.setattr("os.pwrite", full)
            with pytest.raises(OutputError, match="No space left on device"):
                rows.commit()
        with pytest.raises(OutputError, match="has failed"):
            rows.write(record(2))
        rows.close()
        store(output).close()
        assert ids(output) == ["00000.jpg"]


def test_replacing_leaves_the_old_file_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 7)),
        st.tuples(st.sampled_from(["commit", "crash", "close", "snapshot"]), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=60)
@given(steps=STEPS, suffix=st.sampled_from(SUFFIXES), cut=st.integers(0, 40))
def test_any_order_of_writes_commits_and_crashes_keeps_each_committed_row_once(
    steps: list[tuple[str, int]], suffix: str, cut: int
) -> None:
    folder = Path(tempfile.mkdtemp())
    output = folder / f"out.{suffix}"
    committed: dict[int, str] = {}
    taken: dict[int, str] = {}
    now = [0.0]
    policy = dataclasses.replace(ONLY_WHEN_ASKED, publish_seconds=50)
    rows = store(output, policy=policy, clock=lambda: now[0])
    try:
        for step, (what, number) in enumerate(steps):
            if what == "write":
                taken[number] = f"step {step}"
                rows.write(record(number, taken[number]))
                continue
            if what == "crash":
                rows.abandon()
                with open(f"{output}.journal", "ab") as journal:
                    journal.write(b"0123abcd half a line " * 2 if cut > 20 else b"x" * cut)
            else:
                now[0] += 100 if what == "snapshot" else 0
                rows.commit()
                committed.update(taken)
                if what == "close":
                    rows.close()
            taken = {}
            if what in ("crash", "close"):
                rows = store(output, policy=policy, clock=lambda: now[0])
                assert rows.n_rows == len(committed)
        rows.commit()
        committed.update(taken)
        rows.close()
        assert texts(output) == [committed[number] for number in sorted(committed)]
    finally:
        rows.abandon()
        shutil.rmtree(folder)


def test_a_torn_journal_header_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl.journal"
    path.write_bytes(b"")
    store(tmp_path / "out.jsonl").close()
    assert path.stat().st_size > 0
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    from vlmbatch.write.journal import Header

    with pytest.raises(OutputError, match="No space left"):
        write_journal(path, Header({}))
    assert path.read_bytes() == before
