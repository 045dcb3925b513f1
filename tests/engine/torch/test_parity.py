"""Greedy tokens equal transformers' ``generate`` in float32, whatever shares the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints import write_tiny_checkpoint
from tests.engine.reference import Reference, answers, run_all
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Completion, Conversation, Pixels, Request
from vlmbatch.engine import Engine, open_engine
from vlmbatch.engine.options import make_question
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.job import Job

MAX_NEW_TOKENS = 24


class Asker:
    """Prepare requests with an engine, all questions with the options of one job."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self.engine, self.job = engine, job

    def prepare(self, conversation: Conversation, questions: Sequence[str]) -> Request:
        return self.engine.prepare(
            conversation, [make_question(text, self.job) for text in questions]
        )


def open_tiny(folder: Path, **settings: object) -> tuple[TorchEngine, Asker]:
    job = Job.from_dict(
        {
            "model": str(folder),
            "max_new_tokens": MAX_NEW_TOKENS,
            "dtype": "float32",
            "device": "cpu",
            **settings,
        }
    )
    engine = open_engine(job)
    assert isinstance(engine, TorchEngine)
    return engine, Asker(engine, job)


def picture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Coloured blocks, different every time."""
    blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width])


def mixed_requests(preparer: Asker, seed: int = 0) -> list[Request]:
    """Pictures of many sizes with one to three questions, and clips of 1, 3 and 5 frames."""
    rng = np.random.default_rng(seed)
    requests = []
    for number in range(8):
        questions = ["Describe this.", "What is here?" + " x" * int(rng.integers(20)), "Why?"][
            : 1 + number % 3
        ]
        pixels = Pixels([picture(rng, *(int(edge) for edge in rng.integers(10, 200, 2)))])
        requests.append(
            preparer.prepare(Conversation.about("image", pixels, f"{number}.png"), questions)
        )
    for frames in (1, 3, 5):
        pixels = Pixels(
            [picture(rng, 60, 40) for _ in range(frames)],
            tuple(float(t) for t in range(frames)),
            9.0,
        )
        requests.append(
            preparer.prepare(
                Conversation.about("clip", pixels, f"{frames}.mp4"), ["What happens?", "Which way?"]
            )
        )
    return requests


def reference_completions(folder: Path, seed: int = 0) -> dict[tuple[int, int], Completion]:
    """transformers' answers to ``mixed_requests``, which it prepared itself."""
    engine = Reference(folder).engine
    job = Job.from_dict({"max_new_tokens": MAX_NEW_TOKENS})
    return run_all(engine, mixed_requests(Asker(engine, job), seed))


def wanted_answers(folder: Path, seed: int = 0) -> dict[tuple[int, int], list[int]]:
    found = reference_completions(folder, seed)
    return {key: list(completion.token_ids) for key, completion in found.items()}


@pytest.fixture(scope="module")
def wanted(tiny: Path) -> dict[tuple[int, int], list[int]]:
    return wanted_answers(tiny)


def assert_same(
    engine: TorchEngine,
    requests: Sequence[Request],
    wanted: dict[tuple[int, int], list[int]],
    end_ids: frozenset[int],
) -> None:
    found = run_all(engine, requests)
    assert found.keys() == wanted.keys()
    for key, tokens in wanted.items():
        completion = found[key]
        assert completion.error is None
        assert list(completion.token_ids) == tokens, key
        assert completion.new_tokens == len(tokens)
        assert completion.finish_reason == ("stop" if tokens[-1] in end_ids else "length")


def test_answers_differ_between_pictures(wanted: dict[tuple[int, int], list[int]]) -> None:
    answers = [tuple(tokens) for (_, question), tokens in wanted.items() if question == 0]
    assert len(set(answers)) == len(answers)
    assert len({token for answer in answers for token in answer}) > 50


@pytest.mark.parametrize("batch_size", [None, 1, 3], ids=["as many as fit", "one", "three"])
def test_a_mixed_batch_answers_as_single_requests_do(
    tiny: Path, wanted: dict[tuple[int, int], list[int]], batch_size: int | None
) -> None:
    engine, preparer = open_tiny(tiny, batch_size=batch_size)
    assert_same(
        engine, mixed_requests(preparer), wanted, find_checkpoint(str(tiny)).end_token_ids()
    )
    if batch_size:
        assert engine.stats.max_sequences == batch_size


