"""OUTPUT behind a URL: rows are staged on this disk, and a failed upload costs nothing."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.write.remote.machines import (
    ALL_THE_TIME,
    ALWAYS,
    URL,
    Flaky,
    is_done,
    numbers,
    rows_of,
    staged,
)
from tests.write.rows import SUFFIXES, failed, record
from vlmbatch.errors import JobError, MissingDependencyError, OutputError, OutputLockedError
from vlmbatch.job import Job
from vlmbatch.write import (
    UploadPolicy,
    open_output,
    read_records,
)
from vlmbatch.write.remote.file import RemoteFile


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_are_there_when_it_is_closed_and_another_machine_goes_on_from_them(
    tmp_path: Path, suffix: str, memory: MemoryFileSystem
) -> None:
    url = f"memory://bucket/deep/run.{suffix}"
    with staged(tmp_path / "here", url) as output:
        output.write(record(1, "one"), "x")
        output.write(failed(0), "x")
        assert not memory.exists("/bucket/deep")
    output.write_summary({"items": 2})
    assert [(row["index"], row["text"]) for row in rows_of(url)] == [(0, "picture 0"), (1, "one")]
    assert json.loads(memory.cat(f"/bucket/deep/run.{suffix}.summary.json")) == {"items": 2}
    with staged(tmp_path / "there", url) as output:
        assert is_done(output, 1)
        assert not is_done(output, 1, "changed")  # the journal came along
        assert output.totals() == {"rows": 2, "errors": 1}
        output.write(record(2), "x")
    assert numbers(url) == [0, 1, 2]
    assert {Path(name).name for name in memory.find("/bucket")} == {
        f"run.{suffix}{end}" for end in ("", ".journal", ".summary.json")
    }


def test_a_run_with_nothing_new_uploads_nothing(tmp_path: Path, memory: MemoryFileSystem) -> None:
    with staged(tmp_path) as output:
        output.write(record(0), "x")
    before = memory.created("/bucket/run.jsonl")
    with staged(tmp_path) as output:
        assert is_done(output, 0)
        output.keep(*record(0).key, 0)
    assert memory.created("/bucket/run.jsonl") == before


def test_what_a_killed_run_committed_is_uploaded_by_the_next_one(tmp_path: Path) -> None:
    with staged(tmp_path) as output:
        output.write(record(0), "x")
    output = staged(tmp_path)
    output.write(record(1), "x")
    output.commit()
    output.write(record(2), "x")
    output.abandon()
    assert numbers() == [0]
    with staged(tmp_path) as output:
        assert [is_done(output, number) for number in range(3)] == [True, True, False]
    assert numbers() == [0, 1]


def test_a_run_uploads_what_is_published_in_between(tmp_path: Path) -> None:
    seconds = [0.0]
    output = staged(
        tmp_path,
        policy=ALWAYS,
        uploads=UploadPolicy(seconds=60, share=1.0),
        clock=lambda: seconds[0],
    )

    def uploaded() -> list[int]:
        if output._thread is not None:
            output._thread.join()
        return numbers()

    seconds[0] += 1
    output.write(record(0), "x")
    assert uploaded() == [0]
    seconds[0] += 30
    output.write(record(1), "x")
    assert uploaded() == [0]
    seconds[0] += 31
    output.tick()
    assert uploaded() == [0, 1]
    output.abandon()
    with staged(tmp_path / "another machine") as output:
        assert is_done(output, 1)
        assert not is_done(output, 1, "changed")


def test_an_upload_that_fails_is_tried_again(tmp_path: Path, flaky: type[Flaky]) -> None:
    waited: list[float] = []
    output = staged(tmp_path, "flaky://run.jsonl", allow_private_urls=True, wait=waited.append)
    output.write(record(0), "x")
    flaky.failures = [ConnectionError("reset by peer"), TimeoutError("no answer")]
    output.close()
    assert waited == [1.0, 2.0]
    assert numbers("flaky://run.jsonl") == [0]
    assert not any(name.endswith(".tmp") for name in flaky.store)


def test_when_it_keeps_failing_the_rows_stay_and_the_same_command_uploads_them(
    tmp_path: Path, flaky: type[Flaky]
) -> None:
    url, waited = "flaky://run.jsonl", list[float]()
    with staged(tmp_path, url, allow_private_urls=True) as output:
        output.write(record(0, "old"), "x")
    output = staged(tmp_path, url, allow_private_urls=True, wait=waited.append)
    output.write(record(0, "new"), "y")
    output.write(record(1), "x")
    flaky.failures = [ConnectionError("reset by peer")] * 99
    with pytest.raises(
        OutputError,
        match=r"cannot write flaky://run\.jsonl: reset by peer; every finished row is kept in "
        r".*the same command",
    ) as caught:
        output.close()
    assert str(output.path) in str(caught.value)
    assert waited == [1.0, 2.0, 4.0, 8.0]
    assert [row["text"] for row in read_records(output.path)] == ["new", "picture 1"]
    output.write_summary({})  # does not try once more
    assert len(waited) == 4
    flaky.failures = []
    assert [row["text"] for row in rows_of(url)] == ["old"]
    with staged(tmp_path, url, allow_private_urls=True) as output:
        assert is_done(output, 1)
    assert [row["text"] for row in rows_of(url)] == ["new", "picture 1"]


def test_an_upload_in_between_that_fails_does_not_end_the_run(
    tmp_path: Path, flaky: type[Flaky], caplog: pytest.LogCaptureFixture
) -> None:
    url = "flaky://run.jsonl"
    remote = RemoteFile(url, allow_private=True, back_off=())
    flaky.failures = [ConnectionError("reset by peer")]
    with (
        staged(
            tmp_path,
            url,
            policy=ALWAYS,
            uploads=ALL_THE_TIME,
            remote=remote,
            allow_private_urls=True,
        ) as output,
        caplog.at_level(logging.WARNING),
    ):
        output.write(record(0), "x")
        output.tick()
        assert output._thread is not None
        output._thread.join()
    assert "reset by peer; the run goes on, the rows are kept in" in caplog.text
    assert numbers(url) == [0]


def test_stopping_does_not_wait_for_the_next_try_of_an_upload_in_between(
    tmp_path: Path, flaky: type[Flaky]
) -> None:
    url, trying = "flaky://run.jsonl", threading.Event()

    class Failure(ConnectionError):
        def __str__(self) -> str:
            trying.set()
            return "reset by peer"

    flaky.failures = [Failure()]
    remote = RemoteFile(url, allow_private=True, back_off=(1e6,))
    output = staged(
        tmp_path, url, policy=ALWAYS, uploads=ALL_THE_TIME, remote=remote, allow_private_urls=True
    )
    output.write(record(0), "x")
    output.tick()
    trying.wait()
    output.close()
    assert numbers(url) == [0]


def test_errors_that_do_not_pass_are_not_tried_again(tmp_path: Path, flaky: type[Flaky]) -> None:
    output = staged(
        tmp_path,
        "flaky://run.jsonl",
        allow_private_urls=True,
        wait=lambda seconds: pytest.fail("waits"),
    )
    output.write(record(0), "x")
    flaky.failures = [PermissionError("Access Denied")]
    with pytest.raises(OutputError, match="Access Denied; every finished row is kept"):
        output.close()


def test_what_tells_of_other_settings_is_gone_before_the_rows_are_replaced(
    tmp_path: Path, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    with staged(tmp_path, identity={"detail": "low"}) as output:
        output.write(record(0, "old"), "x")
    output.write_summary({"identity": {"detail": "low"}})
    output = staged(tmp_path, overwrite=True)
    output.write(record(0, "new"), "x")
    put = RemoteFile.put
    seen: list[list[str]] = []

    def spy(self: RemoteFile, *arguments: Any) -> None:
        seen.append(sorted(memory.find("/bucket")))
        put(self, *arguments)

    monkeypatch.setattr(RemoteFile, "put", spy)
    output.close()
    assert seen == [["/bucket/run.jsonl"]] * 2
    assert len(memory.find("/bucket")) == 2


def test_an_output_that_was_deleted_there_is_made_anew(
    tmp_path: Path, memory: MemoryFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    with staged(tmp_path) as output:
        output.write(record(0), "x")
    memory.rm("/bucket/run.jsonl")
    with caplog.at_level(logging.WARNING), staged(tmp_path) as output:
        assert not is_done(output, 0)
        output.write(record(1), "x")
    assert "is gone: it is made anew" in caplog.text
    assert numbers() == [1]


def test_rows_that_were_never_uploaded_outlive_an_output_that_was_deleted_there(
    tmp_path: Path, memory: MemoryFileSystem
) -> None:
    with staged(tmp_path) as output:
        output.write(record(0), "x")
    output = staged(tmp_path)
    output.write(record(1), "x")
    output.commit()
    output.abandon()
    memory.rm("/bucket/run.jsonl")
    staged(tmp_path).close()
    assert numbers() == [0, 1]


def test_a_fetch_that_was_killed_half_way_is_done_again(
    tmp_path: Path, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    with staged(tmp_path / "there") as output:
        output.write(record(0), "x")
    get = RemoteFile.get

    def killed(self: RemoteFile, target: Path) -> bool:
        if self.url.endswith(".journal"):
            raise KeyboardInterrupt
        return get(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RemoteFile, "get", killed)
        staged(tmp_path / "here")
    with staged(tmp_path / "here") as output:
        assert is_done(output, 0)
        assert not is_done(output, 0, "changed")


def test_of_two_runs_of_a_machine_the_second_ends_at_once(tmp_path: Path) -> None:
    with (
        staged(tmp_path),
        pytest.raises(
            OutputLockedError, match=rf"another run \(process \d+\) holds {URL}"
        ) as caught,
    ):
        staged(tmp_path)
    assert caught.value.exit_code == 75


def test_a_run_that_was_stopped_before_its_first_row_makes_no_output(
    tmp_path: Path, memory: MemoryFileSystem
) -> None:
    staged(tmp_path).close(finished=False)
    assert not memory.exists("/bucket/run.jsonl")


def test_a_file_url_is_written_to_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/mount/run.csv"
    with staged(tmp_path / "staging", url) as output:
        output.write(record(0), "x")
    assert numbers(url) == [0]
    before = (tmp_path / "mount" / "run.csv").read_bytes()
    output = staged(tmp_path / "staging", url, wait=lambda seconds: None)
    output.write(record(1), "x")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(OutputError, match="No space left on device; every finished row is kept in"),
    ):
        patch.setattr("vlmbatch.write.remote.file.shutil.copyfileobj", full)
        output.close()
    assert (tmp_path / "mount" / "run.csv").read_bytes() == before
    staged(tmp_path / "staging", url).close()
    assert numbers(url) == [0, 1]
    assert {path.name for path in (tmp_path / "mount").iterdir()} == {"run.csv", "run.csv.journal"}


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("nonsense://a/b.jsonl", JobError, "no file system for nonsense://"),
        (
            "ftp://me:secret@10.0.0.1/a.jsonl",
            JobError,
            "ftp://10.0.0.1/a.jsonl: the address behind ftp:// cannot be checked",
        ),
        ("s3://bucket/a.jsonl", MissingDependencyError, "s3fs"),
        ("memory://a.jsonl", OutputError, "cannot look at memory://a.jsonl: it is a folder"),
    ],
)
def test_urls_that_cannot_be_outputs_say_so_before_the_work_begins(
    tmp_path: Path,
    memory: MemoryFileSystem,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    kind: type[Exception],
    message: str,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    memory.pipe("/a.jsonl/b", b"")
    job = Job(inputs=("x",), output=url, staging_dir=str(tmp_path))
    with pytest.raises(kind, match=message):
        open_output(job, job.identity())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"output": "https://me:secret@example.org/a.jsonl?sig=1"},
            r"a URL of a store that can be written .*, not https://example\.org/a\.jsonl$",
        ),
        ({"output": "simplecache::s3://bucket/a.jsonl"}, "a URL of a store that can be written"),
        ({"output": "s3://bucket/a.txt"}, "output must end in .jsonl, .parquet, .csv"),
        (
            {"output": "a.jsonl", "staging_dir": "x"},
            "staging_dir goes with an output that is a URL",
        ),
    ],
)
def test_jobs_with_an_output_that_cannot_be_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError, match=message):
        Job(inputs=("x",), **options)


def test_the_secrets_of_an_output_are_not_written_down() -> None:
    job = Job(inputs=("x",), output="s3://key:secret@bucket/out.jsonl")
    assert job.to_dict(credentials=False)["output"] == "s3://bucket/out.jsonl"
    assert job.to_dict()["output"] == "s3://key:secret@bucket/out.jsonl"
