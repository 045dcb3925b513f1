"""The engine on a GPU that is not there: the same tokens, so many kernels, copies and waits a step,
and nothing that a GPU would refuse.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.conftest import Command
from tests.cli.conftest import photos as photos
from tests.cli.conftest import vlmbatch as vlmbatch
from tests.engine.reference import changed, run_all
from tests.engine.torch.fake_device import Counts, FakeDevice
from tests.engine.torch.test_parity import Asker, mixed_requests, open_tiny
from vlmbatch.core import Conversation, Pixels, Request
from vlmbatch.engine.torch.cuda.kernels import attend_contiguous, check_device
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.errors import DeviceError

Answers = dict[tuple[int, int], Sequence[int]]


def tokens_of(engine: TorchEngine, requests: Sequence[Request]) -> Answers:
    found = run_all(engine, requests)
    assert [done.error for done in found.values() if done.error] == []
    return {key: done.token_ids for key, done in found.items()}


def alike(preparer: Asker, count: int, tokens: int = 16) -> list[Request]:
    """Questions of one length about as many small pictures, all of them different."""
    drawn = np.random.default_rng(1)
    found = []
    for number in range(count):
        pixels = Pixels([drawn.integers(0, 256, (40, 40, 3), dtype=np.uint8)])
        request = preparer.prepare(Conversation.about("image", pixels, str(number)), ["Why?"])
        found.append(changed(request, max_new_tokens=tokens, ignore_eos=True))
    return found


def test_answers_are_those_of_the_cpu(tiny: Path, plain: Answers) -> None:
    with FakeDevice() as gpu:
        engine, preparer = open_tiny(tiny, device="cuda")
        assert tokens_of(engine, mixed_requests(preparer)) == plain
        graphs = dict(engine.stats.graphs)
        assert graphs["notes"] == []
        assert graphs["replayed"] > 0
        assert gpu.counts.replays == graphs["replayed"] + graphs["recorded"]
        # The steps of a second run are those that the first one recorded.
        steps = engine.stats.decode_steps
        assert tokens_of(engine, mixed_requests(preparer)) == plain
        assert engine.stats.graphs["recorded"] == graphs["recorded"]
        assert engine.stats.graphs["replayed"] - graphs["replayed"] == (
            engine.stats.decode_steps - steps
        )


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.8, "top_p": 0.9}, {"quantize": "int8"}],
    ids=["greedy", "sampled", "8-bit weights"],
)
def test_answers_in_16_bits_are_those_of_the_cpu(tiny: Path, settings: dict[str, object]) -> None:
    engine, preparer = open_tiny(tiny, dtype="float16", **settings)
    wanted = tokens_of(engine, mixed_requests(preparer))
    with FakeDevice():
        engine, preparer = open_tiny(tiny, device="cuda", dtype="float16", **settings)
        found = tokens_of(engine, mixed_requests(preparer))
    # Rounded otherwise, an answer may leave the other one at some token, and does so soon where
    # tokens are sampled from hundreds that are about equally likely.
    compared = 2 if "temperature" in settings else None
    same = [found[key][:compared] == wanted[key][:compared] for key in wanted]
    assert sum(same) >= 0.8 * len(wanted)
    assert engine.stats.graphs["notes"] == []
    # One step for all lengths of sequences: the number of rows alone makes it.
    assert engine.stats.graphs["recorded"] == 1
    assert engine.stats.graphs["replayed"] == engine.stats.decode_steps - 4


def test_steps_with_log_probabilities_are_never_recorded_as_those_before_them(tiny: Path) -> None:
    with FakeDevice() as gpu:
        engine, preparer = open_tiny(tiny, device="cuda")
        tokens_of(engine, alike(preparer, 1, 4))
        tokens_of(engine, [changed(each, logprobs=2) for each in alike(preparer, 4, 12)])
        assert engine.stats.graphs == {"recorded": 0, "replayed": 0, "notes": []}
        assert gpu.counts.replays == 0


def counts_of_a_run(tiny: Path, count: int, tokens: int) -> tuple[Counts, TorchEngine]:
    """Counts of a run whose steps are recorded already."""
    with FakeDevice() as gpu:
        engine, preparer = open_tiny(tiny, device="cuda", dtype="float16")
        tokens_of(engine, alike(preparer, count))
        before = gpu.counts.copy()
        tokens_of(engine, alike(preparer, count, tokens))
        return gpu.counts.since(before), engine


def test_a_replayed_step_sends_nothing_and_waits_once_whatever_the_batch(tiny: Path) -> None:
    for count in (2, 24):
        short, _ = counts_of_a_run(tiny, count, 8)
        long, _ = counts_of_a_run(tiny, count, 24)
        assert long.since(short) == Counts(replays=16, downloads=16, waits=16)


def test_a_run_of_many_pictures_launches_and_waits_as_often_as_one_of_two(tiny: Path) -> None:
    few, many = (counts_of_a_run(tiny, count, 2)[0] for count in (2, 24))
    assert many.kernels == few.kernels
    assert (many.uploads, many.pageable, many.waits) == (few.uploads, 0, few.waits)
    # The tiles, the prompts, and the rows of the one step; the host waits for the tokens of both,
    # and before it looks at the encoder's events.
    assert few.uploads == 3
    assert few.waits <= 3


@pytest.mark.parametrize("phase", ["begin", "body", "end"])
def test_a_capture_that_fails_is_survived_and_tried_again(
    tiny: Path, plain: Answers, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmbatch.engine.torch.cuda.buckets.RETRY_AFTER", 4)
    with FakeDevice() as gpu:
        engine, preparer = open_tiny(tiny, device="cuda")
        gpu.failing = phase
        assert tokens_of(engine, mixed_requests(preparer)) == plain
        assert gpu.stream == "default"
        assert engine.stats.graphs["recorded"] == 0
        failures = len(engine.stats.graphs["notes"])
        assert failures > 1
        gpu.failing = ""
        if failures < 3:
            assert tokens_of(engine, mixed_requests(preparer)) == plain
            assert engine.stats.graphs["replayed"] > 0


def test_an_old_torch_records_nothing_and_the_summary_says_so(
    tiny: Path, plain: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.12.1+cu130")
    with FakeDevice() as gpu:
        engine, preparer = open_tiny(tiny, device="cuda")
        assert tokens_of(engine, mixed_requests(preparer)) == plain
        assert gpu.counts.replays == 0
    (note,) = engine.stats.graphs["notes"]
    assert "torch 2.12.1+cu130 may not survive" in note
    assert "install torch 2.13 or newer" in note
    assert engine.stats.graphs["replayed"] == 0


MESSAGES: dict[str, Callable[[], Exception]] = {
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"),
    "cuDNN": lambda: RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "NVML": lambda: RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED"),
    "MPS": lambda: RuntimeError("Invalid buffer size: 24.00 GB"),
}


@pytest.mark.parametrize("library", MESSAGES)
def test_a_device_without_memory_gets_smaller_calls(
    tiny: Path, plain: Answers, library: str
) -> None:
    with FakeDevice() as gpu:
        engine, preparer = open_tiny(tiny, device="cuda", max_memory="40MB")
        held = gpu.allocated
        gpu.refusal, gpu.refusals = MESSAGES[library], 2
        assert tokens_of(engine, mixed_requests(preparer)) == plain
        first, second = engine.stats.oom_events
        assert first["size"] >= 2 * second["size"]
        assert MESSAGES[library]().args[0][:40] in first["message"]
        engine.close()
        gc.collect()
        assert gpu.allocated <= held  # no error keeps activations alive


def test_a_replay_without_memory_makes_the_batch_smaller_and_drops_recorded_steps(
    tiny: Path, plain: Answers
) -> None:
    for error in (MESSAGES["CUDA"], MESSAGES["cuBLAS"]):
        with FakeDevice() as gpu:
            engine, preparer = open_tiny(tiny, device="cuda")
            assert tokens_of(engine, mixed_requests(preparer)) == plain
            recorded = engine.stats.graphs["recorded"]
            gpu.refusal, gpu.replays_left = error, 3
            assert tokens_of(engine, mixed_requests(preparer)) == plain
            (event,) = engine.stats.oom_events
            assert event["phase"] == "decode"
            assert engine.scheduler.max_sequences == event["size"] // 2
            # They are recorded again, for as many sequences as there are now.
            assert engine.stats.graphs["recorded"] > recorded
            assert engine.stats.graphs["notes"] == []
            assert gpu.stream == "default"


def test_a_replay_that_fails_otherwise_ends_the_run_with_what_was_finished(
    tiny: Path, photos: Path, vlmbatch: Command
) -> None:
    with FakeDevice() as gpu:
        gpu.refusal = lambda: RuntimeError("CUDA error: an illegal memory access")
        gpu.replays_left = 8
        job = ("caption", photos, "--model", tiny, "--device", "cuda", "--dtype", "float32")
        options = "--max-new-tokens", "8", "--batch-size", "1", "-o", photos / "out.jsonl"
        done = vlmbatch(*job, *options)
    assert done.returncode == 1
    assert "decode failed: RuntimeError: CUDA error: an illegal memory access" in done.stderr
    rows = (photos / "out.jsonl").read_text().splitlines()
    assert 0 < len(rows) < 4
    again = vlmbatch("caption", photos, "--model", tiny, "--dtype", "float32", *options)
    assert again.returncode == 0, again.stderr
    assert len((photos / "out.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("operation", "what"),
    [("gelu", "pictures"), ("silu", "text"), ("layer_norm", "pictures")],
)
def test_a_device_that_falsifies_pictures_or_text_is_refused_and_named(
    tiny: Path, operation: str, what: str
) -> None:
    with FakeDevice() as gpu:
        gpu.falsified = operation
        with pytest.raises(DeviceError, match=rf"cuda.* computes {what} in float32 otherwise"):
            open_tiny(tiny, device="cuda")


def test_a_device_that_computes_otherwise_is_refused_at_the_start(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_tiny(tiny)[0].network
    check_device(model)

    def wrong(query: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        return query

    language = model.language
    monkeypatch.setattr(language, "attend_rows", wrong)
    with pytest.raises(DeviceError, match=r"cpu computes text in float32 .*use --device cpu"):
        check_device(dataclasses.replace(model, language=language))
    monkeypatch.undo()
    monkeypatch.setattr(model.vision.layers[0], "attend", wrong)
    check_device(model)  # the CPU's copy has the same wrong kernel


def test_queries_reach_mps_in_one_piece() -> None:
    seen = []

    def watched(query: torch.Tensor, *rest: torch.Tensor, **options: object) -> torch.Tensor:
        seen.append(query.is_contiguous())
        return query

    joined = torch.randn(3, 1280)[:, :960].view(3, 15, 64)
    query = joined.reshape(3, 5, 3, 64)
    assert not query.is_contiguous()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.nn.functional.scaled_dot_product_attention", watched)
        attend_contiguous(query, query, query)
    assert seen == [True]


def test_tensors_of_both_sides_do_not_mix() -> None:
    with FakeDevice() as gpu:
        x = gpu.put(torch.ones(2, 2))
        with pytest.raises(RuntimeError, match="on the same device"):
            x + torch.ones(2, 2)
        assert gpu.get(x * torch.tensor(3.0)).tolist() == [[3, 3], [3, 3]]
