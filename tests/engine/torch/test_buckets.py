"""Decode steps of fixed shapes give the tokens of ordinary ones, and give way where recording them
fails; tiles that are sent ahead are the right ones.
"""

from __future__ import annotations

import csv
import functools
import gc
import logging
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.reference import answers, build_engine, run_all
from tests.engine.torch.test_parity import (
    Asker,
    assert_same,
    mixed_requests,
    open_tiny,
    wanted_answers,
)
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Conversation
from vlmbatch.engine.torch.cache import (
    Cache,
    DecodeAttention,
    PrefillAttention,
    Segment,
    Slot,
)
from vlmbatch.engine.torch.cuda.buckets import BucketDecoder, bucket_of
from vlmbatch.engine.torch.cuda.graphs import CudaGraphs
from vlmbatch.engine.torch.cuda.peak_memory import measure_peak
from vlmbatch.engine.torch.cuda.recorded import Compute, RecordedStep
from vlmbatch.engine.torch.cuda.uploads import Tiles, TileUploads
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.read.pictures.decode import load_image
from vlmbatch.tasks import DEFAULT_PROMPTS

SAMPLES = Path(__file__).parents[3] / "sample_data"


class Recorder:
    """Records as a function says; holds no memory of a device."""

    held_bytes = 0

    def __init__(self, record: Callable[[Compute], Compute]) -> None:
        self.record = record
        self.cleared = 0

    def __call__(self, compute: Compute) -> Compute:
        return self.record(compute)

    def clear(self) -> None:
        self.cleared += 1


def no_recording(compute: Compute) -> Compute:
    return compute


def into_a_fixed_buffer(compute: Compute) -> Compute:
    """As a graph does it: what a replay gives stands where the first one stood."""
    fixed = compute()
    return lambda: fixed.copy_(compute())


def open_in_buckets(
    folder: Path,
    recorder: Callable[[Compute], Compute] = no_recording,
    record_after: int = 1,
    batch_size: int | None = None,
    **settings: object,
) -> tuple[TorchEngine, Asker]:
    engine, preparer = open_tiny(folder, **settings)
    fixed = build_engine(
        folder,
        engine,
        recorder=Recorder(recorder),
        record_after=record_after,
        batch_size=batch_size,
    )
    return fixed, preparer


def test_buckets_are_powers_of_two() -> None:
    assert [bucket_of(count) for count in range(1, 10)] == [1, 2, 4, 4, 8, 8, 8, 8, 16]


@pytest.mark.parametrize("batch_size", [None, 1, 3], ids=["as many as fit", "one", "three"])
@pytest.mark.parametrize("recorder", [no_recording, into_a_fixed_buffer])
def test_tokens_are_those_of_generate(
    tiny: Path, batch_size: int | None, recorder: Callable[[Compute], Compute]
) -> None:
    engine, preparer = open_in_buckets(tiny, recorder, batch_size=batch_size)
    requests = mixed_requests(preparer)
    assert_same(
        engine,
        requests,
        wanted_answers(tiny),
        find_checkpoint(str(tiny)).end_token_ids(),
    )
    graphs = engine.stats.graphs
    assert graphs["notes"] == []
    assert graphs["replayed"] + graphs["recorded"] == engine.stats.decode_steps
    assert graphs["replayed"] > graphs["recorded"] > 0


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.8}, {"quantize": "int8"}], ids=["sampled", "8-bit weights"]
)
def test_other_settings_give_the_same_tokens_too(tiny: Path, settings: dict[str, object]) -> None:
    engine, preparer = open_tiny(tiny, **settings)
    wanted = answers(engine, mixed_requests(preparer))
    engine, preparer = open_in_buckets(tiny, **settings)  # type: ignore[arg-type]
    assert answers(engine, mixed_requests(preparer)) == wanted
    assert engine.stats.graphs["replayed"] > 0


