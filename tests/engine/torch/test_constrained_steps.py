"""Constrained answers in the torch engine: the same on every path, and nobody else's answer
changes.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.reference import Key, changed, run_all
from tests.engine.torch.fake_device import Counts, FakeDevice
from tests.engine.torch.test_buckets import needs_cuda, open_in_buckets
from tests.engine.torch.test_parity import Asker, mixed_requests, open_tiny
from tests.engine.torch.test_scheduling import FailingLanguage
from vlmbatch.core import Completion, Constraint, Conversation, Pixels, Request
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.engine.torch.sampling import Draw, allowed_logits, choose_tokens
from vlmbatch.errors import GenerateError, IncompleteAnswer, PrepareError

CHOICES = Constraint("choices", '["red", "dark blue", "green"]')
CONSTRAINTS = (
    CHOICES,
    Constraint("regex", "[0-9]{2}:[0-9]{2}( [ap]m)?"),
    Constraint(
        "schema",
        '{"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 999}, '
        '"b": {"enum": ["x", "y"]}}, "required": ["a", "b"], "additionalProperties": false}',
    ),
    None,
)

Found = dict[Key, tuple[object, ...]]


def with_constraints(requests: Sequence[Request], **options: object) -> list[Request]:
    """The same requests, three quarters of whose questions are constrained."""
    number = 0
    found = []
    for request in requests:
        questions = []
        for question in request.questions:
            constraint = CONSTRAINTS[number % len(CONSTRAINTS)]
            longest = question.max_new_tokens if constraint is None else 64
            questions.append(
                dataclasses.replace(
                    question, constraint=constraint, max_new_tokens=longest, **options
                )  # type: ignore[arg-type]
            )
            number += 1
        found.append(
            Request(request.conversation, questions, request.payload, request.payload_bytes)
        )
    return found


def satisfies(text: str, constraint: Constraint) -> bool:
    if constraint.kind == "choices":
        return text in json.loads(constraint.text)
    if constraint.kind == "regex":
        return re.fullmatch(constraint.text, text) is not None
    value = json.loads(text)
    return list(value) == ["a", "b"] and value["a"] in range(1000) and value["b"] in ("x", "y")


def facts(done: Completion) -> tuple[object, ...]:
    return tuple(done.token_ids), done.text, done.finish_reason, done.error


def answers(engine: TorchEngine, requests: Sequence[Request]) -> Found:
    return {key: facts(done) for key, done in run_all(engine, requests).items()}


@pytest.fixture(scope="module")
def alone(tiny: Path) -> Found:
    """Each question by itself."""
    engine, preparer = open_tiny(tiny, batch_size=1)
    return answers(engine, with_constraints(mixed_requests(preparer)))


@pytest.mark.parametrize("batch_size", [None, 3])
def test_answers_have_their_forms_and_are_those_of_the_question_alone(
    tiny: Path, alone: Found, plain: dict[Key, Sequence[int]], batch_size: int | None
) -> None:
    engine, preparer = open_tiny(tiny, batch_size=batch_size)
    requests = with_constraints(mixed_requests(preparer))
    found = answers(engine, requests)
    assert found == alone
    for (number, question), (tokens, text, reason, error) in found.items():
        constraint = requests[number].questions[question].constraint
        assert error is None
        if constraint is None:
            assert tokens == tuple(plain[number, question])
        else:
            assert reason == "stop"
            assert satisfies(str(text), constraint)


def test_a_recorded_step_masks_as_the_ordinary_one_does(tiny: Path, alone: Found) -> None:
    engine, preparer = open_in_buckets(tiny)
    assert answers(engine, with_constraints(mixed_requests(preparer))) == alone
    graphs = engine.stats.graphs
    assert graphs["notes"] == []
    assert graphs["replayed"] > graphs["recorded"] > 0


def test_a_device_gives_the_tokens_of_the_cpu(tiny: Path, alone: Found) -> None:
    with FakeDevice() as gpu:
        engine, preparer = open_tiny(tiny, device="cuda")
        requests = with_constraints(mixed_requests(preparer))
        assert answers(engine, requests) == alone
        assert engine.stats.graphs["notes"] == []
        assert answers(engine, requests) == alone  # by steps that are recorded
        assert gpu.counts.replays > engine.stats.graphs["recorded"] > 0


class TestOnCuda:
    pytestmark = needs_cuda

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_answers_have_their_forms(self, tiny: Path, alone: Found, dtype: str) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        engine, preparer = open_tiny(tiny, device="cuda", dtype=dtype)
        requests = with_constraints(mixed_requests(preparer))
        for _ in range(2):  # the second time by steps that are recorded
            found = answers(engine, requests)
            for (number, question), (_, text, _, error) in found.items():
                constraint = requests[number].questions[question].constraint
                assert error is None
                assert constraint is None or satisfies(str(text), constraint)
            if dtype == "float32":
                assert found == alone
        assert engine.stats.graphs["notes"] == []
        assert engine.stats.graphs["replayed"] > engine.stats.graphs["recorded"] > 0


def alike(preparer: Asker, count: int, tokens: int, constraint: Constraint | None) -> list[Request]:
    """Questions about as many small pictures, with answers of so many tokens; the first of them
    is constrained.
    """
    drawn = np.random.default_rng(1)
    found = []
    for number in range(count):
        pixels = Pixels([drawn.integers(0, 256, (40, 40, 3), dtype=np.uint8)])
        request = preparer.prepare(Conversation.about("image", pixels, str(number)), ["Why?"])
        own = constraint if number == 0 else None
        settings = {"constraint": own, "max_new_tokens": tokens, "ignore_eos": own is None}
        found.append(changed(request, **settings))
    return found


def counts_of_a_run(
    tiny: Path, count: int, tokens: int, constraint: Constraint | None
) -> tuple[Counts, TorchEngine]:
    """Counts of a run whose steps are recorded already."""
    with FakeDevice() as gpu:
        engine, preparer = open_tiny(tiny, device="cuda", dtype="float16")
        run_all(engine, alike(preparer, count, 16, constraint))
        before = gpu.counts.copy()
        run_all(engine, alike(preparer, count, tokens, constraint))
        return gpu.counts.since(before), engine


def test_a_masked_step_sends_one_buffer_and_waits_as_before(tiny: Path) -> None:
    constraint = Constraint("regex", "[a-z]{40,}")
    for count in (2, 24):
        short, _ = counts_of_a_run(tiny, count, 8, constraint)
        long, engine = counts_of_a_run(tiny, count, 24, constraint)
        steps = dict.fromkeys(("replays", "uploads", "downloads", "waits"), 16)
        assert long.since(short) == Counts(kernels=16, **steps)  # the copies into the buffer
        assert engine.stats.graphs["recorded"] == 1


def test_a_step_is_recorded_again_for_masks_only_while_somebody_wants_a_form(tiny: Path) -> None:
    constraint = Constraint("regex", "[a-z]{40,}")
    with FakeDevice() as gpu:
        engine, preparer = open_tiny(tiny, device="cuda", dtype="float16")
        run_all(engine, alike(preparer, 8, 16, None))
        assert engine.stats.graphs["recorded"] == 1
        run_all(engine, alike(preparer, 8, 16, constraint))
        assert engine.stats.graphs["recorded"] == 2
        before = gpu.counts.copy()
        run_all(engine, alike(preparer, 8, 16, None))
        free = gpu.counts.since(before)
        assert engine.stats.graphs["recorded"] == 2
    plain, _ = counts_of_a_run(tiny, 8, 16, None)
    assert (free.uploads, free.replays) == (plain.uploads, plain.replays)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_form_survives_memory_that_runs_out(tiny: Path, alone: Found, phase: str) -> None:
    engine, preparer = open_tiny(tiny)
    first = 8 if phase == "decode" else 0  # in the middle of the answers
    language = FailingLanguage(engine.network.language, phase, first=first)
    object.__setattr__(engine.network, "language", language)
    assert answers(engine, with_constraints(mixed_requests(preparer))) == alone
    assert {event["phase"] for event in engine.stats.oom_events} == {phase}
    if phase == "decode":
        assert "wait for a place" in engine.stats.oom_events[0]["action"]


def test_an_answer_that_is_cut_off_is_an_error_and_no_half(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    (request, *_) = mixed_requests(preparer)
    for constraint, limit in ((CONSTRAINTS[2], 6), (CHOICES, 1)):
        short = changed(request, constraint=constraint, max_new_tokens=limit)
        done = run_all(engine, [short])[0, 0]
        assert isinstance(done.error, IncompleteAnswer)
        assert (done.text, done.finish_reason) == (None, None)
        assert (
            str(done.error)
            == f"--max-new-tokens {limit} ended the answer before it was whole: allow more"
        )


def test_questions_beside_one_that_is_cut_off_keep_what_they_share(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny, batch_size=1)
    request = mixed_requests(preparer)[2]
    assert len(request.questions) == 3
    wanted = run_all(engine, [request])
    constraints = [CONSTRAINTS[2], None, None]
    questions = [
        dataclasses.replace(question, constraint=constraint, max_new_tokens=6 if constraint else 24)
        for question, constraint in zip(request.questions, constraints, strict=True)
    ]
    cut = Request(request.conversation, questions, request.payload, request.payload_bytes)
    found = run_all(engine, [cut])
    assert isinstance(found[0, 0].error, IncompleteAnswer)
    assert [facts(found[0, n]) for n in (1, 2)] == [facts(wanted[0, n]) for n in (1, 2)]


def test_an_answer_that_is_whole_at_the_limit_is_an_answer(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    (request, *_) = mixed_requests(preparer)
    whole = run_all(engine, [changed(request, constraint=CHOICES)])[0, 0]
    assert whole.finish_reason == "stop"
    tokens = len(whole.token_ids) - 1
    cut = run_all(engine, [changed(request, constraint=CHOICES, max_new_tokens=tokens)])[0, 0]
    assert (cut.text, cut.finish_reason) == (whole.text, "stop")
    open_end = Constraint("regex", "[a-z]+")
    longer = changed(request, constraint=open_end, max_new_tokens=6)
    assert run_all(engine, [longer])[0, 0].finish_reason in ("stop", "length")


def test_log_probabilities_are_those_of_all_tokens(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    (request, *_) = mixed_requests(preparer)
    free = run_all(engine, [changed(request, logprobs=1)])[0, 0]
    done = run_all(engine, [changed(request, constraint=CHOICES, logprobs=1)])[0, 0]
    assert done.logprobs[0].top == free.logprobs[0].top
    assert done.logprobs[0].token != done.logprobs[0].top[0][0]
    assert done.logprobs[0].logprob < done.logprobs[0].top[0][1] - 0.01
    mean = sum(each.logprob for each in done.logprobs) / len(done.logprobs)
    assert done.mean_logprob == pytest.approx(mean, abs=1e-5)


def test_sampled_answers_have_their_form_and_follow_their_seed(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    (request, *_) = mixed_requests(preparer)
    found = []
    for seed in range(12):
        payload = dataclasses.replace(request.payload, seeds=[seed])
        hot = {"temperature": 2.0, "top_p": 0.9, "constraint": CHOICES}
        asked = [changed(request, payload, **hot) for _ in range(2)]
        first, second = run_all(engine, asked).values()
        assert first.text == second.text
        found.append(first.text)
    assert set(found) <= set(json.loads(CHOICES.text))
    assert len(set(found)) > 1


def test_pieces_make_up_an_answer_with_its_spaces(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    (request, *_) = mixed_requests(preparer)
    pieces: list[str] = []
    constraint = Constraint("regex", " {2}[ab] {2}")
    done = run_all(engine, [changed(request, constraint=constraint, on_text=pieces.append)])[0, 0]
    assert done.text in ("  a  ", "  b  ")
    assert "".join(pieces) == done.text


def test_a_form_that_fails_ends_its_question_alone(tiny: Path, alone: Found) -> None:
    """A constraint that llguidance gives up on as it goes."""
    engine, preparer = open_tiny(tiny)
    requests = with_constraints(mixed_requests(preparer))
    matcher = engine.constraints.compile(CONSTRAINTS[1])  # type: ignore[arg-type]
    matcher.consume_token(5)  # no digit: every copy of it has the error
    found = run_all(engine, requests)
    for key, done in found.items():
        if requests[key[0]].questions[key[1]].constraint == CONSTRAINTS[1]:
            assert isinstance(done.error, GenerateError)
            assert "the constraint of its answer failed" in str(done.error)
        else:
            assert facts(done) == alone[key]


def test_stop_strings_do_not_go_with_a_form(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    (request, *_) = mixed_requests(preparer)
    asked = changed(request, constraint=CHOICES, stop=("e",))
    with pytest.raises(PrepareError, match="leave out stop"):
        engine.prepare(Conversation(), asked.questions)


@pytest.mark.parametrize("vocabulary", [1, 31, 32, 33, 583])
def test_masked_logits_are_those_whose_bit_is_set(vocabulary: int) -> None:
    drawn = np.random.default_rng(vocabulary)
    allowed = drawn.random((3, vocabulary)) < 0.5
    padded = np.zeros((3, -(-vocabulary // 32) * 32), bool)
    padded[:, :vocabulary] = allowed
    bits = np.packbits(padded, axis=1, bitorder="little").view(np.int32)
    logits = torch.from_numpy(drawn.normal(size=(3, vocabulary)).astype(np.float32))
    found = allowed_logits(logits, torch.from_numpy(bits))
    assert torch.equal(found.isfinite(), torch.from_numpy(allowed))
    assert torch.equal(found[found.isfinite()], logits[torch.from_numpy(allowed)])


def test_a_sampled_token_is_one_that_may_be_chosen() -> None:
    logits = torch.randn(64, 40, generator=torch.Generator().manual_seed(0))
    bits = np.full((64, 2), -1, np.int32)
    bits[::2] = (1 << 3 | 1 << 30, 1 << 7)
    for top_p in (1.0, 0.8):
        draws = [Draw(3.0, top_p, torch.Generator().manual_seed(n)) for n in range(64)]
        tokens = choose_tokens(logits, draws, bits)[0][0].int().tolist()
        assert set(tokens[::2]) == {3, 30, 39}
        again = [Draw(3.0, top_p, torch.Generator().manual_seed(n)) for n in range(64)]
        assert tokens[1::2] == choose_tokens(logits, again)[0][0].int().tolist()[1::2]
