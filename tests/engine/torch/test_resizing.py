"""Pictures that a device resizes and cuts have the bits of Pillow, each is cut once, and a device
that cannot do it leaves it to the CPU.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.reference import Key, run_all
from tests.engine.torch.fake_device import FakeDevice, OnDevice
from tests.engine.torch.test_fake_gpu import alike, tokens_of
from tests.engine.torch.test_parity import Asker, mixed_requests, open_tiny
from vlmbatch.core import Conversation, Pixels
from vlmbatch.engine import open_engine
from vlmbatch.engine.torch.budget import RESIZING_BYTES
from vlmbatch.engine.torch.cuda.cutting import TileCutter
from vlmbatch.engine.torch.cuda.resizing_check import find_resizing_fault
from vlmbatch.engine.torch.cuda.uploads import TileUploads
from vlmbatch.job import EngineOptions, Job
from vlmbatch.prepare import Payload, UncutPicture, UncutTiles
from vlmbatch.prepare.tiles import TileSettings, plan_tiles

CPU = torch.device("cpu")
Answers = dict[Key, Sequence[int]]
Wanted = list[tuple[Payload, int]]


def uncut(
    width: int, height: int, settings: TileSettings, *, seed: int = 0, is_hard: bool = False
) -> UncutPicture:
    drawn = np.random.default_rng(seed)
    pixels = drawn.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if is_hard:
        pixels = 255 * (pixels > 127).astype(np.uint8)  # sums below 0 and above 255
    return UncutPicture(pixels, plan_tiles(width, height, settings), settings.tile_edge)


def payload_of(*parts: UncutPicture | np.ndarray) -> Payload:
    edge = next(part.tile_edge for part in parts if isinstance(part, UncutPicture))
    return Payload(UncutTiles(parts, edge), [], [], [])


def all_of(*payloads: Payload) -> Wanted:
    return [(payload, number) for payload in payloads for number in range(len(payload.tiles))]


def cut(*parts: UncutPicture | np.ndarray) -> np.ndarray:
    return np.concatenate([p.cut() if isinstance(p, UncutPicture) else p for p in parts])


SETTINGS = TileSettings(96, 32)
SHAPES = {
    "enlarged": ((41, 30), SETTINGS),
    "reduced": ((400, 333), SETTINGS),
    "heights first": ((40, 600), SETTINGS),
    "one row": ((300, 2), SETTINGS),
    "one pixel": ((1, 1), SETTINGS),
    "fits already": ((96, 64), SETTINGS),
    "widths only": ((48, 64), TileSettings(64, 32, resize=False)),
    "one tile": ((50, 70), TileSettings(96, 32, split=False)),
    "is a tile": ((32, 32), TileSettings(32, 32)),
    "native": ((70, 45), SETTINGS.native(70, 45)),
    "full detail": ((640, 480), TileSettings(2048, 512)),
    "odd tiles": ((111, 500), TileSettings(500, 37)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_tiles_are_those_of_pillow(name: str) -> None:
    for is_hard in (False, True):
        picture = uncut(*SHAPES[name][0], SHAPES[name][1], is_hard=is_hard)
        tiles = TileUploads(CPU).take(all_of(payload_of(picture)))
        assert np.array_equal(tiles, picture.cut())


def test_tiles_of_drawn_sizes_are_those_of_pillow() -> None:
    drawn, uploads = np.random.default_rng(7), TileUploads(CPU)
    for seed in range(150):
        width, height, columns, rest = (int(n) for n in drawn.integers(1, [250, 250, 5, 32]))
        settings = TileSettings(32 * columns + rest, 32, bool(seed % 4))
        if seed % 3 == 0:
            settings = settings.native(width, height)
        picture = uncut(width, height, settings, seed=seed, is_hard=seed % 2 == 0)
        tiles = uploads.take(all_of(payload_of(picture)))
        assert np.array_equal(tiles, picture.cut()), (width, height, settings)


def test_pictures_of_many_sizes_and_tiles_cut_before_keep_their_order() -> None:
    frames = [uncut(50, 30, TileSettings(32, 32, split=False), seed=n) for n in range(3)]
    small, large = uncut(50, 30, SETTINGS), uncut(90, 80, SETTINGS)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    parts = [small, tiles[:1], frames[0], large, frames[1], tiles[1:], frames[2]]
    whole = Payload(cut(small), [], [], [])
    wanted = all_of(payload_of(*parts), whole)
    assert np.array_equal(TileUploads(CPU).take(wanted), cut(*parts, small))
    picked = [wanted[number] for number in (3, 1, 14, 4, -1)]
    expected = cut(*parts, small)[[3, 1, 14, 4, -1]]
    assert np.array_equal(TileUploads(CPU).take(picked), expected)


def num_sent(cutter: TileCutter, wanted: Wanted) -> int:
    return sum(map(len, cutter.parcel(wanted).groups))


def take(cutter: TileCutter, wanted: Wanted) -> torch.Tensor:
    parcel = cutter.parcel(wanted)
    items = [
        b"".join(np.ascontiguousarray(array).tobytes() for array in item) for item in parcel.items()
    ]
    sent = [torch.from_numpy(np.frombuffer(bytearray(i), np.uint8).copy()) for i in items]
    return cutter.open(wanted, parcel, sent)


def test_a_picture_that_takes_several_calls_is_sent_and_cut_once() -> None:
    first, second = (uncut(90, 80, SETTINGS, seed=seed) for seed in (1, 2))
    wanted, expected = all_of(payload_of(first), payload_of(second)), cut(first, second)
    cutter = TileCutter(CPU, 1 << 28)
    counts = []
    for begin in range(0, len(wanted), 4):
        some = wanted[begin : begin + 4]
        counts.append(num_sent(cutter, some))
        assert np.array_equal(take(cutter, some), expected[begin : begin + 4])
    assert counts == [1, 0, 1, 0, 0]
    assert num_sent(cutter, wanted[-1:]) == 1  # its last tile was taken: it is gone


def test_kept_tiles_are_cut_again_after_they_were_dropped() -> None:
    picture = uncut(90, 80, SETTINGS)
    wanted, expected = all_of(payload_of(picture)), picture.cut()
    cutter = TileCutter(CPU, 1 << 28)
    take(cutter, wanted[:3])
    cutter.clear()
    assert num_sent(cutter, wanted[3:5]) == 1
    assert np.array_equal(take(cutter, wanted[3:5]), expected[3:5])
    assert np.array_equal(take(cutter, wanted[1:]), expected[1:])  # from before what is kept
    other = payload_of(uncut(50, 30, SETTINGS))
    take(cutter, wanted[:2])
    take(cutter, all_of(other))
    assert num_sent(cutter, wanted[2:]) == 1


def test_a_picture_is_one_copy_of_its_own_bytes(tiny: Path) -> None:
    with FakeDevice() as gpu:
        pictures = [uncut(64, 48, TileSettings(128, 32), seed=seed) for seed in range(8)]
        wanted = all_of(*map(payload_of, pictures))
        uploads, cutter = TileUploads(gpu.device), TileCutter(gpu.device, 1 << 28)
        sizes = [sum(array.nbytes for array in item) for item in cutter.parcel(wanted).items()]
        assert sizes[:2] == [0, 8 * 64 * 48 * 3]
        uploads.take(wanted[:13])
        before = gpu.counts.copy()
        tiles = uploads.take(wanted[13:])
        found = gpu.counts.since(before)
        assert (found.uploads, found.pageable, found.waits) == (1, 0, 0)
        assert np.array_equal(gpu.get(tiles), cut(*pictures[1:]))


def test_many_pictures_of_a_size_are_as_many_kernels_as_one() -> None:
    def kernels(count: int) -> int:
        with FakeDevice() as gpu:
            pictures = [uncut(64, 48, TileSettings(128, 32), seed=n) for n in range(count)]
            TileUploads(gpu.device).take(all_of(*map(payload_of, pictures)))
            return gpu.counts.kernels

    assert kernels(1) == kernels(20) < 60


def test_memory_that_does_not_suffice_for_many_cuts_some_at_a_time_and_at_last_here() -> None:
    settings = TileSettings(256, 32)
    pictures = [uncut(64, 48, settings, seed=seed) for seed in range(4)]
    wanted, expected = all_of(*map(payload_of, pictures)), cut(*pictures)
    with FakeDevice() as gpu:
        TileUploads(gpu.device).take(wanted)
        most = gpu.most_allocated
        whole = gpu.counts.copy()
    for limit, pageable in ((most - 1, 0), (expected.nbytes + (1 << 20), 4)):
        with FakeDevice(limit) as gpu:
            uploads = TileUploads(gpu.device)
            assert np.array_equal(gpu.get(uploads.take(wanted)), expected)
            assert gpu.counts.pageable == pageable
            assert gpu.counts.kernels > whole.kernels or pageable
    with FakeDevice() as gpu:  # told of the limit, it does not try
        uploads = TileUploads(gpu.device, resizing_bytes=1)
        assert np.array_equal(gpu.get(uploads.take(wanted)), expected)
        assert gpu.most_allocated < most


class Refusing(FakeDevice):
    """A device that has no product of float32 matrices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "baddbmm" in str(func):
            raise NotImplementedError("baddbmm is not implemented for this device")
        return super().__torch_dispatch__(func, types, args, kwargs)