def test_the_demo_model_gives_the_same_tokens() -> None:
    with open(SAMPLES / "content.csv", newline="", encoding="utf-8") as file:
        names = [
            row["file"]
            for row in csv.DictReader(file)
            if row["file"].startswith(("images/", "scans/"))
        ]
    demo = Path("demo")
    engine, preparer = open_tiny(demo)
    fixed, _ = open_in_buckets(demo)
    requests = [
        preparer.prepare(
            Conversation.about("image", load_image(str(SAMPLES / name), 10**8)),
            [DEFAULT_PROMPTS["caption"], "Why?"],
        )
        for name in names
    ]
    assert answers(fixed, requests) == answers(engine, requests)
    assert fixed.stats.graphs["replayed"] > 0


@torch.inference_mode()
def test_padding_touches_no_live_row_and_a_step_writes_what_the_ordinary_one_writes(
    tiny: Path,
) -> None:
    model = open_tiny(tiny)[0].network
    generator = torch.Generator()
    found = []
    for fixed in (False, True):
        generator.manual_seed(0)
        cache = Cache(model.shape.text, model.device, model.dtype, tokens_first=True)
        slots = []
        for tokens, room in ((10, 60), (25, 60), (40, 60), (70, 120)):
            slots.append(cache.take(room))
            prefill = PrefillAttention([Segment(slots[-1], tokens)])
            ids = torch.randint(0, 200, (tokens,), generator=generator)
            model.language(model.language.embed(ids), torch.arange(tokens), prefill)
            prefill.finish()
        padding = cache.take(1)
        cache.erase(slots[1])
        cache.give_back(slots.pop(1))  # a hole between live rows
        (chunk,) = cache.pool.chunks
        before = chunk.all_layers(0, chunk.tokens).clone()
        last = [3, 4, 5]
        attend = DecodeAttention(cache, slots)
        if fixed:
            step = RecordedStep(model, padding.extent, 4, 128, is_sampled=False)
            tokens, logprobs = step(attend.slots, last)
        else:
            positions = torch.tensor([slot.length for slot in attend.slots])
            hidden = model.language(model.language.embed(torch.tensor(last)), positions, attend)
            best = torch.log_softmax(model.language.logits(hidden), dim=-1).max(dim=-1)
            tokens, logprobs = best.indices.tolist(), best.values.tolist()
        written = {slot.extent.begin + slot.length for slot in [*attend.slots, padding]}
        changed = (before != chunk.all_layers(0, chunk.tokens)).any(dim=-1).nonzero()[:, 2]
        assert set(changed.tolist()) <= written
        seen = [slot.views(0, slot.length + 1) for slot in attend.slots]
        found.append((torch.tensor(logprobs), seen, tokens))
    torch.testing.assert_close(found[1][:2], found[0][:2], rtol=1e-4, atol=1e-4)
    assert found[1][2] == found[0][2]


