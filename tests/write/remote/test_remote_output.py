"""OUTPUT behind a URL: rows are staged on this disk and uploaded whole; nothing is lost when an
upload fails or two machines write.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.write.rows import ONLY_WHEN_ASKED, SUFFIXES, failed, record
from vlmbatch.errors import JobError, MissingDependencyError, OutputError, OutputLockedError
from vlmbatch.job import Job
from vlmbatch.write import (
    CommitPolicy,
    StagedOutput,
    UploadPolicy,
    local_copy,
    open_output,
    read_records,
)
from vlmbatch.write.remote.file import RemoteFile

URL = "memory://bucket/run.jsonl"
ALL_THE_TIME = UploadPolicy(seconds=0)
ALWAYS = CommitPolicy(rows=1, seconds=0, publish_seconds=0, publish_share=float("inf"))


@pytest.fixture(autouse=True)
def memory() -> Iterator[MemoryFileSystem]:
    """fsspec's file system in memory, empty."""
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


class Flaky(MemoryFileSystem):
    """A file system in memory whose next writes fail."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failures: ClassVar[list[Exception]] = []
    cachable = False

    def put_file(self, *arguments: Any, **options: Any) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        return super().put_file(*arguments, **options)


@pytest.fixture
def flaky() -> Iterator[type[Flaky]]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.store.clear()
    Flaky.failures = []
    yield Flaky
    Flaky.store.clear()


def staged(
    folder: Path,
    url: str = URL,
    *,
    policy: CommitPolicy = ONLY_WHEN_ASKED,
    identity: dict[str, Any] | None = None,
    **options: Any,
) -> StagedOutput:
    """An OUTPUT whose staging folder is that of one machine; it is uploaded at the end only."""
    seams = {
        name: options.pop(name)
        for name in ("uploads", "clock", "wait", "remote", "run_id")
        if name in options
    }
    job = Job(
        inputs=("pictures",), output=url, staging_dir=str(folder), **{"model": "demo", **options}
    )
    settings = {**job.identity(), "revision": "r1", **(identity or {})}
    return StagedOutput(
        job, settings, **{"policy": policy, "uploads": UploadPolicy(seconds=1e9), **seams}
    )


def rows_of(url: str = URL) -> list[dict[str, Any]]:
    with local_copy(url, allow_private=True) as path:
        return list(read_records(path))


def numbers(url: str = URL) -> list[int]:
    return [int(row["id"][:5]) for row in rows_of(url)]


def is_done(output: StagedOutput, number: int, fingerprint: str = "x") -> bool:
    made = record(number)
    return output.done(*made.key, made.source, fingerprint)


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


def parts(memory: MemoryFileSystem) -> list[str]:
    """Names of what was published beside OUTPUTs, in order."""
    found = [Path(name).name for name in memory.find("/bucket")]
    return sorted(name for name in found if ".part-" in name)


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
