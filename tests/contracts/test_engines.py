"""What holds for every engine: one class, and a row for each engine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import write_tiny_checkpoint
from tests.serve.conftest import live
from vlmbatch.core import (
    Completion,
    Constraint,
    Conversation,
    Part,
    Pixels,
    Question,
    Request,
    Turn,
)
from vlmbatch.engine import Engine, EngineStats, RequestQueue, open_engine
from vlmbatch.engine.openai.engine import EndpointEngine
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import ItemError, PrepareError
from vlmbatch.job import EngineOptions

LONG = 24


def open_named(name: str, folder: Path, **options: object) -> Engine:
    """An engine of the table, on a checkpoint, as all of these tests open it."""
    settings = {"device": "cpu", "dtype": "float32", "batch_size": 3} | options
    return open_engine(EngineOptions(model=str(folder), engine=name, **settings))  # type: ignore[arg-type]


def open_llama_server(folder: Path) -> Engine:
    """llama.cpp on the converted checkpoint, with few threads: other tests have the other cores."""
    cache = folder.parent / "cache"
    return open_named("llama-server", folder, threads=1, cache_dir=str(cache))


class OpenedEndpoint(EndpointEngine):
    """The engine of an endpoint that is ended with it."""

    def __init__(self, engine: EndpointEngine, end: Callable[[], None]) -> None:
        self.__dict__.update(engine.__dict__)
        self._end = end

    def close(self) -> None:
        super().close()
        self._end()


def open_endpoint(folder: Path) -> Engine:
    """`vlmbatch serve` of the checkpoint, behind an endpoint."""
    stack = contextlib.ExitStack()
    server = stack.enter_context(live(open_named("torch", folder)))
    options = EngineOptions(model=str(folder), engine="openai", endpoint=server.url, in_flight=3)
    engine = open_engine(options)
    assert isinstance(engine, EndpointEngine)
    return OpenedEndpoint(engine, stack.close)


def say(key: str, question: str) -> str:
    """An answer of more words than any test lets through."""
    return " ".join(f"{question}{key}{number}" for number in range(LONG + 1))


OPENERS: dict[str, Callable[[Path], Engine]] = {
    "scripted": lambda folder: ScriptedEngine(say),
    "torch": lambda folder: open_named("torch", folder),
    "transformers": lambda folder: open_named("transformers", folder),
    "onnx": lambda folder: open_named("onnx", folder, cache_dir=str(folder.parent / "cache")),
    "llama-server": lambda folder: open_llama_server(folder),
    "openai": lambda folder: open_endpoint(folder),
}
"""A row an engine: opens it on the tiny checkpoint."""


def picture(seed: int, width: int = 40, height: int = 30) -> Pixels:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Pixels([np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width]])


def about(seed: int) -> Conversation:
    return Conversation.about("image", picture(seed), f"{seed}.png")


def put_all(*requests: Request) -> RequestQueue:
    """A closed queue of requests."""
    queue = RequestQueue(len(requests) + 1, 1 << 62)
    for request in requests:
        queue.put(request)
    queue.close()
    return queue


def answer(engine: Engine, *requests: Request) -> list[list[Completion]]:
    """Completions by request and question; checks that each question has exactly one."""
    done = list(engine.run(put_all(*requests)))
    count = Counter((id(completion.request), completion.question) for completion in done)
    assert count == Counter(
        (id(request), number) for request in requests for number in range(len(request.questions))
    )
    found = {(id(completion.request), completion.question): completion for completion in done}
    return [
        [found[id(request), number] for number in range(len(request.questions))]
        for request in requests
    ]


def ask(engine: Engine, conversation: Conversation, *questions: Question) -> list[Completion]:
    return answer(engine, engine.prepare(conversation, questions))[0]


def long(text: str = "What is this?", **options: object) -> Question:
    """A question whose answer runs to its limit."""
    settings = {"max_new_tokens": LONG, "ignore_eos": True} | options
    return Question(text, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=OPENERS)
def engine(request: pytest.FixtureRequest, tiny: Path) -> Iterator[Engine]:
    if request.param == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    opened = OPENERS[request.param](tiny)
    yield opened
    opened.close()


class TestEngines:
    def test_it_states_what_it_is(self, engine: Engine) -> None:
        for name in ("name", "model", "revision", "device", "dtype"):
            assert isinstance(getattr(engine, name), str), name
        assert engine.name
        assert engine.model
        assert isinstance(engine.stats, EngineStats)

    def test_every_question_is_answered_once_and_as_it_is_alone(self, engine: Engine) -> None:
        questions = [
            [long(f"Question {number} about {seed}?") for number in range(seed % 3 + 1)]
            for seed in range(5)
        ]
        requests = [engine.prepare(about(seed), asked) for seed, asked in enumerate(questions)]
        together = answer(engine, *requests)
        for seed, asked in enumerate(questions):
            alone = ask(engine, about(seed), *asked)
            assert [one.text for one in alone] == [one.text for one in together[seed]]
            assert all(one.error is None and one.text for one in alone)

    def test_a_completion_says_whose_it_is_and_what_it_took(self, engine: Engine) -> None:
        request = engine.prepare(about(0), [long("What?"), long("Why?")])
        request.tag = object()
        busy = engine.stats.busy_seconds
        found = answer(engine, request)[0]
        for number, one in enumerate(found):
            assert one.request is request
            assert one.question == number
            assert one.finish_reason in ("stop", "length")
            for count in (one.prompt_tokens, one.new_tokens, one.batch_size):
                assert count is None or count > 0
            assert one.mean_logprob is None or one.mean_logprob <= 0
        shares = [one.timing.compute_seconds for one in found]
        if None not in shares:
            assert sum(shares) == pytest.approx(  # type: ignore[arg-type]
                engine.stats.busy_seconds - busy, rel=1e-3
            )

    def test_a_request_keeps_its_words_and_drops_its_pixels(self, engine: Engine) -> None:
        request = engine.prepare(about(0), [long()])
        assert request.conversation == about(0).without_pixels()
        assert request.payload_bytes >= 0

    def test_answers_are_as_long_as_they_may_be(self, engine: Engine) -> None:
        request = engine.prepare(about(1), [long(max_new_tokens=n) for n in (1, 4, 9)])
        found = answer(engine, request)[0]
        assert [one.new_tokens for one in found] == [1, 4, 9]
        assert [one.finish_reason for one in found] == ["length"] * 3
        assert [len(one.token_ids) for one in found if one.token_ids] in ([], [1, 4, 9])

    def test_text_alone_is_answered(self, engine: Engine) -> None:
        system = Turn("system", (Part("text", "Be brief."),))
        said = Turn("user", (Part("text", "Hello."),))
        reply = Turn("assistant", (Part("text", "Hello!"),))
        for turns in ((), (system,), (said, reply), (system, said, reply)):
            (found,) = ask(engine, Conversation(turns), long("What now?"))
            assert found.error is None
            assert found.text is not None

    def test_text_alone_shares_a_batch_with_pictures(self, engine: Engine) -> None:
        text = engine.prepare(Conversation(key="text"), [long("What now?")])
        with_picture = engine.prepare(about(2), [long("What now?")])
        (first,), (second,) = answer(engine, text, with_picture)
        assert first.text == ask(engine, Conversation(key="text"), long("What now?"))[0].text
        assert second.text == ask(engine, about(2), long("What now?"))[0].text

    def test_two_pictures_are_one_conversation(self, engine: Engine) -> None:
        both = Conversation(
            (
                Turn("user", (Part("picture", pixels=picture(0)), Part("text", "One."))),
                Turn("assistant", (Part("text", "I see."),)),
                Turn("user", (Part("picture", pixels=picture(1)), Part("text", "Two."))),
            )
        )
        (found,) = ask(engine, both, long("Which is it?"))
        assert found.error is None
        assert found.text

    def test_a_stop_string_ends_an_answer_before_it(self, engine: Engine) -> None:
        (whole,) = ask(engine, about(3), long())
        assert whole.text is not None
        for place in (1, len(whole.text) // 2, len(whole.text) - 4):
            stop = whole.text[place : place + 3]  # letters are tokens: it lies across three
            (found,) = ask(engine, about(3), long(stop=("never written", stop)))
            assert found.finish_reason == "stop"
            assert found.text == whole.text[: whole.text.index(stop)].strip()

    def test_pieces_make_up_the_text(self, engine: Engine) -> None:
        pieces: list[list[str]] = [[] for _ in range(3)]
        questions = [
            long("What?", on_text=pieces[0].append),
            long("Why?", on_text=pieces[1].append, max_new_tokens=5),
            long("Which?", on_text=pieces[2].append, max_new_tokens=1),
        ]
        for one, heard in zip(ask(engine, about(4), *questions), pieces, strict=True):
            assert "".join(heard).strip() == one.text
            assert all(heard)

    def test_what_belongs_to_a_stop_string_is_never_streamed(self, engine: Engine) -> None:
        (whole,) = ask(engine, about(3), long())
        assert whole.text is not None
        stop = whole.text[4:8]
        pieces: list[str] = []
        (found,) = ask(engine, about(3), long(stop=(stop,), on_text=pieces.append))
        assert "".join(pieces).strip() == found.text

    def test_a_listener_that_raises_ends_its_question_alone(self, engine: Engine) -> None:
        calls = []

        def fail(piece: str) -> None:
            calls.append(piece)
            raise OSError("the client went away")

        request = engine.prepare(about(0), [long("What?", on_text=fail), long("Why?")])
        other = engine.prepare(about(1), [long("Which?")])
        (broken, sound), (third,) = answer(engine, request, other)
        assert broken.finish_reason == "cancelled"
        assert len(calls) == 1
        assert sound.text == ask(engine, about(0), long("Why?"))[0].text
        assert third.text == ask(engine, about(1), long("Which?"))[0].text

    def test_cancelled_before_it_begins(self, engine: Engine) -> None:
        request = engine.prepare(about(0), [long("What?"), long("Why?")])
        request.cancel(0)
        cancelled, kept = answer(engine, request)[0]
        assert (cancelled.finish_reason, cancelled.error) == ("cancelled", None)
        assert not cancelled.text
        assert not cancelled.new_tokens
        assert kept.text == ask(engine, about(0), long("Why?"))[0].text

    def test_cancelled_while_it_is_answered(self, engine: Engine) -> None:
        heard: list[str] = []

        def listen(piece: str) -> None:
            heard.append(piece)
            request.cancel(1)

        request = engine.prepare(about(0), [long("What?"), long("Why?", on_text=listen)])
        kept, cancelled = answer(engine, request)[0]
        assert kept.finish_reason == "length"
        if cancelled.finish_reason == "cancelled":  # unless all of its text came as one piece
            (whole,) = ask(engine, about(0), long("Why?"))
            assert whole.text is not None
            assert whole.text.startswith(str(cancelled.text))
            assert str(cancelled.text).startswith("".join(heard).strip())
        else:
            assert "".join(heard).strip() == cancelled.text

    def test_a_whole_request_is_cancelled(self, engine: Engine) -> None:
        request = engine.prepare(about(0), [long("What?"), long("Why?")])
        request.cancel()
        assert [one.finish_reason for one in answer(engine, request)[0]] == ["cancelled"] * 2

    def test_sampling_follows_its_seed_and_nothing_else(self, engine: Engine) -> None:
        hot = [long("What?", temperature=1.5, seed=seed) for seed in (0, 1)]
        alone = [ask(engine, about(0), question)[0].text for question in hot]
        requests = [engine.prepare(about(0), hot), engine.prepare(about(1), [long("Why?")])]
        assert [one.text for one in answer(engine, *requests)[0]] == alone

    def test_log_probabilities_belong_to_the_tokens(self, engine: Engine) -> None:
        plain, listed = ask(engine, about(0), long("What?"), long("What?", logprobs=2))
        assert not plain.logprobs
        if listed.logprobs:
            assert len(listed.logprobs) == listed.new_tokens
            assert all(row.logprob <= 0 and len(row.top) == 2 for row in listed.logprobs)
            mean = sum(row.logprob for row in listed.logprobs) / len(listed.logprobs)
            assert mean == pytest.approx(listed.mean_logprob, abs=1e-4)

    def test_what_cannot_be_asked_is_said_by_prepare(self, engine: Engine) -> None:
        for questions in ([], [Question("\ud800")], [Question("?", max_new_tokens=0)]):
            with pytest.raises(PrepareError):
                engine.prepare(about(0), questions)

    def test_an_answer_has_the_form_that_is_asked_for_or_prepare_refuses_it(
        self, engine: Engine
    ) -> None:
        forms = [
            Constraint("choices", '["red", "green and blue"]'),
            Constraint("regex", "[0-9]{2}:[0-9]{2}"),
            Constraint("schema", '{"type": "array", "items": {"type": "boolean"}, "maxItems": 2}'),
        ]
        asked = [Question("What?", 40, constraint=form) for form in forms]
        if not getattr(engine, "takes_constraints", False):
            for question in asked:
                with pytest.raises(PrepareError, match=question.constraint.kind):  # type: ignore[union-attr]
                    engine.prepare(about(0), [question])
            return
        mixed = [engine.prepare(about(0), [*asked, long("Why?")]), engine.prepare(about(1), asked)]
        together = answer(engine, *mixed)
        for seed, found in enumerate(together):
            chosen, matched, valid = (str(one.text) for one in found[:3])
            assert chosen in ("red", "green and blue")
            assert re.fullmatch("[0-9]{2}:[0-9]{2}", matched)
            assert all(each in (True, False) for each in json.loads(valid))
            for question, one in zip(asked, found, strict=False):
                assert one.finish_reason == "stop"
                assert ask(engine, about(seed), question)[0].text == one.text
        assert together[0][3].text == ask(engine, about(0), long("Why?"))[0].text
        with pytest.raises(PrepareError, match="stop"):
            engine.prepare(about(0), [dataclasses.replace(asked[0], stop=("e",))])

    def test_a_run_ends_when_the_queue_is_stopped(self, engine: Engine) -> None:
        queue = RequestQueue(10, 1 << 62)
        for seed in range(6):
            queue.put(engine.prepare(about(seed), [long()]))
        for _ in engine.run(queue):
            queue.stop()
        assert queue.ended

    def test_a_run_waits_for_what_is_put_later(self, engine: Engine) -> None:
        queue = RequestQueue(10, 1 << 62)
        found: list[Completion] = []
        worker = threading.Thread(target=lambda: found.extend(engine.run(queue)))
        worker.start()
        for seed in range(3):
            queue.put(engine.prepare(about(seed), [long()]))
        queue.close()
        worker.join(60)
        assert len(found) == 3

    def test_it_is_prepared_on_any_thread(self, engine: Engine) -> None:
        requests: dict[int, Request] = {}

        def prepare(seed: int) -> None:
            requests[seed] = engine.prepare(about(seed), [long()])

        threads = [threading.Thread(target=prepare, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = answer(engine, *(requests[seed] for seed in range(4)))
        for seed, (one,) in enumerate(found):
            assert one.text == ask(engine, about(seed), long())[0].text


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_a_request_that_cannot_be_answered_ends_alone(
    name: str, tiny: Path, tmp_path: Path
) -> None:
    """Its prompt has more image tokens than the model has features."""
    another = write_tiny_checkpoint(tmp_path / "another", scale_factor=1)
    engine, other = open_named(name, tiny), open_named(name, another)
    broken = other.prepare(about(0), [long(), long("Why?")])
    sound = [engine.prepare(about(seed), [long()]) for seed in (1, 2)]
    failed, (first,), (second,) = answer(engine, broken, *sound)
    assert all(isinstance(one.error, ItemError) and one.text is None for one in failed)
    assert first.text == ask(engine, about(1), long())[0].text
    assert second.text == ask(engine, about(2), long())[0].text
