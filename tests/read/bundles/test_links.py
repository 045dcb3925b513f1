"""Links inside archives are the files that they lead to."""

from __future__ import annotations

import gc
import io
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.media import number_of, picture, write_picture, write_video
from tests.read.bundles.test_archives import PACKERS, error, items, seed_of, write_zip
from tests.read.video.test_videos_in_archives import videos
from vlmbatch.core import Item

Entry = tuple[str, bytes | str]
"""A name, and bytes or the target of a link (``=target`` for a hard one)."""


def write_links(path: Path, entries: list[Entry]) -> Path:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type = tarfile.LNKTYPE if content.startswith("=") else tarfile.SYMTYPE
                info.linkname = content.removeprefix("=")
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    path.write_bytes(PACKERS[path.name.partition(".")[2]](held.getvalue()))
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> list[bytes]:
    return [write_picture(tmp_path / f"{seed}.png", seed=seed).read_bytes() for seed in range(3)]


def names(found: list[Item]) -> dict[str, int | str]:
    """The number of the picture of each entry, or its error."""
    shown: dict[str, int | str] = {}
    for item in found:
        name = item.id.partition("/")[2]
        try:
            shown[name] = seed_of(item)
        except Exception:
            shown[name] = error(item)
    return shown


@pytest.mark.parametrize("kind", PACKERS)
def test_links_to_earlier_entries_are_those_entries(
    tmp_path: Path, pictures: list[bytes], kind: str
) -> None:
    entries: list[Entry] = [
        ("s/a.png", pictures[0]),
        ("s/b.png", pictures[1]),
        ("s/soft.png", "b.png"),
        ("t/up.png", "../s/a.png"),
        ("hard.png", "=s/b.png"),
        ("./dotted.png", "=./s/a.png"),
        ("chain.png", "t/up.png"),
        ("folder", "s"),
        ("through.png", "folder/b.png"),
        ("c.png", pictures[2]),
        ("late.png", "=c.png"),
    ]
    path = write_links(tmp_path / f"a.{kind}", entries)
    found = items(path)
    assert names(found) == {
        "s/a.png": 0,
        "s/b.png": 1,
        "s/soft.png": 1,
        "t/up.png": 0,
        "hard.png": 1,
        "dotted.png": 0,
        "chain.png": 0,
        "through.png": 1,
        "c.png": 2,
        "late.png": 2,
    }
    fingerprints = {item.id.partition("/")[2]: item.fingerprint for item in found}
    assert fingerprints["late.png"] == fingerprints["c.png"] != fingerprints["hard.png"]


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_links_that_lead_nowhere_are_errors(
    tmp_path: Path, pictures: list[bytes], kind: str
) -> None:
    entries: list[Entry] = [
        ("out.png", "../../etc/passwd"),
        ("abs.png", "/etc/passwd"),
        ("hard.png", "=/etc/passwd"),
        ("gone.png", "nowhere.png"),
        ("self.png", "self.png"),
        ("x.png", "y.png"),
        ("y.png", "x.png"),
        ("s/a.png", pictures[0]),
        ("folder.png", "s"),
    ]
    found = names(items(write_links(tmp_path / f"a.{kind}", entries)))
    assert found.pop("s/a.png") == 0
    assert all(isinstance(reason, str) and "link" in reason for reason in found.values())
    assert found["self.png"] == "a link that leads back to itself" or kind != "tar"


def test_a_link_to_a_later_entry_is_followed_where_the_tar_can_be_sought_in(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    entries: list[Entry] = [("first.png", "=late.png"), ("late.png", pictures[1])]
    assert names(items(write_links(tmp_path / "a.tar", entries))) == {"first.png": 1, "late.png": 1}
    found = names(items(write_links(tmp_path / "a.tar.gz", entries)))
    assert found["late.png"] == 1
    assert "no file of the archive has this name and stands before it" in str(found["first.png"])


def test_of_entries_with_one_name_the_last_before_the_link_counts(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    entries: list[Entry] = [
        ("a.png", pictures[0]),
        ("a.png", pictures[1]),
        ("l.png", "=a.png"),
        ("a.png", pictures[2]),
    ]
    for kind in ("tar", "tar.gz"):
        found = items(write_links(tmp_path / f"a.{kind}", entries))
        assert [seed_of(item) for item in found] == [0, 1, 1, 2]


def test_limits_hold_behind_links(tmp_path: Path, pictures: list[bytes]) -> None:
    entries: list[Entry] = [("big.dat", bytes(50_000)), ("l.png", "=big.dat")]
    for kind in ("tar", "tar.gz"):
        (item,) = items(write_links(tmp_path / f"a.{kind}", entries), max_file_size="20KB")
        assert error(item) == "50,000 bytes are more than --max-file-size allows (20,000)"


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.zst"])
def test_links_to_videos_and_no_copy_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))
    clip = write_video(tmp_path / "clip.mp4", 25).read_bytes()
    found = videos(write_links(tmp_path / f"a.{kind}", [("a.mp4", clip), ("b.mp4", "=a.mp4")]))
    assert [number_of(item.load().arrays()[0]) for item in found] == [0, 10, 20] * 2
    del found
    gc.collect()
    assert list((tmp_path / "copies").iterdir()) == []


def test_symbolic_links_in_a_zip_are_followed_inside_it(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    path = write_zip(tmp_path / "a.zip", [("s/a.png", pictures[1])])
    with zipfile.ZipFile(path, "a") as archive:
        for name, target in (
            ("l.png", "s/a.png"),
            ("s/up.png", "../l.png"),
            ("gone.png", "b.png"),
            ("loop.png", "loop.png"),
        ):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, target)
    found = names(items(path))
    assert [found["s/a.png"], found["l.png"], found["s/up.png"]] == [1, 1, 1]
    assert found["gone.png"] == "a link to b.png, which is no file of the archive"
    assert found["loop.png"] == "a link that leads back to itself"


def test_a_column_of_a_sample_may_be_a_link(tmp_path: Path, pictures: list[bytes]) -> None:
    entries: list[Entry] = [
        ("common.json", b'{"label": 7}'),
        ("0.png", pictures[0]),
        ("0.json", "=common.json"),
    ]
    for kind in ("tar", "tar.gz"):
        (item,) = items(write_links(tmp_path / f"a.{kind}", entries), keep=("label",))
        assert item.extra == {"label": 7}
        np.testing.assert_array_equal(item.load().frames[0], picture(seed=0))
