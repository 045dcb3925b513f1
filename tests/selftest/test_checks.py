"""The self-test finds an engine that is wrong, in each way that one can be."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from vlmbatch.core import Completion, Conversation, Question, Request, TokenLogprob
from vlmbatch.engine import EngineStats, RequestQueue
from vlmbatch.engine.base import EnginePlan
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import EngineError, GenerateError
from vlmbatch.job import EngineOptions
from vlmbatch.selftest.asking import Asked, ask
from vlmbatch.selftest.checks import (
    Check,
    Subject,
    check_agreement,
    check_kernels,
    difference_margin,
)
from vlmbatch.selftest.report import Report, without_names
from vlmbatch.selftest.run import examine
from vlmbatch.selftest.scenes import scenes

KNOWN = {
    (scene.name, question): answer
    for scene in scenes(with_clip=True)
    for question, answer in scene.questions
}


class Knowing(ScriptedEngine):
    """Answers as the demo model does, and samples words by the seed; everything is right."""

    def __init__(self) -> None:
        super().__init__(batch_size=100, model="demo")
        self.stats.memory = {"weight_bytes": 1 << 20, "limit_bytes": 1 << 40}
        self.seen = 0

    def run(self, source: RequestQueue) -> Iterator[Completion]:
        requests = list(source)
        for request in requests:
            yield from self.answer(request, len(requests))

    def answer(self, request: Request, together: int) -> Iterator[Completion]:
        """Answer the questions of a request among so many."""
        for number, question in enumerate(request.questions):
            self.seen += 1
            done = Completion(request, number, batch_size=together)
            if request.conversation.key.startswith("bad") or len(question.text) > 10_000:
                done.error = GenerateError("it cannot be answered")
            else:
                text = KNOWN[request.conversation.key, question.text]
                self._speak(done, self.word(text, question, together))
                done.mean_logprob = self.logprob()
                if question.logprobs is not None and done.text is not None:
                    words = done.text.split()
                    done.logprobs = [TokenLogprob(word, self.logprob(), ()) for word in words]
                    done.token_ids = ()
            yield done

    def word(self, text: str, question: Question, together: int) -> str:
        """The answer, or a sampled one."""
        return f"{text} {self.draw(question)}" if question.temperature else text

    def draw(self, question: Question) -> int:
        return question.seed % 5

    def logprob(self) -> float:
        return -4e-5


def report_of(engine: ScriptedEngine) -> Report:
    return examine(EnginePlan.of(engine), EngineOptions(model="demo"), "cpu", lambda what: None)


def failed(report: Report) -> list[str]:
    return [check.name for check in report.checks if check.status == "fail"]


def test_an_engine_that_is_right_is_well() -> None:
    report = report_of(Knowing())
    assert failed(report) == []
    assert report.is_well
    assert list(report.lines())[-1] == "all is well"
    assert {check.name for check in report.checks if check.status != "pass"} == {"constraints"}
    (bad,) = [check for check in report.checks if check.name == "bad pictures"]
    assert re.match(r"all \d+ good questions beside 3 bad requests are answered$", bad.found)


class OneWordWhenBatched(Knowing):
    def word(self, text: str, question: Question, together: int) -> str:
        right = super().word(text, question, together)
        return right.replace("red circle.", "red square.") if together > 1 else right


class NotANumber(Knowing):
    def logprob(self) -> float:
        return math.nan


class OffLogprob(Knowing):
    def logprob(self) -> float:
        return -0.5


class Losing(Knowing):
    def answer(self, request: Request, together: int) -> Iterator[Completion]:
        found = list(super().answer(request, together))
        yield from found[1:] if request.conversation.key == "stack" and together > 1 else found


class Doubling(Knowing):
    def answer(self, request: Request, together: int) -> Iterator[Completion]:
        found = list(super().answer(request, together))
        yield from found[:1] * 2 + found[1:] if request.conversation.key == "word" else found


class Killed(Knowing):
    def run(self, source: RequestQueue) -> Iterator[Completion]:
        requests = list(source)
        has_bad = any(request.conversation.key.startswith("bad") for request in requests)
        for request in requests:
            for done in self.answer(request, len(requests)):
                if has_bad:
                    done.text, done.error = None, GenerateError("the batch failed")
                yield done


class Hungry(Knowing):
    def run(self, source: RequestQueue) -> Iterator[Completion]:
        taken = np.ones(600 << 20, np.uint8)
        yield from super().run(source)
        assert taken[-1]


class OverLimit(Knowing):
    def __init__(self) -> None:
        super().__init__()
        self.stats.memory = {"limit_bytes": 1 << 30}
        self.stats.peak_device_bytes = 3 << 30


class Seedless(Knowing):
    def draw(self, question: Question) -> int:
        return self.seen


class Endless(Knowing):
    def answer(self, request: Request, together: int) -> Iterator[Completion]:
        for done in super().answer(request, together):
            question = request.questions[done.question]
            if question.stop:
                done.text, done.finish_reason = (
                    KNOWN[request.conversation.key, question.text],
                    "stop",
                )
            yield done


class Unconstrained(Knowing):
    takes_constraints = True

    def prepare(self, conversation: Conversation, questions: Sequence[Question]) -> Request:
        free = [dataclasses.replace(question, constraint=None) for question in questions]
        return super().prepare(conversation, free)


class Dying(Knowing):
    def answer(self, request: Request, together: int) -> Iterator[Completion]:
        if request.questions[0].temperature:
            raise EngineError("the device fell off the bus")
        yield from super().answer(request, together)


class Forgetful(Knowing):
    """Mixes up questions that share a picture."""

    def word(self, text: str, question: Question, together: int) -> str:
        return "Blue." if text == "Circle." and together > 1 and not question.logprobs else text


@pytest.mark.parametrize(
    ("engine", "checks"),
    [
        (OneWordWhenBatched, {"known answers", "reference", "one and many"}),
        (NotANumber, {"log-probabilities"}),
        (OffLogprob, {"log-probabilities"}),
        (Losing, {"answers", "known answers", "reference"}),
        (Doubling, {"answers"}),
        (Killed, {"bad pictures"}),
        (Hungry, {"memory"}),
        (OverLimit, {"memory"}),
        (Seedless, {"seeds"}),
        (Endless, {"stop strings"}),
        (Unconstrained, {"constraints"}),
        (Dying, {"engine"}),
        (Forgetful, {"the same again"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_an_engine_that_is_wrong_is_found(
    engine: Callable[[], ScriptedEngine], checks: set[str]
) -> None:
    report = report_of(engine())
    assert checks <= set(failed(report))
    assert not report.is_well
    assert all(check.advice for check in report.checks if check.status == "fail")
    assert list(report.lines())[-1].startswith("broken: ")


def test_a_model_that_is_not_here_is_held_to_the_words_alone() -> None:
    engine = Knowing()
    engine.model = "nobody/has-this-model"
    checks = {check.name: check for check in report_of(engine).checks}
    assert checks["known answers"].status == "pass"
    assert checks["reference"].status == "skip"
    assert "is not on this machine" in checks["reference"].found


def answered(text: str, *rows: tuple[str, float, tuple[tuple[str, float], ...]]) -> Completion:
    request = Request(Conversation(), [Question("?")], None)
    return Completion(request, 0, text=text, logprobs=[TokenLogprob(*row) for row in rows])


ORIGINAL = answered("a b", ("a", -0.1, ()), ("b", -0.7, (("b", -0.7), ("c", -0.8), ("d", -3.0))))


@pytest.mark.parametrize(
    ("word", "dtype", "status"),
    [
        ("c", "bfloat16", "pass"),
        ("c", "float32", "fail"),
        ("d", "bfloat16", "fail"),
        ("e", "bfloat16", "fail"),
        ("d", "float32+int8", "fail"),
    ],
)
def test_a_difference_counts_unless_rounding_explains_it(
    word: str, dtype: str, status: str
) -> None:
    other = answered(f"a {word}", ("a", -0.1, ()), (word, -0.7, ()))
    check, equality = check_agreement(
        Subject("torch", "cpu", dtype, True), "reference", [other], [ORIGINAL]
    )
    assert (check.status, equality.equal, equality.tokens_before) == (status, 0, 1)


def test_integers_may_change_some_answers() -> None:
    other = answered("a d", ("a", -0.1, ()), ("d", -0.7, ()))
    quantized = Subject("torch", "cpu", "float32+int8", True)
    check, _ = check_agreement(quantized, "reference", [other, ORIGINAL], [ORIGINAL, ORIGINAL])
    assert check.status == "warn"
    assert difference_margin(other, ORIGINAL) == pytest.approx(2.3)


def test_a_report_names_no_folder_and_no_host() -> None:
    report = Report()
    report.add(Check("engine", "fail", "/home/jo/models/x.gguf: gone; http://jo.lan:80/v1 too"))
    text = json.dumps(report.to_dict())
    assert "/home" not in text
    assert "jo" not in text
    assert "x.gguf" in text
    assert without_names("and/or 3/4 of a/b") == "and/or 3/4 of a/b"


def test_steps_and_layers_that_are_not_as_fast_as_they_could_be_are_told() -> None:
    stats = EngineStats()
    assert check_kernels(stats) is None
    stats.graphs = {"recorded": 3, "replayed": 70, "notes": []}
    stats.fused = {"used": True, "seconds": 4.2, "notes": []}
    found = check_kernels(stats)
    assert found == Check("kernels", "pass", "3 decode steps are recorded, 70 replayed")
    stats.graphs["notes"], stats.fused["notes"] = ["torch 2.12 is old"], ["no triton"]
    found = check_kernels(stats)
    assert found is not None
    assert (found.status, found.found) == ("warn", "torch 2.12 is old; no triton")


class Waiting(ScriptedEngine):
    """Answers once somebody has heard how far it is."""

    def __init__(self) -> None:
        super().__init__(batch_size=4)
        self.heard = threading.Event()

    def run(self, source: RequestQueue) -> Iterator[Completion]:
        self.stats.tiles += 12
        assert self.heard.wait(60)
        yield from super().run(source)


def test_how_far_an_engine_is_is_said_while_it_works() -> None:
    engine, said = Waiting(), list[str]()
    engine.stats.tiles = 100  # of a run before

    def say(what: str) -> None:
        said.append(what)
        if what.startswith("12 tiles"):
            engine.heard.set()

    found = ask(engine, [Asked(Conversation(), (Question("a"),))], say, every_seconds=0.01)
    assert "12 tiles encoded, 0 tokens decoded" in said
    assert found.owed == len(found.flat) == 1
