"""Videos in archives and tables: decoded from a temporary copy that is limited, and gone
afterwards.
"""

from __future__ import annotations

import gc
import io
import json
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.media import number_of, write_picture, write_video
from tests.read.bundles.test_archives import PACKERS, error, write_tar, write_zip
from vlmbatch.core import Item
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import JobError
from vlmbatch.job import Job
from vlmbatch.read import Reader, open_reader
from vlmbatch.run.pipeline import Run
from vlmbatch.sample import make_sampler
from vlmbatch.write import read_records

KINDS = ["zip", *PACKERS]


@pytest.fixture
def clip(tmp_path: Path) -> bytes:
    """25 frames in 2.5 seconds."""
    return write_video(tmp_path / "clip.mp4", 25).read_bytes()


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary copies."""
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))
    return tmp_path / "copies"


def write(path: Path, entries: list[tuple[str, bytes]]) -> Path:
    return (write_zip if path.suffix == ".zip" else write_tar)(path, entries)


def open_videos(path: Path, **options: Any) -> Reader:
    job = Job(inputs=(str(path),), media="video", **options)
    return open_reader(job, sampler=make_sampler(job))


def videos(path: Path, **options: Any) -> list[Item]:
    return list(open_videos(path, **options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per", ["frame", "clip"])
def test_videos_of_an_archive_are_sampled_like_files(
    tmp_path: Path, clip: bytes, copies: Path, kind: str, per: str
) -> None:
    picture = write_picture(tmp_path / "0.png").read_bytes()
    entries = [
        ("a/é 1.mp4", clip),
        ("0.png", picture),
        ("bad.mp4", b"no video"),
        (".hidden.mp4", clip),
        ("../up.mp4", clip),
        ("b.MKV", clip),
    ]
    path = write(tmp_path / f"x.{kind}", entries)
    reader = open_videos(path, per=per)
    found = list(reader)
    ends = ["#t=0.000", "#t=1.000", "#t=2.000"] if per == "frame" else [""]
    names = [
        *(f"a/é 1.mp4{end}" for end in ends),
        "bad.mp4",
        "../up.mp4",
        *(f"b.MKV{end}" for end in ends),
    ]
    assert [item.id for item in found] == [f"x.{kind}/{name}" for name in names]
    assert found[0].source == f"{path}/a/é 1.mp4"
    assert all(item.fingerprint for item in found)
    assert reader.counts.other_media == 1
    expected = [0, 10, 20] if per == "frame" else [0, 24]
    for several in (found[: len(ends)], found[-len(ends) :]):
        assert [number_of(frame) for item in several for frame in item.load().arrays()] == expected
    assert error(found[len(ends)]).startswith("not a video")
    assert "leads out of the archive" in error(found[len(ends) + 1])
    found, several = [], []
    gc.collect()
    assert list(copies.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_at_most_a_few_copies_are_there_at_once(
    tmp_path: Path, clip: bytes, copies: Path, kind: str
) -> None:
    path = write(tmp_path / f"x.{kind}", [(f"{number}.mp4", clip) for number in range(12)])
    most = 0
    for _ in open_videos(path):
        most = max(most, len(list(copies.iterdir())))
    gc.collect()
    assert 1 <= most <= 3
    assert list(copies.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_videos_of_an_archive_are_refused(
    tmp_path: Path, clip: bytes, copies: Path, kind: str
) -> None:
    path = write(tmp_path / f"x.{kind}", [("0.mp4", clip), ("1.mp4", clip)])
    with pytest.raises(JobError, match=r"shuffle .*0\.mp4"):
        videos(path, shuffle=True)
    gc.collect()
    assert list(copies.iterdir()) == []


def test_shuffled_videos_of_a_table_are_refused(tmp_path: Path, clip: bytes) -> None:
    pq.write_table(pa.table({"id": ["a"], "video": [clip]}), tmp_path / "t.parquet")
    with pytest.raises(JobError, match="shuffle"):
        videos(tmp_path / "t.parquet", path_column="video", shuffle=True)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_limits_are_those_of_pictures(tmp_path: Path, clip: bytes, copies: Path, kind: str) -> None:
    path = write(tmp_path / f"x.{kind}", [("big.mp4", clip * 3), ("1.mp4", clip)])
    found = videos(path, max_file_size=str(2 * len(clip)), num_frames=1)
    assert (
        error(found[0])
        == f"{3 * len(clip):,} bytes are more than --max-file-size allows ({2 * len(clip):,})"
    )
    assert found[1].id == f"x.{kind}/1.mp4#t=0.000"
    bomb = write(tmp_path / f"bomb.{kind}", [("bomb.mp4", bytes(60_000_000)), ("1.mp4", clip)])
    trouble = error(videos(bomb)[0])
    assert (
        "--max-compression-ratio 200" in trouble
        if kind != "tar"
        else trouble.startswith("not a video")
    )
    gc.collect()
    assert list(copies.iterdir()) == []


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_that_ends_in_a_video_leaves_no_copy(
    tmp_path: Path, clip: bytes, copies: Path, kind: str
) -> None:
    path = write(tmp_path / f"x.{kind}", [("0.mp4", clip), ("1.mp4", os.urandom(200_000))])
    data = bytearray(path.read_bytes())
    if kind == "zip":
        data[data.index(b"1.mp4") + 200] ^= 255
    else:
        del data[len(data) // 2 :]
    path.write_bytes(data)
    found = videos(path, num_frames=1)
    assert [item.id for item in found] == [
        f"x.{kind}/0.mp4#t=0.000",
        f"x.{kind}/1.mp4" if kind == "zip" else f"x.{kind}",
    ]
    assert error(found[1]).startswith("damaged")
    gc.collect()
    assert list(copies.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_without_room_for_a_copy_is_an_error_of_that_video(
    tmp_path: Path, clip: bytes, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = write(tmp_path / f"x.{kind}", [("0.mp4", clip), ("1.mp4", clip)])
    make, calls = tempfile.mkstemp, iter([True, False, True, False])

    def full_at_first(*arguments: Any) -> Any:
        if next(calls):
            raise OSError(28, "No space left on device")
        return make(*arguments)

    monkeypatch.setattr(tempfile, "mkstemp", full_at_first)
    found = videos(path, num_frames=1)
    assert [item.id for item in found] == [f"x.{kind}/0.mp4", f"x.{kind}/1.mp4#t=0.000"]
    assert error(found[0]) == "no room for a copy: No space left on device"


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_samples_with_a_video_have_columns_and_questions(
    tmp_path: Path, clip: bytes, copies: Path, kind: str
) -> None:
    entries = [
        *[("x/0.json", json.dumps({"label": 7, "ask": "Why?"}).encode()), ("x/0.mp4", clip)],
        *[
            ("x/1.left.mp4", clip),
            ("x/1.right.mp4", clip),
            ("x/1.json", b'{"label": 8, "ask": "Who?"}'),
        ],
    ]
    path = write(tmp_path / f"a.{kind}", entries)
    found = videos(path, keep=("label",), task="vqa", question_column="ask", num_frames=1)
    assert [(item.id.partition("/")[2], item.extra["label"], item.questions) for item in found] == [
        ("x/0.mp4#t=0.000", 7, ("Why?",)),
        ("x/1.left.mp4#t=0.000", 8, ("Who?",)),
        ("x/1.right.mp4#t=0.000", 8, ("Who?",)),
    ]
    if kind == "tar.gz":  # what a stream has of a sample is copied before its columns are known
        found = videos(
            path,
            keep=("label",),
            task="vqa",
            question_column="ask",
            num_frames=1,
            max_file_size=str(len(clip) * 3 // 2),
        )
        assert [item.time_seconds for item in found] == [0.0, 0.0, None]
        assert error(found[2]).startswith(
            "the videos of its sample have more bytes than --max-file-size allows"
        )


def test_names_cannot_break_out_of_the_copy(tmp_path: Path, clip: bytes, copies: Path) -> None:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a.mp4", "b.mp4\0x.mp4", "c." + "x" * 200 + ".mp4"):
            info = tarfile.TarInfo("plain.mp4")
            info.pax_headers = {"path": name}
            info.size = len(clip)
            archive.addfile(info, io.BytesIO(clip))
    (tmp_path / "a.tar.gz").write_bytes(held.getvalue())
    assert len(videos(tmp_path / "a.tar.gz", num_frames=1)) == 3


def test_videos_that_a_table_holds_are_copied_too(
    tmp_path: Path, clip: bytes, copies: Path
) -> None:
    schema = pa.schema(
        [("id", pa.string()), ("video", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    )
    held = [{"bytes": clip, "path": "v.mp4"}, {"bytes": b"no video", "path": "w.mp4"}]
    pq.write_table(
        pa.table({"id": ["a", "b"], "video": held}, schema=schema), tmp_path / "t.parquet"
    )
    found = videos(tmp_path / "t.parquet", path_column="video")
    assert [item.id for item in found] == ["a#t=0.000", "a#t=1.000", "a#t=2.000", "b"]
    assert number_of(found[2].load().arrays()[0]) == 20
    assert error(found[3]).startswith("not a video")
    gc.collect()
    assert list(copies.iterdir()) == []


@pytest.mark.parametrize("kind", ["zip", "tar.zst"])
def test_a_run_over_an_archive_goes_on_where_it_stopped(
    tmp_path: Path, clip: bytes, copies: Path, kind: str
) -> None:
    path = write(tmp_path / f"x.{kind}", [("0.mp4", clip), ("1.mp4", clip)])
    job = Job(inputs=(str(path),), media="video", output=str(tmp_path / "out.jsonl"))

    def run() -> dict[str, Any]:
        return Run(job, engine=ScriptedEngine()).start().summary

    assert run()["status"] == {"ok": 6}
    assert run()["kept"]["rows"] == 6
    other = write_video(tmp_path / "other.mp4", 15).read_bytes()
    write(path, [("0.mp4", clip), ("1.mp4", other)])
    assert run()["status"] == {"ok": 2}
    assert [row["id"] for row in read_records(tmp_path / "out.jsonl")] == [
        *(f"x.{kind}/0.mp4#t={seconds}.000" for seconds in range(3)),
        *(f"x.{kind}/1.mp4#t={seconds}.000" for seconds in range(2)),
    ]
    gc.collect()
    assert list(copies.iterdir()) == []