def test_when_recording_fails_the_ordinary_step_goes_on_with_one_warning(
    tiny: Path, plain: dict[tuple[int, int], Sequence[int]], caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def failing(compute: Compute) -> Compute:
        tried.append(compute)
        raise RuntimeError("operation not permitted when stream is capturing")

    engine, preparer = open_in_buckets(tiny, failing)
    with caplog.at_level(logging.WARNING, "vlmbatch"):
        assert answers(engine, mixed_requests(preparer)) == plain
    assert len(tried) == len(caplog.records) == 1
    assert engine.stats.graphs["recorded"] == engine.stats.graphs["replayed"] == 0
    assert "operation not permitted" in engine.stats.graphs["notes"][0]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda chosen: chosen * torch.tensor([[0.0], [1.0]]),
        lambda chosen: chosen - torch.tensor([[0.0], [0.5]]),
        lambda chosen: chosen * torch.tensor([[1.0], [torch.nan]]),
    ],
    ids=["another token", "another probability", "not finite"],
)
def test_a_recorded_step_that_chooses_otherwise_is_given_up(
    tiny: Path,
    plain: dict[tuple[int, int], Sequence[int]],
    wrong: Callable[[torch.Tensor], torch.Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorded = []

    def wrong_for_one_shape(compute: Compute) -> Compute:
        rows = compute().shape[1]
        recorded.append(rows)
        return (lambda: wrong(compute())) if rows == recorded[0] else compute

    engine, preparer = open_in_buckets(tiny, wrong_for_one_shape, batch_size=3)
    with caplog.at_level(logging.WARNING, "vlmbatch"):
        assert answers(engine, mixed_requests(preparer)) == plain
    assert engine.stats.graphs["replayed"] > 0
    assert len(caplog.records) == 1
    assert all("gave other tokens" in note for note in engine.stats.graphs["notes"])


@torch.inference_mode()
def test_a_step_serves_any_place_in_its_chunk_and_goes_with_it(tiny: Path) -> None:
    engine = open_tiny(tiny)[0]
    language = engine.network.language
    recorded: list[weakref.ref[Compute]] = []

    def watched(compute: Compute) -> Compute:
        replay = functools.partial(compute)
        recorded.append(weakref.ref(replay))
        return replay

    cache = Cache(engine.network.shape.text, torch.device("cpu"), torch.float32, tokens_first=True)
    fixed = engine.network, cache, engine.budget, engine.stats, Recorder(watched)
    decoder = BucketDecoder(*fixed, record_after=1)
    first, second = cache.take(60), cache.take(200)
    done = []

    def step(slot: Slot) -> list[list[float]]:
        found = decoder.step([slot], [7], [None])
        if found is not None:
            return found
        done.append(slot)
        attend = DecodeAttention(cache, [slot])
        positions = torch.tensor([slot.length])
        hidden = language(language.embed(torch.tensor([7])), positions, attend)
        logits = language.logits(hidden)
        decoder.consider([slot], [7], logits)
        best = torch.log_softmax(logits, dim=-1).max(dim=-1)
        return [best.indices.tolist(), best.values.tolist()]

    wanted = step(first)
    np.testing.assert_allclose(step(second), wanted, atol=1e-5)
    assert done == [first]  # the second one was the recorded step
    decoder.clear()
    cache.give_back(first)
    cache.give_back(second)
    assert cache.pool.release_empty()
    third = cache.take(60)
    np.testing.assert_allclose(step(third), wanted, atol=1e-5)
    assert done == [first, third]
    gc.collect()
    assert [replay() is not None for replay in recorded] == [False, True]
    cache.clear()
    decoder.forget_stale()
    gc.collect()
    assert [replay() is not None for replay in recorded] == [False, False]


def test_steps_are_recorded_when_they_were_met_often_enough(
    tiny: Path, plain: dict[tuple[int, int], Sequence[int]]
) -> None:
    engine, preparer = open_in_buckets(tiny, record_after=5)
    assert answers(engine, mixed_requests(preparer)) == plain
    assert engine.stats.graphs == {
        "recorded": 2,  # up to 256 tokens a sequence, and up to 512
        "replayed": engine.stats.decode_steps - 2 * 5,
        "notes": [],
    }


class WatchedUploads(TileUploads):
    """Counts the calls whose tiles had been sent ahead."""

    ahead: Tiles = ()
    right = 0

    def send_ahead(self, wanted: Tiles) -> None:
        self.ahead = list(wanted)
        super().send_ahead(wanted)

    def take(self, wanted: Tiles) -> torch.Tensor:
        self.right += self.ahead == list(wanted)
        return super().take(wanted)


def test_tiles_sent_ahead_are_those_that_are_asked_for(
    tiny: Path, plain: dict[tuple[int, int], Sequence[int]]
) -> None:
    engine, preparer = open_tiny(tiny)
    engine.scheduler.max_tiles = 5
    engine.encoder.uploads = uploads = WatchedUploads(engine.network.device, ahead=True)
    assert answers(engine, mixed_requests(preparer)) == plain
    assert uploads.right >= 0.8 * (engine.stats.vision_calls - 1) > 2


def test_a_wrong_guess_of_the_next_tiles_is_dropped(tiny: Path) -> None:
    preparer = open_tiny(tiny)[1]
    first, second = (request.payload for request in mixed_requests(preparer)[:2])
    uploads = TileUploads(torch.device("cpu"), ahead=True)
    uploads.send_ahead([(first, 0), (first, 1)])
    assert torch.equal(uploads.take([(second, 0)]), torch.from_numpy(second.tiles[:1]))
    uploads.send_ahead([(first, 1)])
    assert torch.equal(uploads.take([(second, 1)]), torch.from_numpy(second.tiles[1:2]))
    uploads.send_ahead([(first, 1), (second, 0)])
    found = uploads.take([(first, 1), (second, 0)])
    assert torch.equal(
        found, torch.stack([torch.from_numpy(first.tiles[1]), torch.from_numpy(second.tiles[0])])
    )


needs_cuda = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


class TestOnCuda:
    pytestmark = needs_cuda

    @pytest.mark.parametrize("batch_size", [None, 3])
    def test_recorded_steps_give_the_tokens_of_generate(
        self, tiny: Path, batch_size: int | None
    ) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        engine, preparer = open_tiny(tiny, device="cuda", batch_size=batch_size)
        requests = mixed_requests(preparer)
        assert_same(
            engine,
            requests,
            wanted_answers(tiny),
            find_checkpoint(str(tiny)).end_token_ids(),
        )
        assert engine.stats.graphs["notes"] == []
        assert engine.stats.graphs["replayed"] > engine.stats.graphs["recorded"] > 0
        assert engine.encoder.uploads.is_ahead

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
    @pytest.mark.parametrize("quantize", ["none", "int8"])
    def test_every_number_format_can_be_recorded(
        self, tiny: Path, dtype: str, quantize: str
    ) -> None:
        engine, preparer = open_tiny(
            tiny, device="cuda", dtype=dtype, quantize=quantize, max_new_tokens=40
        )
        found = run_all(engine, mixed_requests(preparer))
        assert all(completion.error is None for completion in found.values())
        assert engine.stats.graphs["notes"] == []
        assert engine.stats.graphs["replayed"] > 0

    @torch.inference_mode()
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_a_replay_follows_its_buffers(self, tiny: Path, dtype: str) -> None:
        model = open_tiny(tiny, device="cuda", dtype=dtype)[0].network
        cache = Cache(model.shape.text, model.device, model.dtype, limit_bytes=lambda: 1 << 26)
        row, padding = cache.take(60), cache.take(1)
        tokens = 64 if dtype == "float32" else 0
        recorded, computed = (
            RecordedStep(model, padding.extent, 4, tokens, is_sampled=False) for _ in range(2)
        )
        recorded.replay = CudaGraphs(model.device)(recorded.compute)
        for token in (5, 9, 12):
            found, wanted = recorded([row], [token]), computed([row], [token])
            assert found[0] == wanted[0]
            assert found[1] == pytest.approx(wanted[1], abs=1e-3)
            row.length += 1

    def test_the_peak_of_a_computation_is_what_torch_allocates(self) -> None:
        x = torch.ones(1000, 1000, device="cuda")
        _, peak = measure_peak(lambda: ((x + 1) * 2).sum(), x.device)
        assert 8_000_000 <= peak <= 8_200_000  # x + 1 and its double, never three

    def test_running_out_of_memory_while_recording_is_survived(self, tiny: Path) -> None:
        def failing(compute: Compute) -> Compute:
            raise torch.OutOfMemoryError("CUDA out of memory. (scripted)")

        engine, preparer = open_in_buckets(tiny, failing, device="cuda")
        found = run_all(engine, mixed_requests(preparer))
        assert all(completion.error is None for completion in found.values())
        assert len(engine.stats.graphs["notes"]) >= 1
