"""The engine of an endpoint against a server that fails in every way."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import functools
import gc
import io
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.contracts.test_engines import put_all
from tests.engine.openai.server import (
    Server,
    Step,
    answers,
    breaks_off,
    drips,
    reply,
    says,
    sends,
    serving,
    streams,
)
from vlmbatch.core import Completion, Conversation, Part, Pixels, Question, Turn
from vlmbatch.engine import RequestQueue, open_engine, plan_engine
from vlmbatch.engine.openai.client import EndpointClient, Refused, Unreachable
from vlmbatch.engine.openai.engine import EndpointEngine
from vlmbatch.engine.openai.messages import Messages
from vlmbatch.engine.openai.opening import CLIP, PICTURE
from vlmbatch.engine.openai.retries import CircuitBreaker, RetryLimits
from vlmbatch.errors import EngineError, GenerateError, JobError, ModelLoadError, PrepareError
from vlmbatch.job import EngineOptions, Job

QUICK = RetryLimits(
    first_seconds=0.001, longest_seconds=0.01, gone_seconds=0.2, busy_seconds=0.3, failures=5
)
MESSAGES = Messages(PICTURE, CLIP)


def engine_for(
    url: str,
    in_flight: int = 4,
    timeout: float = 30,
    key: str | None = None,
    messages: Messages = MESSAGES,
    limits: RetryLimits = QUICK,
) -> EndpointEngine:
    connect = functools.partial(EndpointClient, url, key, connections=in_flight, timeout=timeout)
    return EndpointEngine(
        connect, messages, model="m", endpoint=url, in_flight=in_flight, limits=limits
    )


def ask(engine: EndpointEngine, *questions: Question | str) -> list[Completion]:
    """One request a question, in their order."""
    asked = [Question(each) if isinstance(each, str) else each for each in questions]
    requests = [engine.prepare(Conversation(key="k"), [question]) for question in asked]
    found = {id(done.request): done for done in engine.run(put_all(*requests))}
    assert len(found) == len(requests)
    return [found[id(request)] for request in requests]


def ask_one(server: Server, question: Question | str = "What?", **options: Any) -> Completion:
    return ask(engine_for(server.url, **options), question)[0]


def test_an_answer_with_everything() -> None:
    logprobs = {"content": [{"token": "yes", "logprob": -0.5}, {"token": "!", "logprob": -0.1}]}
    with serving(answers("yes!", logprobs=logprobs)) as server:
        done = ask_one(server)
    assert (done.text, done.finish_reason) == ("yes!", "stop")
    assert (done.prompt_tokens, done.new_tokens) == (7, 2)
    assert done.mean_logprob == pytest.approx(-0.3)
    (body,) = server.bodies
    assert body["messages"] == [{"role": "user", "content": "What?"}]
    assert (body["model"], body["temperature"], body["logprobs"]) == ("m", 0.0, True)


def test_what_is_not_stated_is_null() -> None:
    with serving(
        sends(b'{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}')
    ) as server:
        done = ask_one(server)
    assert done.text == "yes"
    assert (done.prompt_tokens, done.new_tokens, done.mean_logprob) == (None, None, None)


@pytest.mark.parametrize(
    "steps",
    [
        [says(500), says(502)],
        [says(429), says(503), says(429, retry_after="0")],
        [breaks_off],
        [lambda handler: handler.reset()],
        [sends(b"<html>")],
        [sends(b"[1, 2]")],
        [sends(b'{"choices": [{}]}')],
        [sends(b'{"choices": "none"}')],
        [sends(b'{"error": {"message": "overloaded", "code": 503}}')],
        [sends(b'{"error": "the worker died"}')],
    ],
)
def test_what_may_pass_is_asked_again(steps: list[Step]) -> None:
    with serving(*steps) as server:
        done = ask_one(server)
    assert (done.text, done.error) == ("yes", None)
    assert len(server.bodies) == len(steps) + 1


@pytest.mark.parametrize("step", [breaks_off, sends(b"<html>"), sends(b'{"choices": [{}]}')])
def test_what_may_have_been_answered_is_asked_once_more_only(step: Step) -> None:
    with serving(step, step) as server:
        done = ask_one(server)
    assert isinstance(done.error, GenerateError)
    assert "asked twice" in str(done.error)
    assert len(server.bodies) == 2


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_bad_request_is_an_error_of_its_item(status: int) -> None:
    with serving(says(status, "too many pictures")) as server:
        first, second = ask(engine_for(server.url, in_flight=1), "What?", "Why?")
    assert isinstance(first.error, GenerateError)
    assert f"{status}: too many pictures" in str(first.error)
    assert second.text == "yes"
    assert len(server.bodies) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_address_ends_the_run(status: int) -> None:
    with serving(says(status)) as server, pytest.raises(EngineError, match=str(status)):
        ask_one(server)


def test_a_redirect_ends_the_run() -> None:
    with serving(says(307)) as server, pytest.raises(EngineError, match="307"):
        ask_one(server)


def test_a_failing_question_is_given_up_after_some_tries() -> None:
    with serving(*[says(500, "out of luck")] * QUICK.tries) as server:
        first, second = ask(engine_for(server.url, in_flight=1), "What?", "Why?")
    assert "out of luck" in str(first.error)
    assert f"asked {QUICK.tries} times" in str(first.error)
    assert second.text == "yes"


def test_an_endpoint_that_fails_all_questions_ends_the_run() -> None:
    with serving(*[says(500)] * 1000) as server, pytest.raises(EngineError, match="all failed"):
        ask(engine_for(server.url), *(f"What {number}?" for number in range(20)))


def test_an_endpoint_that_is_gone_is_said_at_once_and_ends_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving() as server:
        engine = engine_for(server.url)
    with pytest.raises(EngineError, match="the endpoint is gone"):
        ask(engine, "What?", "Why?")
    (line,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert line.getMessage().startswith(f"{server.url}: no connection: Connection refused; ")
    assert line.getMessage().endswith("; trying again for 0 s")


def test_an_endpoint_that_comes_back_is_said(caplog: pytest.LogCaptureFixture) -> None:
    breaker = CircuitBreaker(RetryLimits(), "http://here/v1")
    for _ in range(3):
        breaker.unreachable(Unreachable("no connection: refused"))
    breaker.answered()
    breaker.answered()
    assert [record.getMessage() for record in caplog.records] == [
        "http://here/v1: no connection: refused; trying again for 60 s",
        "http://here/v1: connected again",
    ]


class FailsSoonAfter(EndpointClient):
    """Refuses as many questions as can be open, one a step of the event loop."""

    def __init__(self, count: int) -> None:
        super().__init__("http://127.0.0.1:1/v1", None, connections=count, timeout=30)
        self._asked, self._count = 0, count
        self._all_asked = asyncio.Event()

    async def complete(self, body: Any, on_event: Any) -> None:
        steps = self._asked
        self._asked += 1
        if self._asked == self._count:
            self._all_asked.set()
        await self._all_asked.wait()
        for _ in range(steps):
            await asyncio.sleep(0)
        raise Refused(404, f"no such model, says question {steps}")


def test_questions_that_fail_while_the_run_ends_leave_no_error_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    count = 16
    engine = EndpointEngine(
        lambda: FailsSoonAfter(count),
        MESSAGES,
        model="m",
        endpoint="http://127.0.0.1:1/v1",
        in_flight=count,
        limits=QUICK,
    )
    with pytest.raises(EngineError, match="no such model"):
        ask(engine, *(f"What {number}?" for number in range(count)))
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_a_storm_of_429_ends_the_run_when_it_never_ends() -> None:
    with serving(*[says(429)] * 10_000) as server, pytest.raises(EngineError, match="429"):
        ask(engine_for(server.url), "What?", "Why?")


def test_a_storm_of_429_passes_and_all_are_answered() -> None:
    with serving(*[says(429, retry_after="0.01")] * 30) as server:
        engine = engine_for(server.url, limits=dataclasses.replace(QUICK, busy_seconds=60))
        found = ask(engine, *(f"What {number}?" for number in range(12)))
    assert [done.text for done in found] == ["yes"] * 12


def test_no_more_than_in_flight_are_asked_at_a_time() -> None:
    together = threading.Barrier(3, timeout=20)

    def meets(handler: Any) -> None:
        together.wait()
        handler.send(200, reply())

    with serving(*[meets] * 9) as server:
        ask(engine_for(server.url, in_flight=3), *(f"What {number}?" for number in range(9)))
    assert server.most == 3


def test_a_slow_drip_is_given_up_in_time() -> None:
    with serving(drips(threading.Event()), drips(threading.Event())) as server:
        done = ask_one(server, timeout=0.3)
    assert "no whole answer within 0.3 s" in str(done.error)


def test_cancelling_closes_the_connection() -> None:
    gone = threading.Event()

    def step(handler: Any) -> None:
        request.cancel()
        drips(gone)(handler)

    with serving(step) as server:
        engine = engine_for(server.url)
        request = engine.prepare(Conversation(), [Question("What?")])
        (done,) = engine.run(put_all(request))
        assert gone.wait(20)
    assert done.finish_reason == "cancelled"


def test_stopping_the_queue_ends_the_run_at_once() -> None:
    gone = threading.Event()
    with serving(answers(), drips(gone)) as server:
        engine = engine_for(server.url, in_flight=1)
        source = RequestQueue(10)
        for text in ("What?", "Why?"):
            source.put(engine.prepare(Conversation(), [Question(text)]))
        for _ in engine.run(source):
            source.stop()
        assert source.ended


def test_log_probabilities_that_are_refused_are_not_asked_for_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(says(400, "logprobs is not supported")) as server:
        found = ask(engine_for(server.url, in_flight=1), "What?", "Why?")
    assert [(done.text, done.mean_logprob) for done in found] == [("yes", None)] * 2
    assert ["logprobs" in body for body in server.bodies] == [True, False, False]
    assert "asking without log-probabilities" in caplog.text


def test_the_limit_has_another_name_where_it_is_asked_for() -> None:
    with serving(says(400, "use 'max_completion_tokens' instead of 'max_tokens'")) as server:
        assert ask_one(server).text == "yes"
    assert "max_completion_tokens" in server.bodies[1]
    assert "max_tokens" not in server.bodies[1]


def test_text_that_was_heard_is_not_heard_again() -> None:
    heard: list[str] = []
    with serving(
        streams("A red ", "circle ", ends=False), streams("A red ", "circle ", "here.")
    ) as server:
        done = ask_one(server, Question("What?", on_text=heard.append))
    assert done.text == "A red circle here."
    assert "".join(heard) == done.text


def test_an_error_inside_a_stream_is_asked_again() -> None:
    def step(handler: Any) -> None:
        handler.begin(200, content_type="text/event-stream")
        handler.wfile.write(b'data: {"error": {"message": "the engine died"}}\n\n')

    with serving(step, streams("yes")) as server:
        assert ask_one(server, Question("What?", on_text=str)).text == "yes"


def test_a_whole_answer_in_place_of_a_stream() -> None:
    heard: list[str] = []
    with serving(answers("no stream")) as server:
        done = ask_one(server, Question("What?", on_text=heard.append))
    assert done.text == "no stream"
    assert "".join(heard) == "no stream"


def test_temperature_and_seed_are_the_same_on_every_try() -> None:
    with serving(says(500), breaks_off) as server:
        ask_one(server, Question("What?", temperature=0.7, seed=3))
    assert len({(body["temperature"], body["seed"]) for body in server.bodies}) == 1
    with pytest.raises(PrepareError, match="at most 2"):
        engine_for(server.url).prepare(Conversation(), [Question("?", temperature=3.0)])


def test_the_key_is_sent_and_never_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    steps = [says(500, "bad key sk-hidden"), says(401, "bad key sk-hidden")]
    with serving(*steps) as server, pytest.raises(EngineError) as caught:
        ask_one(server, key="sk-hidden")
    assert {headers["authorization"] for headers in server.headers} == {"Bearer sk-hidden"}
    assert "sk-hidden" not in str(caught.value)
    assert "sk-hidden" not in caplog.text


def sent_pictures(messages: Messages, pixels: Pixels, kind: Any = "picture") -> list[Image.Image]:
    conversation = Conversation((Turn("user", (Part(kind, pixels=pixels),)),))
    (message,) = messages.prepare(conversation, [Question("What?")]).payload.asking("What?")
    urls = [part["image_url"]["url"] for part in message["content"] if "image_url" in part]
    files = (base64.b64decode(url.partition(",")[2]) for url in urls)
    return [Image.open(io.BytesIO(data)) for data in files]


def noise(width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_pictures_are_shrunk_to_what_the_model_uses_and_never_enlarged() -> None:
    (small,) = sent_pictures(MESSAGES, Pixels([noise(30, 20)]))
    assert small.format == "PNG"
    assert np.array_equal(np.asarray(small), noise(30, 20))
    (large,) = sent_pictures(MESSAGES, Pixels([noise(4100, 1000)]))
    assert large.size == (2048, 500)
    original = Messages(PICTURE, CLIP, is_original=True, jpeg_quality=80)
    (whole,) = sent_pictures(original, Pixels([noise(4100, 1000)]))
    assert (whole.size, whole.format) == ((4100, 1000), "JPEG")


def test_a_clip_is_its_frames_between_the_words_of_the_prompt() -> None:
    pixels = Pixels([noise(64, 48), noise(64, 48)], (0.0, 61.0), 90.0)
    conversation = Conversation((Turn("user", (Part("clip", pixels=pixels),)),))
    (message,) = MESSAGES.prepare(conversation, [Question("What?")]).payload.asking("What?")
    texts = [part["text"] for part in message["content"] if part["type"] == "text"]
    assert texts[0].startswith("You are provided the following series of two frames from a 0:01:30")
    assert texts[0].endswith("Frame from 00:00:")
    assert texts[1:] == ["\nFrame from 01:01:", "\n\n", "What?"]
    assert [each.size for each in sent_pictures(MESSAGES, pixels, "clip")] == [(512, 512)] * 2


class TestOptions:
    @pytest.mark.parametrize(
        "options, complaint",
        [
            ({"endpoint": None}, "name it with --endpoint"),
            ({"endpoint": "ftp://here"}, "must be a URL"),
            ({"endpoint": "http://me:secret@here"}, "without a user"),
            ({"endpoint": "http://here/v1?key=secret"}, "without a user"),
            ({"quantize": "int8"}, "no --quantize int8"),
            ({"detail": "native"}, "no --detail native"),
            ({"device": "cpu"}, "no --device cpu"),
            ({"dtype": "float32"}, "no --dtype float32"),
            ({"batch_size": 3}, "use --in-flight"),
            ({"temperature": 3.0}, "at most 2"),
            ({"in_flight": 0}, "in_flight must be at least 1"),
            ({"jpeg_quality": 0}, "jpeg_quality must be from 1"),
            ({"api_key_env": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE"),
            ({"api_key_file": "/no/such/file"}, "/no/such/file"),
            ({"engine": "torch"}, "endpoint goes with --engine openai"),
        ],
    )
    def test_what_cannot_be_honoured_is_named(self, options: Any, complaint: str) -> None:
        with pytest.raises(JobError, match=complaint) as caught:
            given = {"engine": "openai", "endpoint": "http://127.0.0.1:1", "model": "m", **options}
            plan_engine(Job(inputs="x", task="caption", **given))
        assert "secret" not in str(caught.value)

    def test_a_host_alone_means_v1(self) -> None:
        for url in ("http://here:8000", "http://here:8000/", "http://here:8000/v1/"):
            options = EngineOptions(engine="openai", endpoint=url, model="m")
            assert open_engine(options).device == "http://here:8000/v1"

    def test_the_only_model_is_taken(self, tmp_path: Path) -> None:
        file = tmp_path / "key"
        file.write_text("sk-file\n", encoding="utf-8")
        models = sends(b'{"data": [{"id": "the-only-one"}]}')
        with serving(models) as server:
            options = EngineOptions(engine="openai", endpoint=server.url, api_key_file=str(file))
            assert plan_engine(options).model == "the-only-one"
            assert server.headers[0]["authorization"] == "Bearer sk-file"
            server.steps = [sends(b'{"data": [{"id": "one"}, {"id": "two"}]}'), says(404)]
            with pytest.raises(JobError, match="one, two"):
                plan_engine(options)
            with pytest.raises(ModelLoadError, match="--model"):
                plan_engine(options)

    def test_the_models_are_asked_for_in_a_notebook_too(self) -> None:
        async def cell(url: str) -> str:
            return plan_engine(EngineOptions(engine="openai", endpoint=url)).model

        with serving(sends(b'{"data": [{"id": "the-only-one"}]}')) as server:
            assert asyncio.run(cell(server.url)) == "the-only-one"


class TestOpening:
    """An endpoint in a list with another engine after it opens if it can be reached."""

    def opened(self, url: str, engines: str = "openai,torch") -> str:
        options = EngineOptions(engine=engines, endpoint=url, model="demo")
        engine = open_engine(options)
        engine.close()
        return engine.name

    def test_the_next_engine_answers_where_there_is_no_connection(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with serving() as server:
            pass
        assert self.opened(server.url) == "torch"
        first, second = (record.getMessage() for record in caplog.records if "engine" in record.msg)
        assert first.startswith(f"engine openai: {server.url}: no connection")
        assert first.endswith("; trying torch")
        assert second == "engine torch answers"

    @pytest.mark.parametrize("status", [502, 504])
    def test_a_proxy_without_its_server_does_not_open(self, status: int) -> None:
        with serving(says(status)) as server:
            assert self.opened(server.url) == "torch"

    @pytest.mark.parametrize("step", [sends(b'{"data": []}'), says(404), says(401), says(503)])
    def test_any_other_answer_opens(self, step: Step) -> None:
        with serving(step) as server:
            assert self.opened(server.url) == "openai"

    def test_a_server_may_start_later_where_no_other_engine_could_answer(self) -> None:
        with serving() as server:
            pass
        assert self.opened(server.url, "openai") == "openai"
