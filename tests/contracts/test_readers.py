"""What every reader keeps to, whatever it reads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import BUNDLES, MANIFESTS, contain
from tests.media import write_picture, write_video
from vlmbatch.errors import ItemError, JobError
from vlmbatch.job import Job
from vlmbatch.read import READERS, Reader, open_reader
from vlmbatch.run.order import InputOrder
from vlmbatch.sample import make_sampler

KINDS = [
    "image",
    "frame",
    "clip",
    "window",
    *BUNDLES,
    "frame in zip",
    "clip in tar",
    "frame in tar.gz",
]
"""Kinds of Items, and how to ask for them; then pictures in each kind of manifest and archive, and
videos in archives.
"""


def open_job(job: Job) -> Reader:
    return open_reader(job, sampler=make_sampler(job) if job.media == "video" else None)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_job(kind: str) -> Callable[..., Job]:
    def make(*inputs: Path, **options: object) -> Job:
        what, _, bundle = (
            kind.partition(" in ")
            if " in " in kind
            else ("", "", kind)
            if kind in BUNDLES
            else (kind, "", "")
        )
        if bundle:
            inputs = tuple(contain(given, bundle) if given.exists() else given for given in inputs)
        how = (
            {"media": "video", "per": what}
            if what in ("frame", "clip", "window")
            else {"media": "image"}
        )
        return Job(inputs=tuple(map(str, inputs)), **how, **options)

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    for number, name in enumerate(("a", "sub/b", "sub/c d")):
        write_picture(root / f"{name}.png", seed=number)
        write_video(root / f"{name}.mp4", 15)
    (root / "bad.png").write_bytes(b"no picture")
    (root / "bad.mp4").write_bytes(b"no video")
    for suffix in ("png", "mp4"):
        (root / f"gone.{suffix}").symlink_to(root / "nowhere")
        write = write_picture if suffix == "png" else write_video
        write(root / f"plain.{suffix}").rename(
            os.fsdecode(os.fsencode(root) + b"/caf\xe9." + suffix.encode())
        )
    return root


class TestReader:
    """Facts about all of them."""

    def test_ids_are_stable_unique_and_valid_text(
        self, folder: Path, make_job: Callable[..., Job]
    ) -> None:
        reader = open_job(make_job(folder))
        first, second = [item.id for item in reader], [item.id for item in reader]
        assert first == second
        assert len(set(first)) == len(first) >= 6
        assert json.loads(json.dumps(first)) == [item_id.encode().decode() for item_id in first]

    def test_places_ascend_and_count_from_zero(
        self, folder: Path, make_job: Callable[..., Job]
    ) -> None:
        places = [item.place for item in open_job(make_job(folder))]
        assert places == sorted(set(places))
        assert all(isinstance(source, int) and number >= 0 for source, number in places)
        assert places[0] == (0, 0)
        order = InputOrder()
        for place in places:
            order.add(place)
        assert [order.index(place) for place in places] == list(range(len(places)))

    def test_load_gives_rgb_or_raises_an_item_error(
        self, folder: Path, make_job: Callable[..., Job]
    ) -> None:
        failed = 0
        for item in open_job(make_job(folder)):
            try:
                pixels = item.load()
            except ItemError as exc:
                failed += len(str(exc).splitlines()) == 1
                continue
            frames = [np.asarray(frame) for frame in pixels.frames]
            assert all(
                frame.dtype == np.uint8
                and frame.ndim == 3
                and frame.shape[2] == 3
                and frame.flags.c_contiguous
                for frame in frames
            )
            assert len(pixels.times_seconds) == (len(pixels.frames) if item.media == "clip" else 0)
            assert item.fingerprint
        assert failed == 2

    def test_load_can_be_called_again_and_on_other_threads(
        self, folder: Path, make_job: Callable[..., Job]
    ) -> None:
        item = next(iter(open_job(make_job(folder))))
        expected = item.load().arrays()
        got: list[bool] = []
        threads = [
            threading.Thread(
                target=lambda: got.append(all(map(np.array_equal, expected, item.load().arrays())))
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [True] * 4

    def test_the_first_item_comes_before_the_listing_ends(
        self, folder: Path, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listed: list[str] = []
        scandir = os.scandir
        job = make_job(folder)
        monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
        next(iter(open_job(job)))
        assert str(folder / "sub") not in listed

    def test_other_media_are_left_alone_and_counted(
        self, folder: Path, make_job: Callable[..., Job], kind: str
    ) -> None:
        reader = open_job(make_job(folder))
        items = list(reader)
        assert reader.counts.other_media == (
            0 if kind in MANIFESTS else 6
        )  # a manifest lists what it means
        assert items

    def test_include_and_exclude(self, folder: Path, make_job: Callable[..., Job]) -> None:
        reader = open_job(make_job(folder, include=("sub/*",), exclude=("* d.*",)))
        assert {re.sub(r"^in\.[a-z.]+/|\.(png|mp4).*$", "", item.id) for item in reader} == {
            "sub/b"
        }
        assert reader.counts.filtered == 5

    def test_an_input_that_is_not_there_is_a_job_error(
        self, tmp_path: Path, make_job: Callable[..., Job]
    ) -> None:
        with pytest.raises(JobError, match="missing"):
            open_job(make_job(tmp_path / "missing"))

    def test_an_empty_folder_gives_nothing(
        self, tmp_path: Path, make_job: Callable[..., Job]
    ) -> None:
        assert list(open_job(make_job(tmp_path))) == []


def test_the_table_covers_every_kind_of_media() -> None:
    assert set(READERS) == {"image", "video"}


def test_image_jobs_do_not_load_pyav_and_the_table_loads_no_decoder() -> None:
    code = (
        "import sys, vlmbatch.read, vlmbatch.sample; "
        "assert not {'PIL', 'av'} & set(sys.modules); "
        "import vlmbatch.read.pictures.decode; assert 'av' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_videos_without_a_sampler_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="sampler"):
        open_reader(Job(inputs=(str(tmp_path),), media="video"))