class Rounding(FakeDevice):
    """A device whose products have the precision of bfloat16."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "baddbmm" in str(func):
            args = [*args[:2], self._rounded(args[2])]
        return super().__torch_dispatch__(func, types, tuple(args), kwargs)

    def _rounded(self, weights: Any) -> OnDevice:
        return self.put(weights.held.bfloat16().float())


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_device_with_the_bits_of_pillow_resizes(tiny: Path, kind: str) -> None:
    assert find_resizing_fault(CPU) == ""
    with FakeDevice(kind=kind) as gpu:
        assert find_resizing_fault(gpu.device) == ""
        engine, preparer = open_tiny(tiny, device=kind)
        assert engine.stats.resizing == {"used": True, "notes": []}
        assert isinstance(alike(preparer, 1)[0].payload.tiles, UncutTiles)
    engine, preparer = open_tiny(tiny)
    assert engine.stats.resizing == {}
    assert isinstance(alike(preparer, 1)[0].payload.tiles, np.ndarray)


@pytest.mark.parametrize(
    ("device", "note"), [(Refusing, "baddbmm is not implemented"), (Rounding, "differ from Pillow")]
)
def test_a_device_without_them_gets_tiles_that_are_cut_on_the_cpu(
    tiny: Path,
    plain: Answers,
    device: type[FakeDevice],
    note: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with device(), caplog.at_level(logging.WARNING):
        engine, preparer = open_tiny(tiny, device="cuda")
        assert engine.stats.resizing["used"] is False
        assert note in engine.stats.resizing["notes"][0]
        (line,) = [line for line in caplog.messages if "resized on the CPU" in line]
        assert note in line
        requests = mixed_requests(preparer)
        assert all(isinstance(request.payload.tiles, np.ndarray) for request in requests)
        assert tokens_of(engine, requests) == plain


class ShortOfMemory(TileUploads):
    """Uploads that find no memory at some calls."""

    gpu: FakeDevice
    calls = 0

    def take(self, wanted: Wanted) -> torch.Tensor:
        self.calls += 1
        self.gpu.refusals = int(self.calls in (2, 4, 6))
        return super().take(wanted)


NUM_ASKED = 5


def first_of(plain: Answers) -> Answers:
    return {key: tokens for key, tokens in plain.items() if key[0] < NUM_ASKED}


def test_answers_do_not_depend_on_how_pictures_are_split_into_calls(
    tiny: Path, plain: Answers
) -> None:
    with FakeDevice():
        engine, preparer = open_tiny(tiny, device="cuda")
        engine.scheduler.max_tiles = 5
        requests = mixed_requests(preparer)[:NUM_ASKED]
        assert tokens_of(engine, requests) == first_of(plain)
        assert engine.stats.vision_calls >= engine.stats.tiles / 5 > NUM_ASKED


def test_memory_that_runs_out_in_the_middle_of_a_picture_changes_no_answer(
    tiny: Path, plain: Answers
) -> None:
    with FakeDevice() as gpu:
        engine, preparer = open_tiny(tiny, device="cuda")
        engine.scheduler.max_tiles = 32
        engine.encoder.uploads = uploads = ShortOfMemory(gpu.device)
        uploads.gpu = gpu
        requests = mixed_requests(preparer)[:NUM_ASKED]
        assert tokens_of(engine, requests) == first_of(plain)
        sizes = [event["size"] for event in engine.stats.oom_events]
        assert sizes == [32, 16, 8]


def test_a_picture_that_was_left_is_known_again_in_a_chat(tiny: Path) -> None:
    with FakeDevice():
        options = EngineOptions(model=str(tiny), dtype="float32", device="cuda")
        engine = open_engine(options, reuse_prefixes=True)
        asker = Asker(engine, Job(model=str(tiny)))
        first, again = (run_all(engine, alike(asker, 1))[0, 0] for _ in range(2))
        assert first.cached_tokens == 0
        assert again.cached_tokens == again.prompt_tokens - 1
        assert again.token_ids == first.token_ids
        assert engine.stats.tiles == 17
        engine.close()


def test_blank_tiles_of_pictures_that_were_left_are_encoded_once(tiny: Path) -> None:
    drawn = np.random.default_rng(0)
    with FakeDevice():
        engine, preparer = open_tiny(tiny, device="cuda")
        requests = []
        for number in range(3):
            page = np.full((48, 48, 3), 255, np.uint8)
            page[:8, :8] = drawn.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            about = Conversation.about("image", Pixels([page]), str(number))
            requests.append(preparer.prepare(about, ["Why?"]))
        tokens_of(engine, requests)
        tiles = np.concatenate([cut(*request.payload.tiles.parts) for request in requests])
        assert engine.stats.tiles == len({tile.tobytes() for tile in tiles}) < len(tiles) / 2


def test_resizing_takes_half_of_what_the_encoder_may_and_no_more_than_it_has_use_for(
    tiny: Path,
) -> None:
    budget = open_tiny(tiny)[0].budget
    for limit, expected in ((1 << 40, RESIZING_BYTES), (1 << 28, None)):
        changed = dataclasses.replace(budget, limit=limit)
        assert changed.resizing_bytes == (expected or changed.workspace_bytes // 2)
