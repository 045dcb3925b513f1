"""What a run refuses to go on with, and what --overwrite does about it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.write.rows import (
    ids,
    is_done,
    record,
    store,
)
from vlmbatch.errors import OutputError
from vlmbatch.job import Job
from vlmbatch.write import OutputStore, read_records, write_summary


class TestRefusal:
    def test_other_settings_are_refused_and_each_difference_is_named(self, output: Path) -> None:
        with store(output) as rows:
            rows.write(record(0))
        before = output.read_bytes()
        with pytest.raises(
            OutputError,
            match=r"\(model: demo there, other here; detail: full there, low here\); --overwrite",
        ):
            store(output, model="other", detail="low")
        with pytest.raises(OutputError, match="revision: r1 there, r2 here"):
            store(output, {"revision": "r2"})
        assert output.read_bytes() == before
        with store(output) as rows:
            assert is_done(rows, record(0))

    def test_so_are_those_of_a_run_that_was_killed_before_it_published(self, output: Path) -> None:
        rows = store(output)
        rows.write(record(0))
        rows.commit()
        rows.abandon()
        assert not output.exists()
        with pytest.raises(OutputError, match="detail: full there, low here"):
            store(output, detail="low")

    def test_a_revision_that_is_not_known_is_no_difference(self, output: Path) -> None:
        with store(output, {"revision": None}) as rows:
            rows.write(record(0))
        with store(output) as rows:
            assert is_done(rows, record(0))

    def test_without_a_journal_the_summary_tells_the_settings(self, output: Path) -> None:
        with store(output) as rows:
            rows.write(record(0))
        Path(f"{output}.journal").unlink()
        write_summary(
            output,
            {
                "identity": {
                    "model": "demo",
                    "detail": "native",
                    "max_new_tokens": 64,
                    "temperature": 0.0,
                    "revision": "r1",
                }
            },
        )
        with pytest.raises(OutputError, match="detail: native there, full here"):
            store(output)

    def test_without_either_the_rows_do(self, output: Path) -> None:
        with store(output) as rows:
            rows.write(record(0))
        Path(f"{output}.journal").unlink()
        with pytest.raises(OutputError, match="model: demo there, other here"):
            store(output, model="other")
        store(output, detail="low").close()

    @pytest.mark.parametrize(
        "content", [b"hello\n", b'{"id": "a"}\n', b"id,text\na,b\n", b"\x00\xff"]
    )
    def test_a_file_that_is_not_ours_is_refused_and_left_alone(
        self, output: Path, content: bytes
    ) -> None:
        output.write_bytes(content)
        with pytest.raises(
            OutputError, match=r"was not written by vlmbatch .*--overwrite replaces it"
        ):
            store(output)
        assert os.listdir(output.parent) == [output.name]
        assert output.read_bytes() == content
        with store(output, overwrite=True) as rows:
            rows.write(record(0))
        assert ids(output) == ["00000.jpg"]

    def test_a_journal_that_is_not_ours_is_refused(self, output: Path) -> None:
        Path(f"{output}.journal").write_text("hello\n")
        with pytest.raises(OutputError, match="damaged or was not written by vlmbatch"):
            store(output)
        with store(output, overwrite=True) as rows:
            rows.write(record(0))
        assert ids(output) == ["00000.jpg"]

    def test_a_folder_or_a_place_without_one_is_refused(self, output: Path) -> None:
        output.mkdir()
        with pytest.raises(OutputError, match="it is a folder"):
            store(output)
        blocker = output.parent / "file"
        blocker.touch()
        with pytest.raises(OutputError, match="cannot write"):
            store(blocker / output.name)

    def test_a_missing_folder_is_made(self, output: Path) -> None:
        deep = output.parent / "a" / "b" / output.name
        with store(deep) as rows:
            rows.write(record(0))
        assert ids(deep) == ["00000.jpg"]


class TestOverwrite:
    def test_old_rows_are_gone_and_other_settings_are_fine(self, output: Path) -> None:
        with store(output) as rows:
            rows.write(record(0))
        with store(output, overwrite=True, detail="low") as rows:
            assert not is_done(rows, record(0))
            rows.write(record(1))
        assert ids(output) == ["00001.jpg"]

    def test_a_finished_run_without_rows_empties_output(self, output: Path) -> None:
        with store(output) as rows:
            rows.write(record(0))
        store(output, overwrite=True).close()
        assert ids(output) == []

    def test_a_run_that_fails_before_its_first_row_leaves_the_old_output(
        self, output: Path
    ) -> None:
        with store(output) as rows:
            rows.write(record(0))
        with pytest.raises(RuntimeError), store(output, overwrite=True, detail="low"):
            raise RuntimeError("no such model")
        with store(output) as rows:
            assert is_done(rows, record(0))

    @pytest.mark.parametrize("n_rows", [0, 2])
    def test_a_killed_one_goes_on_without_the_old_rows_once_it_has_committed(
        self, output: Path, n_rows: int
    ) -> None:
        with store(output) as rows:
            rows.write(record(0))
        rows = store(output, overwrite=True)
        for number in range(n_rows):
            rows.write(record(10 + number))
            rows.commit()
        rows.abandon()
        assert ids(output) == ["00000.jpg"]
        with store(output) as rows:
            assert is_done(rows, record(0)) == (n_rows == 0)
            rows.write(record(5))
        assert ids(output) == (
            ["00005.jpg", "00010.jpg", "00011.jpg"] if n_rows else ["00000.jpg", "00005.jpg"]
        )


def test_the_same_checkpoint_under_another_path_is_no_difference(output: Path) -> None:
    settings = {"model": "models/tiny", "revision": "sha256:1234", "detail": "full"}
    with store(output, settings) as writer:
        writer.write(record(0))
    with store(output, {**settings, "model": "/abs/models/tiny"}) as writer:
        assert is_done(writer, record(0))
    with pytest.raises(OutputError, match="model: "):
        store(output, {**settings, "model": "other", "revision": "sha256:5678"})


class TestTasks:
    """Several tasks share one OUTPUT, each with its own settings of generation."""

    @staticmethod
    def identity(task: str, tokens: int) -> dict[str, Any]:
        return {"model": "m", "revision": "r", "tasks": {task: {"max_new_tokens": tokens}}}

    def open(self, path: Path, task: str, tokens: int) -> OutputStore:
        return OutputStore(path, Job(), self.identity(task, tokens))

    def test_each_task_is_compared_with_its_own_settings(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        with self.open(path, "caption", 64) as store:
            store.write(record(0))
        with self.open(path, "ocr", 512) as store:
            store.write(record(1, task="ocr"))
        for task, tokens in (("caption", 65), ("ocr", 64)):
            with pytest.raises(OutputError, match="max_new_tokens"):
                self.open(path, task, tokens)
        with self.open(path, "caption", 64) as store:
            assert store.n_rows == 2

    def test_a_killed_run_of_another_task_leaves_its_settings(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        with self.open(path, "caption", 64) as store:
            store.write(record(0))
        store = self.open(path, "caption", 64)
        store.write(record(1))
        store.commit()
        store.abandon()
        store = self.open(path, "ocr", 512)
        store.write(record(2, task="ocr"))
        store.commit()
        store.abandon()
        with pytest.raises(OutputError, match="max_new_tokens"):
            self.open(path, "ocr", 64)
        with self.open(path, "caption", 64) as store:
            assert store.n_rows == 3
        assert [row["task"] for row in read_records(path)] == ["caption", "caption", "ocr"]

    def test_settings_of_before_there_were_tasks_hold_for_every_task(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        old = {"model": "m", "revision": "r", "max_new_tokens": 64}
        with OutputStore(path, Job(), old) as store:
            store.write(record(0))
        with pytest.raises(OutputError, match="max_new_tokens: 64 there, 32 here"):
            self.open(path, "caption", 32)
        with self.open(path, "caption", 64) as store:
            assert store.n_rows == 1
