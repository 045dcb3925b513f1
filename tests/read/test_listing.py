"""INPUTs to files: order, ids, what is left out, and what happens to strange names."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from tests.media import write_picture
from vlmbatch.errors import JobError
from vlmbatch.job import Job
from vlmbatch.read import listing, open_reader
from vlmbatch.read.files.kinds import file_status
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


def test_pictures_without_an_extension_in_a_folder_are_left_alone_and_counted(tree: Path) -> None:
    write_picture(tree / "b.png").rename(tree / "scan")
    (tree / "README").write_text("no picture")
    os.mkfifo(tree / "pipe")
    listing = listing_of(Job(inputs=(str(tree),)))
    for _ in range(2):
        assert "scan" not in [found.id for found in listing]
        assert listing.counts.without_suffix == 1
    assert ids(tree / "scan") == ["scan"]


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

    monkeypatch.setattr(listing, "file_status", watched)
    counted = list(open_reader(job, names_only=True))
    assert looked_at == ["pipe.pdf"]
    assert [item.id for item in counted] == [item.id for item in open_reader(job)]
    assert len(looked_at) == 1 + len(counted)
