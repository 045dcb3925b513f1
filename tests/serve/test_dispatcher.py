"""Requests of many threads, one engine: tickets resolve, are cancelled, and fail alone."""

from __future__ import annotations

import concurrent.futures
import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vlmbatch.core import Conversation, Pixels, Question
from vlmbatch.engine import Engine, open_engine
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import DecodeError, EngineError, GenerateError, PrepareError
from vlmbatch.job import EngineOptions
from vlmbatch.serve.dispatcher import ClosedError, Dispatcher, QueueFullError

WAIT = 30


def about(key: str) -> Conversation:
    return Conversation.about("image", Pixels([np.zeros((8, 8, 3), np.uint8)]), key)


class Gate:
    """An answer that waits until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, key: str, question: str) -> str:
        self.begun.set()
        assert self.go.wait(WAIT)
        return f"{key}: {question}"


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go.set()


def test_the_engine_is_opened_on_the_thread_that_runs_it() -> None:
    threads: list[threading.Thread] = []

    def note(key: str, question: str) -> str:
        threads.append(threading.current_thread())
        return "yes"

    def open_scripted() -> Engine:
        threads.append(threading.current_thread())
        return ScriptedEngine(note)

    dispatcher = Dispatcher(open_scripted)
    dispatcher.submit(about("a"), [Question("Is it?")]).done.result(WAIT)
    dispatcher.close()
    opened, ran = threads
    assert opened is ran is not threading.current_thread()


def test_an_engine_that_cannot_be_opened_is_the_callers_error() -> None:
    before = set(threading.enumerate())
    begun: list[threading.Thread] = []

    def open_nothing() -> Engine:
        begun.append(threading.current_thread())
        raise EngineError("no such device")

    with pytest.raises(EngineError, match="no such device"):
        Dispatcher(open_nothing)
    begun[0].join(WAIT)
    assert set(threading.enumerate()) <= before


def test_many_threads_get_their_own_answers() -> None:
    dispatcher = Dispatcher(ScriptedEngine())

    def ask(number: int) -> list[str | None]:
        questions = [Question(f"Is it {number}?"), Question("Why?")]
        ticket = dispatcher.submit(about(str(number)), questions)
        return [completion.text for completion in ticket.done.result(WAIT)]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(100)))
    dispatcher.close()
    assert found == [[f"{n}: Is it {n}?", f"{n}: Why?"] for n in range(100)]
    assert dispatcher.num_waiting == dispatcher.num_running == 0


def test_pixels_are_loaded_on_worker_threads_after_fetching_on_others() -> None:
    dispatcher = Dispatcher(ScriptedEngine())
    names = []

    def load() -> Conversation:
        names.append(threading.current_thread().name)
        return about("a")

    def fetch() -> None:
        names.append(threading.current_thread().name)

    ticket = dispatcher.submit(load, [Question("What?")], fetch=fetch)
    assert ticket.ready.result(WAIT).tiles == 1
    assert ticket.done.result(WAIT)[0].text == "a: What?"
    dispatcher.close()
    assert [name.split("_")[0] for name in names] == ["fetch", "prepare"]


def test_text_is_streamed_as_it_is_decoded() -> None:
    dispatcher = Dispatcher(ScriptedEngine(lambda key, question: "one two three"))
    pieces: list[str] = []
    ticket = dispatcher.submit(about("a"), [Question("Count.", on_text=pieces.append)])
    assert ticket.done.result(WAIT)[0].text == "one two three"
    dispatcher.close()
    assert pieces == ["one", " two", " three"]


def test_what_goes_wrong_with_one_is_the_end_of_that_one_alone() -> None:
    dispatcher = Dispatcher(ScriptedEngine(fail=lambda key: key == "poison"))

    def broken() -> Conversation:
        raise DecodeError("not a picture")

    def worse() -> Conversation:
        raise ZeroDivisionError("a bug")

    def refused() -> None:
        raise DecodeError("not fetched")

    question = [Question("What?")]
    undecodable = dispatcher.submit(broken, question)
    unexpected = dispatcher.submit(worse, question)
    unfetched = dispatcher.submit(about("a"), question, fetch=refused)
    invalid = dispatcher.submit(about("a"), [Question("What?", max_new_tokens=0)])
    poison = dispatcher.submit(about("poison"), question)
    good = dispatcher.submit(about("a"), question)
    for ticket, kind, words in (
        (undecodable, DecodeError, "not a picture"),
        (unexpected, PrepareError, "ZeroDivisionError: a bug"),
        (unfetched, DecodeError, "not fetched"),
        (invalid, PrepareError, "max_new_tokens"),
    ):
        for future in (ticket.ready, ticket.done):
            with pytest.raises(kind, match=words):
                future.result(WAIT)
    assert isinstance(poison.done.result(WAIT)[0].error, GenerateError)
    assert good.done.result(WAIT)[0].text == "a: What?"
    assert dispatcher.drain(WAIT)
    dispatcher.close()


def test_a_full_queue_takes_no_more_until_there_is_room(gate: Gate) -> None:
    dispatcher = Dispatcher(ScriptedEngine(gate, batch_size=1), max_waiting=2)
    running = dispatcher.submit(about("0"), [Question("What?")])
    assert gate.begun.wait(WAIT)
    waiting = [dispatcher.submit(about(key), [Question("What?")]) for key in "12"]
    with pytest.raises(QueueFullError):
        dispatcher.submit(about("3"), [Question("What?")])
    assert (dispatcher.num_running, dispatcher.num_waiting) == (1, 2)
    waiting[0].cancel()
    last = dispatcher.submit(about("4"), [Question("What?")])
    gate.go.set()
    for ticket, key in ((running, "0"), (waiting[1], "2"), (last, "4")):
        assert ticket.done.result(WAIT)[0].text == f"{key}: What?"
    with pytest.raises(concurrent.futures.CancelledError):
        waiting[0].done.result(WAIT)
    dispatcher.close()


def test_a_request_that_is_cancelled_while_it_waits_never_reaches_the_engine(gate: Gate) -> None:
    engine = ScriptedEngine(gate, batch_size=1)
    dispatcher = Dispatcher(engine)
    first = dispatcher.submit(about("first"), [Question("What?")])
    assert gate.begun.wait(WAIT)
    waiting = dispatcher.submit(about("waiting"), [Question("What?")])
    waiting.ready.result(WAIT)
    loading, let_go = threading.Event(), threading.Event()

    def load() -> Conversation:
        loading.set()
        assert let_go.wait(WAIT)
        return about("loading")

    slow = dispatcher.submit(load, [Question("What?")])
    assert loading.wait(WAIT)
    for ticket in (waiting, slow):
        ticket.cancel()
    assert dispatcher.num_waiting == 0
    let_go.set()
    gate.go.set()
    assert first.done.result(WAIT)
    last = dispatcher.submit(about("last"), [Question("What?")])
    assert last.done.result(WAIT)
    dispatcher.close()
    assert [key for key, _ in engine.answered] == ["first", "last"]


def test_a_drained_dispatcher_answers_what_it_took_and_takes_no_more(gate: Gate) -> None:
    dispatcher = Dispatcher(ScriptedEngine(gate))
    taken = dispatcher.submit(about("a"), [Question("What?")])
    assert not dispatcher.drain(0.01)
    with pytest.raises(ClosedError):
        dispatcher.submit(about("b"), [Question("What?")])
    gate.go.set()
    assert dispatcher.drain(WAIT)
    assert taken.done.result(0)[0].text == "a: What?"
    dispatcher.close()
    dispatcher.close()


def test_closing_cancels_what_is_left_after_the_time_to_drain(gate: Gate) -> None:
    dispatcher = Dispatcher(ScriptedEngine(gate, batch_size=1))
    tickets = [dispatcher.submit(about(key), [Question("What?")]) for key in "abc"]
    assert gate.begun.wait(WAIT)
    closing = threading.Thread(target=dispatcher.close)
    closing.start()
    for ticket in tickets:
        with pytest.raises(concurrent.futures.CancelledError):
            ticket.done.result(WAIT)
    gate.go.set()
    closing.join(WAIT)
    assert not closing.is_alive()


def test_the_death_of_the_engine_ends_every_ticket_and_is_told() -> None:
    gate = threading.Event()
    dispatcher = Dispatcher(ScriptedEngine(die_after=1, gate=gate, batch_size=1))
    tickets = [dispatcher.submit(about(key), [Question("What?")]) for key in "abc"]
    for ticket in tickets:
        ticket.ready.result(WAIT)
    gate.set()
    assert dispatcher.died.wait(WAIT)
    ends = [ticket.done.exception(WAIT) for ticket in tickets]
    assert sum(end is None for end in ends) == 1
    assert all(isinstance(end, EngineError) for end in ends if end is not None)
    assert isinstance(dispatcher.failure, EngineError)
    with pytest.raises(EngineError, match="died, as it was told to"):
        dispatcher.submit(about("d"), [Question("What?")])
    assert dispatcher.drain(WAIT)
    dispatcher.close()


def test_an_answered_request_is_not_kept_in_memory() -> None:
    dispatcher = Dispatcher(ScriptedEngine())
    gc.disable()
    try:
        ticket = dispatcher.submit(about("a"), [Question("What?")])
        request = weakref.ref(ticket.ready.result(WAIT))
        assert ticket.done.result(WAIT)
        assert dispatcher.drain(WAIT)
        del ticket
        dispatcher.close()
        assert request() is None
    finally:
        gc.enable()


@pytest.fixture
def engine(tiny: Path) -> Iterator[Engine]:
    opened = open_engine(EngineOptions(model=str(tiny), device="cpu", batch_size=1))
    yield opened
    opened.close()


def test_a_cancelled_answer_gives_its_place_to_the_next(engine: Engine) -> None:
    """With one place, the second question is only answered once the first one, which would take
    thousands of steps, has let go.
    """
    dispatcher = Dispatcher(engine)
    begun = threading.Event()
    endless = Question(
        "Go on.", max_new_tokens=10**6, ignore_eos=True, on_text=lambda piece: begun.set()
    )
    first = dispatcher.submit(Conversation(), [endless])
    second = dispatcher.submit(about("b"), [Question("What?", max_new_tokens=3)])
    assert begun.wait(WAIT)
    assert not second.done.done()
    steps = engine.stats.decode_steps
    first.cancel()
    assert second.done.result(WAIT)[0].finish_reason
    assert engine.stats.decode_steps - steps < 20
    dispatcher.close()
