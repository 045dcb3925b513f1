"""Archives: what is an Item, what is refused, damage, samples of WebDataset, and memory."""

from __future__ import annotations

import bz2
import gc
import gzip
import io
import json
import lzma
import os
import random
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.bundles import tar_bytes
from tests.media import write_picture
from tests.read.loading import error, seed_of
from vlmbatch.core import Item
from vlmbatch.errors import JobError
from vlmbatch.job import Job
from vlmbatch.read import Reader, open_reader

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": lambda data: bz2.compress(
        data, 1
    ),  # blocks of 100,000 bytes: one that is cut is lost whole
    "tar.xz": lzma.compress,
    "tar.zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}
"""What packs a tar, by suffix."""


@pytest.fixture
def pictures(tmp_path: Path) -> list[bytes]:
    return [
        write_picture(tmp_path / f"{number}.png", seed=number).read_bytes() for number in range(4)
    ]


def open_archive(path: Path, **options: Any) -> Reader:
    return open_reader(Job(inputs=(str(path),), **options))


def items(path: Path, **options: Any) -> list[Item]:
    return list(open_archive(path, **options))


def write_zip(path: Path, entries: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def write_tar(path: Path, entries: list[tuple[str, bytes]]) -> Path:
    path.write_bytes(PACKERS[path.name.partition(".")[2]](tar_bytes(entries)))
    return path


ODD = [
    ("sub/", b""),
    ("notes.md", b"x"),
    (".hidden.png", b"x"),
    ("__MACOSX/._0.png", b"x"),
    ("clip.mp4", b"x"),
    ("../up.png", b"x"),
    ("/abs.png", b"x"),
    ("empty.png", b""),
]


@pytest.mark.parametrize("kind", ["zip", *PACKERS])
def test_pictures_of_an_archive_have_ids_below_it(
    tmp_path: Path, pictures: list[bytes], kind: str
) -> None:
    path = (write_zip if kind == "zip" else write_tar)(
        tmp_path / f"a.{kind}", [("sub/é 0.png", pictures[0]), ("1.PNG", pictures[1]), *ODD[1:]]
    )
    reader = open_archive(path)
    found = list(reader)
    assert [item.id.removeprefix(f"a.{kind}/") for item in found] == [
        "sub/é 0.png",
        "1.PNG",
        "../up.png",
        "abs.png",
        "empty.png",
    ]
    assert [item.source for item in found[:1]] == [f"{path}/sub/é 0.png"]
    assert [seed_of(item) for item in found[:2]] == [0, 1]
    assert error(found[2]) == "the entry's name leads out of the archive: ../up.png"
    assert "leads out" in error(found[3])
    assert error(found[4]) == "empty file"
    assert reader.counts.other_media == 1
    assert all(item.fingerprint for item in found)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_fingerprints_follow_the_content(tmp_path: Path, pictures: list[bytes], kind: str) -> None:
    write = write_zip if kind == "zip" else write_tar
    before = items(write(tmp_path / f"a.{kind}", [("a.png", pictures[0]), ("b.png", pictures[1])]))
    after = items(write(tmp_path / f"a.{kind}", [("a.png", pictures[2]), ("b.png", pictures[1])]))
    assert before[0].fingerprint != after[0].fingerprint
    if kind != "tar":  # what stands where in a tar is all that is known without reading it
        assert before[1].fingerprint == after[1].fingerprint


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_names_that_stand_in_an_archive_twice_are_two_items(
    tmp_path: Path, pictures: list[bytes], kind: str
) -> None:
    entries = [("a.png", pictures[0]), ("a.png", pictures[1])]
    if kind == "zip":
        with pytest.warns(UserWarning, match="Duplicate name"):
            path = write_zip(tmp_path / "a.zip", entries)
    else:
        path = write_tar(tmp_path / "a.tar.gz", entries)
    found = items(path)
    assert len({item.id for item in found}) == 2
    assert [seed_of(item) for item in found] == [0, 1]


def test_links_and_other_things_in_a_tar_are_errors(tmp_path: Path, pictures: list[bytes]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert [error(item) for item in items(tmp_path / "a.tar")] == [
        "a link that leads out of the archive: /etc/passwd",
        "a link that leads out of the archive: /etc/passwd",
        "not a regular file",
    ]


def test_encrypted_entries_and_links_of_a_zip_are_errors(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("secret.png", pictures[0])
        archive.writestr(link, "/etc/passwd")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    assert [error(item) for item in items(tmp_path / "a.zip")] == [
        "encrypted",
        "a link that leads out of the archive: /etc/passwd",
    ]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_entries_beyond_the_size_limit_are_errors_and_the_next_is_read(
    tmp_path: Path, pictures: list[bytes], kind: str
) -> None:
    path = (write_zip if kind == "zip" else write_tar)(
        tmp_path / f"a.{kind}", [("big.png", os.urandom(50_000)), ("1.png", pictures[1])]
    )
    found = items(path, max_file_size="20KB")
    assert error(found[0]) == "50,000 bytes are more than --max-file-size allows (20,000)"
    assert seed_of(found[1]) == 1


def test_a_bomb_in_a_zip_is_an_error(tmp_path: Path, pictures: list[bytes]) -> None:
    found = items(
        write_zip(tmp_path / "a.zip", [("bomb.png", bytes(30_000_000)), ("1.png", pictures[1])])
    )
    assert "unpack to 30,000,000, more than --max-compression-ratio 200" in error(found[0])
    assert seed_of(found[1]) == 1


@pytest.mark.parametrize("kind", ["tar.gz", "tar.zst", "tar.xz"])
def test_a_bomb_in_a_compressed_tar_ends_it(
    tmp_path: Path, pictures: list[bytes], kind: str
) -> None:
    path = write_tar(
        tmp_path / f"a.{kind}",
        [("0.png", pictures[0]), ("bomb.bin", bytes(60_000_000)), ("1.png", pictures[1])],
    )
    found = items(path)
    assert [item.id for item in found] == [f"a.{kind}/0.png", f"a.{kind}"]
    assert "more than --max-compression-ratio 200 times" in error(found[1])
    assert len(items(path, max_compression_ratio=1e9)) == 2


@pytest.mark.parametrize("kind", [*PACKERS])
def test_what_stands_before_the_cut_of_a_tar_is_done(tmp_path: Path, kind: str) -> None:
    noise = random.Random(0)
    entries = [(f"{number:02}.png", noise.randbytes(40_000)) for number in range(20)]
    path = write_tar(tmp_path / f"a.{kind}", entries)
    path.write_bytes(path.read_bytes()[:-120_000])
    found = items(path)
    ids = [item.id for item in found]
    assert ids[-1] == f"a.{kind}"
    assert ids[:-1] == [f"a.{kind}/{number:02}.png" for number in range(len(ids) - 1)]
    assert len(ids) - 1 >= 12
    assert error(found[-1]).startswith("damaged after")


def test_a_damaged_header_does_not_end_a_tar_silently(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    data = bytearray(tar_bytes([("0.png", pictures[0]), ("1.png", pictures[1])]))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        start = archive.getmembers()[1].offset
    data[start : start + 512] = b"\x55" * 512
    (tmp_path / "a.tar").write_bytes(data)
    found = items(tmp_path / "a.tar")
    assert [item.id for item in found] == ["a.tar/0.png", "a.tar"]
    assert error(found[1]).startswith("damaged after 1 entries: no tar header")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.zip", b"no zip"),
        ("a.tar", b"no tar" * 200),
        ("a.tar.gz", b"\x1f\x8bxx"),
        ("a.tar", b""),
        ("a.zip", b""),
    ],
)
def test_what_is_no_archive_is_one_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    (item,) = items(tmp_path / name)
    assert item.id == name
    assert error(item)


def test_a_damaged_entry_of_a_zip_is_its_own_error(tmp_path: Path, pictures: list[bytes]) -> None:
    path = write_zip(tmp_path / "a.zip", [("0.png", pictures[0]), ("1.png", pictures[1])])
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)
    found = items(path)
    assert error(found[0]).startswith("damaged entry")
    assert seed_of(found[1]) == 1


def test_archives_are_opened_where_they_are_named(tmp_path: Path, pictures: list[bytes]) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    write_zip(tmp_path / "in/a.zip", [("0.png", pictures[0])])
    write_tar(tmp_path / "in/deep/b.tar", [("1.png", pictures[1])])
    assert items(tmp_path / "in") == []
    assert [item.id for item in items(tmp_path / "in/*")] == ["a.zip/0.png"]
    assert [item.id for item in items(tmp_path / "in/**/*.tar")] == ["deep/b.tar/1.png"]
    stdin = io.BytesIO(f"{tmp_path}/in/a.zip\n".encode())
    assert [item.id for item in open_reader(Job(inputs=("-",)), stdin=stdin)] == [
        f"{tmp_path}/in/a.zip/0.png"
    ]


def test_include_and_exclude_look_at_names_inside(tmp_path: Path, pictures: list[bytes]) -> None:
    path = write_zip(
        tmp_path / "a.zip",
        [("s/0.png", pictures[0]), ("t/1.png", pictures[1]), ("s/2.png", pictures[2])],
    )
    assert [item.id for item in items(path, include=("s/*",), exclude=("2.*",))] == [
        "a.zip/s/0.png"
    ]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_sidecars_of_a_sample_give_its_columns_and_question(
    tmp_path: Path, pictures: list[bytes], kind: str
) -> None:
    entries = [
        *[
            ("x/0.json", json.dumps({"label": 7, "ask": "Why?"}).encode()),
            ("x/0.png", pictures[0]),
            ("x/0.txt", b"seven\n"),
        ],
        *[
            ("x/1.left.png", pictures[1]),
            ("x/1.right.png", pictures[2]),
            ("x/1.json", b'{"label": 8, "ask": ["Who?"]}'),
        ],
        *[("x/2.json", b"{bad"), ("x/2.png", pictures[3])],
        *[("x/3.png", pictures[3])],
    ]
    path = (write_zip if kind == "zip" else write_tar)(tmp_path / f"a.{kind}", entries)
    found = items(path, keep=("label", "txt=caption"), task="vqa", question_column="ask")
    assert [item.id.partition("/")[2] for item in found] == [
        "x/0.png",
        "x/1.left.png",
        "x/1.right.png",
        "x/2.png",
        "x/3.png",
    ]
    assert [dict(item.extra) for item in found[:3]] == [
        {"label": 7, "caption": "seven"},
        *[{"label": 8, "caption": None}] * 2,
    ]
    assert [item.questions for item in found[:3]] == [("Why?",), ("Who?",), ("Who?",)]
    assert [seed_of(item) for item in found[:3]] == [0, 1, 2]
    assert error(found[3]) == "2.json beside it: not JSON"
    assert error(found[4]) == "it has no question, and the job has none"


def test_counting_skips_the_bytes_of_a_stream(tmp_path: Path, pictures: list[bytes]) -> None:
    path = write_tar(
        tmp_path / "a.tar.gz", [(f"{number}.png", data) for number, data in enumerate(pictures)]
    )
    assert [item.held_bytes for item in open_reader(Job(inputs=(str(path),)), names_only=True)] == [
        0
    ] * 4
    assert [item.held_bytes for item in items(path)] == [len(data) for data in pictures]


def test_shuffling_a_stream_is_refused(tmp_path: Path, pictures: list[bytes]) -> None:
    with pytest.raises(JobError, match="shuffle would hold"):
        items(write_tar(tmp_path / "a.tar.gz", [("0.png", pictures[0])]), shuffle=True)
    assert len(items(write_tar(tmp_path / "a.tar", [("0.png", pictures[0])]), shuffle=True)) == 1


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.zst"])
def test_memory_does_not_grow_with_a_tar(tmp_path: Path, kind: str) -> None:
    noise = random.Random(0).randbytes(20_000)
    path = write_tar(tmp_path / f"a.{kind}", [(f"{number}.png", noise) for number in range(600)])
    reader = iter(open_archive(path))
    next(reader)
    gc.collect()
    tracemalloc.start()
    try:
        assert sum(1 for _ in reader) == 599
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
