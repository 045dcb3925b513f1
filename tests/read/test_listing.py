"""INPUTs to files: order, ids, what is left out, and what happens to strange names."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from pathlib import Path

import fsspec
import pytest

from tests.media import write_picture
from vlmbatch.errors import JobError
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.read.files.kinds import file_status, read_paths
from vlmbatch.read.files.source import Listed, Unreadable
from vlmbatch.read.listing import Listing


def listing_of(job: Job, stdin: bytes | None = None) -> Listing:
    return Listing(job, job, job.output_path, None if stdin is None else io.BytesIO(stdin))


def files(*inputs: object, stdin: bytes | None = None, **options: object) -> list[Listed]:
    return list(listing_of(Job(inputs=tuple(str(given) for given in inputs), **options), stdin))


def ids(*inputs: object, stdin: bytes | None = None, **options: object) -> list[str]:
    return [found.id for found in files(*inputs, stdin=stdin, **options)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.jpg",
        "a.JPEG",
        "sub/c.png",
        "sub/deep/d.webp",
        "notes.txt",
        "clip.mp4",
        ".hidden.jpg",
        ".git/e.jpg",
        "z z.gif",
    ):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "tree"


def test_a_folder_gives_its_pictures_sorted_by_name_with_relative_ids(tree: Path) -> None:
    assert ids(tree) == ["a.JPEG", "b.jpg", "sub/c.png", "sub/deep/d.webp", "z z.gif"]


def test_videos_in_a_folder_of_an_image_job_are_left_alone_and_counted(tree: Path) -> None:
    listing = listing_of(Job(inputs=(str(tree),)))
    for _ in range(2):
        assert len(list(listing)) == 5
        assert listing.counts.other_media == 1


def test_a_video_job_counts_the_pictures(tree: Path) -> None:
    listing = listing_of(Job(inputs=(str(tree),), media="video"))
    assert [found.id for found in listing] == ["clip.mp4"]
    assert listing.counts.other_media == 5


def test_listing_is_lazy(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = listing_of(Job(inputs=(str(tree),)))
    scanned = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(str(path)) or scandir(path))
    assert next(iter(listing)).id == "a.JPEG"
    assert scanned == [str(tree)]


def test_a_file_is_taken_whatever_its_extension(tree: Path) -> None:
    (tree / "notes.dat").touch()
    assert ids(tree / "notes.dat") == ["notes.dat"]


def test_a_file_of_the_other_media_is_refused(tree: Path) -> None:
    with pytest.raises(JobError, match=r"clip\.mp4 is a video: use `vlmbatch video`"):
        files(tree / "clip.mp4")
    with pytest.raises(JobError, match="is a picture"):
        files(tree / "b.jpg", media="video")


@pytest.mark.parametrize("name", ["missing.jpg", "missing-*.jpg", "missing/*.jpg"])
def test_an_input_that_is_not_there_is_named(tree: Path, name: str) -> None:
    with pytest.raises(JobError, match=name.replace("*", r"\*")):
        files(tree / name)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["b.jpg"]),
        ("[ab].*", ["a.JPEG", "b.jpg"]),
        ("?.jpg", ["b.jpg"]),
        ("**/*.png", ["sub/c.png"]),
        ("**", ["a.JPEG", "b.jpg", "sub/c.png", "sub/deep/d.webp", "z z.gif"]),
        ("*.dat", ["notes.dat"]),
        ("**/deep/*", ["sub/deep/d.webp"]),
        ("s*", ["sub/c.png", "sub/deep/d.webp"]),
        ("sub/*/d.webp", ["deep/d.webp"]),
        (".h*.jpg", [".hidden.jpg"]),
    ],
)
def test_a_glob_gives_ids_below_its_fixed_folder(
    tree: Path, pattern: str, found: list[str]
) -> None:
    (tree / "notes.dat").touch()
    assert ids(tree / pattern) == found


def test_a_glob_is_listed_once_and_anew_each_further_time(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or scandir(path))
    listing = listing_of(Job(inputs=(str(tree / "**" / "*.png"),)))
    assert [found.id for found in listing] == ["sub/c.png"]
    assert listed == ["tree", "sub", "deep"]
    (tree / "sub" / "deep" / "new.png").touch()
    assert [found.id for found in listing] == ["sub/c.png", "sub/deep/new.png"]
    assert listed == ["tree", "sub", "deep"] * 2


def test_a_relative_glob_and_the_current_folder(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    assert [(found.id, found.source) for found in files("*.jpg")] == [("b.jpg", "b.jpg")]
    assert ids(".")[0] == "a.JPEG"


def test_a_file_whose_name_has_wildcards_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].jpg").touch()
    assert ids(tmp_path / "a[1].jpg") == ["a[1].jpg"]


def test_links_to_files_and_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    write_picture(tmp_path / "real" / "a.png")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "in" / "file.png").symlink_to(tmp_path / "real" / "a.png")
    (tmp_path / "in" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "in" / "self.png").symlink_to("self.png")
    assert ids(tmp_path / "in") == ["broken.png", "file.png", "folder/a.png", "self.png"]


def test_a_link_to_a_file_is_a_row_of_its_own_however_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_picture(tmp_path / "in" / "b.png")
    write_picture(tmp_path / "more" / "d.png")
    (tmp_path / "in" / "a.png").symlink_to("b.png")
    (tmp_path / "more" / "c.png").symlink_to(tmp_path / "in" / "b.png")
    (tmp_path / "again").symlink_to("in")
    (tmp_path / "list.txt").write_text("in/a.png\nin/b.png\nagain/a.png\n")
    monkeypatch.chdir(tmp_path)
    assert (
        ids("in")
        == ids("in/*.png")
        == ids("in/a.png", "in/b.png")
        == ids("in", "again", "again/b.png")
        == ["a.png", "b.png"]
    )
    assert (
        ids("-", stdin=b"in/a.png\nin/b.png\nagain/b.png\n")
        == ids("list.txt")
        == ["in/a.png", "in/b.png"]
    )
    assert ids("in", "more") == ["a.png", "b.png", "c.png", "d.png"]


def test_a_link_hides_no_folder_and_gives_its_files_no_other_names(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "sub" / "deep" / "a.png")
    write_picture(tmp_path / "in" / ".store" / "b.png")
    write_picture(tmp_path / "out" / "c.png")
    (tmp_path / "in" / "a link").symlink_to("sub")
    (tmp_path / "in" / "shown").symlink_to(".store")
    (tmp_path / "in" / "sub" / "outside").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "back").symlink_to(tmp_path / "in" / "sub" / "deep")
    found = ["shown/b.png", "sub/deep/a.png", "sub/outside/c.png"]
    assert ids(tmp_path / "in") == ids(f"{tmp_path}/in/**/*.png") == found
    assert ids(f"{tmp_path}/in/a*/deep/*.png") == ["a link/deep/a.png"]


def test_a_glob_takes_every_path_that_matches_whatever_links_lead_there_too(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "b" / "c" / "x.png")
    write_picture(tmp_path / "in" / "b" / "c" / "d" / "x.png")
    (tmp_path / "in" / "a").symlink_to(Path("b") / "c")
    (tmp_path / "in" / "b" / "c" / "loop").symlink_to(tmp_path / "in")
    assert ids(f"{tmp_path}/in/*/*/x.png") == ["a/d/x.png", "b/c/x.png"]
    assert ids(f"{tmp_path}/in/*/x.png") == ["a/x.png"]
    assert ids(tmp_path / "in") == ["b/c/d/x.png", "b/c/x.png"]
    with pytest.raises(JobError, match="no file matches"):
        ids(f"{tmp_path}/in/*/*/*/*/*/x.png")  # which would go through the loop


def test_a_folder_behind_two_links_is_listed_once(tmp_path: Path) -> None:
    write_picture(tmp_path / "out" / "c.png")
    (tmp_path / "in").mkdir()
    for name in ("first", "second"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "out")
    assert ids(tmp_path / "in") == ids(f"{tmp_path}/in/**/*.png") == ["first/c.png"]
    assert ids(f"{tmp_path}/in/*/*.png") == ["first/c.png", "second/c.png"]


def test_pipes_in_folders_are_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert ids(tmp_path) == []


def test_names_with_spaces_newlines_and_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    for name in (b"a b.png", b"new\nline.png", b"caf\xe9.png", "größe.png".encode()):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    found = files(tmp_path)
    assert [one.id for one in found] == ["a b.png", "caf\\xe9.png", "größe.png", "new\nline.png"]
    assert all(
        one.id.encode() and one.source.encode() and os.path.exists(one.content.as_file().path)
        for one in found
    )


def test_the_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png")
    before = files(path)[0].fingerprint
    os.utime(path, ns=(1, 1))
    assert files(path)[0].fingerprint not in ("", before)


def test_include_and_exclude_match_ids_base_names_and_folders(tree: Path) -> None:
    assert ids(tree, include=("*.png",)) == ["sub/c.png"]
    assert ids(tree, include=("sub/**",)) == ["sub/c.png", "sub/deep/d.webp"]
    assert ids(tree, include=("sub/", "b.jpg"), exclude=("**/deep/*",)) == ["b.jpg", "sub/c.png"]
    listing = listing_of(Job(inputs=(str(tree),), exclude=("sub",)))
    assert [found.id for found in listing] == ["a.JPEG", "b.jpg", "z z.gif"]
    assert listing.counts.filtered == 2


def test_a_file_given_twice_is_taken_once(tree: Path) -> None:
    listing = listing_of(Job(inputs=(str(tree), str(tree / "b.jpg"), str(tree / "sub"))))
    assert len(list(listing)) == 5
    assert listing.counts.duplicates == 3


def test_other_files_with_the_same_id_are_told_apart(tmp_path: Path) -> None:
    for folder in ("one", "two", "x/two"):
        write_picture(tmp_path / folder / "a.png")
    assert ids(tmp_path / "one", tmp_path / "two", tmp_path / "x" / "two") == [
        "a.png",
        "two/a.png",
        "two/a.png#2",
    ]
    assert ids(*(tmp_path / folder / "a.png" for folder in ("one", "two"))) == [
        "a.png",
        "two/a.png",
    ]


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\0"])
def test_paths_on_stdin(tree: Path, monkeypatch: pytest.MonkeyPatch, separator: bytes) -> None:
    monkeypatch.chdir(tree)
    names = [
        b"./b.jpg",
        b"sub/c.png",
        b"missing.jpg",
        b"",
        b"caf\xe9.jpg",
        b"b.jpg",
        os.fsencode(tree / "z z.gif"),
    ]
    assert ids("-", stdin=separator.join(names)) == [
        "b.jpg",
        "sub/c.png",
        "missing.jpg",
        "caf\\xe9.jpg",
        (tree / "z z.gif").as_posix(),
    ]


def test_names_with_newlines_come_through_nul_separated_stdin() -> None:
    assert list(read_paths(io.BytesIO(b"a\nb.jpg\0c.jpg\0"))) == ["a\nb.jpg", "c.jpg"]
    assert list(read_paths(io.BytesIO(b""))) == []


def test_a_byte_order_mark_is_no_part_of_the_first_path() -> None:
    assert list(read_paths(io.BytesIO("\ufeffa.jpg\r\nb.jpg\r\n".encode()))) == ["a.jpg", "b.jpg"]
    assert list(read_paths(io.BytesIO("\ufeff".encode()))) == []


def test_stdin_longer_than_a_block() -> None:
    names = [f"{number:06}.jpg" for number in range(20_000)]
    assert list(read_paths(io.BytesIO("\n".join(names).encode()))) == names


def test_a_path_of_the_other_media_on_stdin_is_an_error_of_that_item(tree: Path) -> None:
    (found,) = files("-", stdin=str(tree / "clip.mp4").encode())
    assert isinstance(found.content, Unreadable)
    assert "use `vlmbatch video`" in found.content.reason


def test_stdin_can_be_given_once() -> None:
    with pytest.raises(JobError, match="once"):
        files("-", "-", stdin=b"")


def test_counting_looks_at_no_file_that_nobody_would_open(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tree / "pipe.pdf").symlink_to(tmp_path / "pipe")
    job = Job(inputs=(str(tree),))
    looked_at = []

    def watched(path: str) -> tuple[str, str | None]:
        looked_at.append(os.path.basename(path))
        return file_status(path)

    monkeypatch.setattr("vlmbatch.read.listing.file_status", watched)
    counted = list(open_reader(job, names_only=True))
    assert looked_at == ["pipe.pdf"]
    assert [item.id for item in counted] == [item.id for item in open_reader(job)]
    assert len(looked_at) == 1 + len(counted)


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


def test_the_first_path_of_stdin_is_given_as_soon_as_its_line_is_there(tree: Path) -> None:
    class Pipe(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            line = self.readline()
            return line or pytest.fail("read ahead")

    job = Job(inputs=("-",))
    lines = b"".join(os.fsencode(tree / name) + b"\n" for name in ("b.jpg", "a.JPEG"))
    reader = iter(open_reader(job, stdin=Pipe(lines)))
    assert next(reader).id.endswith("b.jpg")
    assert next(reader).id.endswith("a.JPEG")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
@pytest.mark.parametrize("size", [1, 3, 1 << 16])
def test_a_byte_order_mark_on_stdin_says_the_encoding(encoding: str, size: int) -> None:
    class Slow(io.BytesIO):
        def read1(self, ask: int | None = -1) -> bytes:
            return self.read(size)

    data = "größe.png\r\nb.png\r\n".encode(encoding)
    assert list(read_paths(Slow(data))) == ["größe.png", "b.png"]


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
