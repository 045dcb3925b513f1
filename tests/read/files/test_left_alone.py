"""Things in folders that are left alone and counted, and pipes that nobody waits for."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import fsspec
import pytest

from tests.media import write_picture
from tests.read.test_listing import files, ids, listing_of
from vlmbatch.errors import JobError
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.read.files.source import Unreadable

SYSTEM_FOLDERS = [
    "@eaDir",
    ".@__thumb",
    ".thumbnails",
    "$RECYCLE.BIN",
    "lost+found",
    ".Trash-1000",
    "sub/@eaDir",
]


def test_folders_of_systems_are_left_alone_and_counted(tmp_path: Path) -> None:
    for name in SYSTEM_FOLDERS:
        write_picture(tmp_path / "in" / name / "deep" / "thumb.jpg")
    write_picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / ".Trash-file.png").touch()
    listing = listing_of(Job(inputs=(str(tmp_path / "in"),)))
    for _ in range(2):
        assert [found.id for found in listing] == ["a.png"]
        assert listing.counts.system_folders == len(SYSTEM_FOLDERS)
    for pattern, expected in (("in/**/*.*", ["a.png"]), ("i*", ["in/a.png"])):
        listing = listing_of(Job(inputs=(str(tmp_path / pattern),)))
        for _ in range(2):
            assert [found.id for found in listing] == expected
            assert listing.counts.system_folders == len(SYSTEM_FOLDERS)
    shutil.rmtree(tmp_path / "in" / "sub")
    (tmp_path / "in" / "a.png").unlink()
    assert ids(tmp_path / "in") == []
    with pytest.raises(JobError, match="no file matches"):
        ids(tmp_path / "in" / "*.jpg")


def test_a_folder_of_a_system_that_is_named_is_walked(tmp_path: Path) -> None:
    write_picture(tmp_path / "@eaDir" / "a.jpg")
    assert ids(tmp_path / "@eaDir") == ["a.jpg"]
    assert ids(tmp_path / "@eaDir" / "*.jpg") == ["a.jpg"]
    assert ids(f"{tmp_path}/*/@eaDir/*.jpg".replace(str(tmp_path), str(tmp_path.parent))) != []


def test_folders_of_systems_in_stores_and_archives_are_left_alone(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    picture = write_picture(tmp_path / "a.png").read_bytes()
    names = ["a.png", "@eaDir/b.png", "s/$RECYCLE.BIN/c.png", "s/$RECYCLE.BIN/d.png"]
    for name in names:
        store.pipe(f"/systems/{name}", picture)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in names:
            archive.writestr(name, picture)
    for given, expected in (("memory://systems", "a.png"), (tmp_path / "a.zip", "a.zip/a.png")):
        listing = listing_of(Job(inputs=(str(given),)))
        assert [found.id for found in listing] == [expected]
        assert listing.counts.system_folders == 2
    store.rm("/systems", recursive=True)


@pytest.mark.parametrize("name", ["app.ts", "module.MTS"])
def test_text_with_the_extension_of_a_video_is_no_video(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / name
    path.write_text("export const größe = 1;\n" * 100)
    for media in ("video", "image"):
        listing = listing_of(Job(inputs=(str(tmp_path / "in"),), media=media))
        assert list(listing) == []
        assert (listing.counts.text_files, listing.counts.other_media) == (1, 0)
        with pytest.raises(JobError, match=rf"{name} is (text, not a video|a video)"):
            files(path, media=media)
    (found,) = files("-", stdin=str(path).encode(), media="video")
    assert isinstance(found.content, Unreadable)
    assert found.content.reason == "it is text, not a video"
    (tmp_path / "list.txt").write_text(f"in/{name}\n")
    (found,) = files(tmp_path / "list.txt", media="video")
    assert isinstance(found.content, Unreadable)
    path.write_bytes(b"\x47\x40\x00\x10" + bytes(184))
    assert ids(tmp_path / "in", media="video") == [name]


@pytest.mark.parametrize("name", ["pipe", "pipe.ts"])
@pytest.mark.parametrize("names_only", [False, True])
def test_nobody_waits_for_the_other_end_of_a_pipe(
    tmp_path: Path, name: str, names_only: bool
) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "in" / name).symlink_to(tmp_path / "fifo")
    (tmp_path / "list.txt").write_text(f"in/{name}\n")
    for given in (tmp_path / "in", tmp_path / "in" / name, tmp_path / "list.txt"):
        if given.suffix != ".ts":
            assert len(list(open_reader(Job(inputs=(str(given),)), names_only=names_only))) <= 1