def test_the_order_of_requests_changes_no_answer(
    tiny: Path, wanted: dict[tuple[int, int], list[int]]
) -> None:
    engine, preparer = open_tiny(tiny, batch_size=4)
    requests = mixed_requests(preparer)
    order = np.random.default_rng(3).permutation(len(requests))
    found = answers(engine, [requests[i] for i in order])
    for place, i in enumerate(order):
        for question in range(len(requests[i].questions)):
            assert list(found[place, question]) == wanted[int(i), question]


@pytest.mark.parametrize(
    "settings",
    [
        {"tie": True},
        {"shards": True},
        {"layout": "saved"},
        {"dtype": "bfloat16"},
        {"tile": 40, "patch": 5, "scale_factor": 4, "seed": 3},
    ],
    ids=["tied embeddings", "sharded", "saved by transformers", "bfloat16 weights", "other shapes"],
)
def test_every_form_of_checkpoint_answers_as_transformers_does(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model", **settings)  # type: ignore[arg-type]
    engine, preparer = open_tiny(folder)
    assert_same(
        engine,
        mixed_requests(preparer, seed=1),
        wanted_answers(folder, seed=1),
        find_checkpoint(str(folder)).end_token_ids(),
    )


def test_mean_logprob_is_that_of_the_answer(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    found = run_all(engine, mixed_requests(preparer))
    for key, completion in reference_completions(tiny).items():
        assert found[key].mean_logprob == pytest.approx(completion.mean_logprob, abs=1e-4)


def test_shares_of_the_busy_time_add_up(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    found = run_all(engine, mixed_requests(preparer))
    total = sum(completion.timing.compute_seconds for completion in found.values())
    assert total == pytest.approx(engine.stats.busy_seconds, rel=1e-3)
    phases = (
        engine.stats.vision_seconds + engine.stats.prefill_seconds + engine.stats.decode_seconds
    )
    assert phases == pytest.approx(engine.stats.busy_seconds, rel=1e-6)


def test_vision_positions_round_as_the_reference_rounds() -> None:
    from transformers.models.smolvlm import SmolVLMVisionConfig
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

    from vlmbatch.engine.torch.model import position_ids
    from vlmbatch.engine.torch.shape import VisionShape

    for grid in (2, 3, 4, 8, 27, 32):
        embeddings = SmolVLMVisionEmbeddings(
            SmolVLMVisionConfig(hidden_size=1, image_size=grid * 2, patch_size=2)
        )
        with torch.no_grad():
            embeddings.position_embedding.weight.copy_(torch.arange(grid**2)[:, None])
            embeddings.patch_embedding.weight.zero_()
            embeddings.patch_embedding.bias.zero_()
            found = embeddings(
                torch.zeros(1, 3, grid * 2, grid * 2), torch.ones(1, grid, grid, dtype=torch.bool)
            )
        assert (
            position_ids(VisionShape(1, 1, 1, 1, grid * 2, 2, 1e-6)).tolist()
            == found[0, :, 0].long().tolist()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_llamas_with_and_without_gradients(dtype: torch.dtype) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from vlmbatch.engine.torch.pointwise import rms_norm

    reference = LlamaRMSNorm(48, eps=1e-5).to(dtype)
    x = (
        torch.randn(6, 48, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-4, 4, 6)[:, None]
    ).to(dtype)
    x[2] = 0
    with torch.inference_mode():
        torch.testing.assert_close(
            rms_norm(x, reference.weight, 1e-5),
            reference(x),
            rtol=1e-6 if dtype == torch.float32 else 8e-3,
            atol=0,
        )
    free = x.clone().requires_grad_()
    found = rms_norm(free, reference.weight, 1e-5)
    torch.testing.assert_close(
        found, reference(x), rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=0
    )
    found.float().sum().backward()
    assert free.grad is not None
    assert free.grad.isfinite().all()
