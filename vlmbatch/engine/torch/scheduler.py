"""The scheduler: which requests run next. Bookkeeping only: no tensor is touched here.

Policy. Requests are served in the order they came. A step of the engine is at most one encoder
call, then one prefill, then one decode step for everybody who is alive. So neither side starves:
while pictures wait, decoding goes on at one token per encoder call, and its batch grows by itself
to the size at which answers are finished as fast as pictures are encoded; while the places are
full, nothing is encoded that could not be placed, and decoding has the machine for itself until a
place is free, which is refilled at once. There are more places while all prompts in hand are short:
how many is worth it differs (budget.py).
"""

from __future__ import annotations

import collections
import dataclasses
import time
from typing import Any

from vlmbatch.core import Question, Request
from vlmbatch.engine.answer_text import AnswerText
from vlmbatch.engine.torch.budget import SHORT_TOKENS, MemoryBudget
from vlmbatch.prepare import Payload


@dataclasses.dataclass(eq=False, slots=True)
class Work:
    """A request in hand.

    Attributes:
        request: The request.
        payload: Its tiles and token ids.
        pending: Numbers of the questions that no sequence answers yet.
        unanswered: Questions without a completion.
        is_short: Whether its prompts are short, see ``budget.SHORT_TOKENS``.
        preempted: Sequences that lost their place, by question; they go on where they were.
        features: Features of the tiles encoded so far, one tensor a tile.
        encoded: Tiles among them.
        prefix: Keys and values of the prefix, for questions that start later; None while there are
            none or it is not computed.
        wait_seconds, vision_seconds, prefill_seconds: Phases of the request as a whole.
        shared_seconds: Its share of the busy time that is common to its questions.
        settled_seconds: The part of it that answered questions have taken.
    """

    request: Request
    payload: Payload
    pending: collections.deque[int]
    unanswered: int
    is_short: bool = True
    preempted: dict[int, LiveSequence] = dataclasses.field(default_factory=dict)
    features: list[Any] = dataclasses.field(default_factory=list)
    encoded: int = 0
    prefix: list[tuple[Any, Any]] | None = None
    wait_seconds: float | None = None
    vision_seconds: float = 0.0
    prefill_seconds: float = 0.0
    shared_seconds: float = 0.0
    settled_seconds: float = 0.0

    @property
    def is_encoded(self) -> bool:
        """Whether every tile has its features."""
        return self.encoded == len(self.payload.tiles)

    def prompt_ids(self, question: int) -> list[int]:
        """Token ids behind the prefix: the question, and the tokens of an answer that lost its
        place.
        """
        begun = self.preempted.get(question)
        return [*self.payload.question_ids[question], *(begun.tokens if begun else ())]

    def settle(self) -> float:
        """Close a question: give its part of the shared seconds that no other question has taken,
        and free what none needs any more.
        """
        share = (self.shared_seconds - self.settled_seconds) / self.unanswered
        self.settled_seconds += share
        self.unanswered -= 1
        if not self.unanswered:
            self.features, self.prefix = [], None
        return share

    def started(self) -> None:
        """Note that its first computation begins."""
        if self.wait_seconds is None:
            self.wait_seconds = time.perf_counter() - self.request.queued_at


@dataclasses.dataclass(eq=False, slots=True)
class LiveSequence:
    """A question that is being answered.

    Attributes:
        work: Its request.
        question: Number of the question.
        draw: How it samples; None for the most likely token.
        text: Follows its text.
        row: Its keys and values; None while it has no place.
        most_tokens: Longest answer that the context has room for.
        tokens: The answer so far.
        logprob: Sum of the log-probabilities of its tokens.
        logprobs: Log-probability of each token, and the most likely tokens with theirs, where the
            question wants them.
        batch_size: The most sequences alive beside it, itself counted.
        prefill_seconds, compute_seconds: Its own phases and share of the busy time.
        first_token_at: When its first token was there.
    """

    work: Work
    question: int
    draw: Any
    text: AnswerText
    most_tokens: int
    row: Any = None
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprob: float = 0.0
    logprobs: list[tuple[float, list[tuple[int, float]]]] = dataclasses.field(default_factory=list)
    batch_size: int = 1
    prefill_seconds: float = 0.0
    compute_seconds: float = 0.0
    first_token_at: float = 0.0

    @property
    def asked(self) -> Question:
        """Its question."""
        return self.work.request.questions[self.question]


@dataclasses.dataclass(frozen=True, slots=True)
class TileRun:
    """Tiles ``begin`` to ``end`` of a request, in one encoder call."""

    work: Work
    begin: int
    end: int


class Scheduler:
    """Requests in hand and what may be done with them now.

    Attributes:
        waiting: Requests with questions that no sequence answers yet, oldest first.
        live: Sequences being answered.
        max_sequences: How many may be alive, if their prompts are short; lowered when memory runs
            out.
        max_long_sequences: How many may be alive where a prompt is long.
        max_tiles: How many tiles an encoder call takes; likewise.
        max_prefill_tokens: How many tokens a prefill takes; likewise.
    """

    def __init__(self, budget: MemoryBudget, batch_size: int | None) -> None:
        self.waiting: collections.deque[Work] = collections.deque()
        self.live: list[LiveSequence] = []
        self.budget = budget
        self.max_sequences = batch_size or budget.caps.short_sequences
        self.max_long_sequences = batch_size or budget.caps.sequences
        self.max_tiles: int | None = None
        self.max_prefill_tokens = budget.prefill_tokens

    @property
    def tiles_at_once(self) -> int:
        """Tiles in one encoder call: what the budget allows, and what memory has shown to hold."""
        allowed = self.budget.tiles_at_once
        return allowed if self.max_tiles is None else min(allowed, self.max_tiles)

    @property
    def places(self) -> int:
        """Number of sequences that may be alive, with those that wait now."""
        if all(work.is_short for work in self.waiting) and all(
            sequence.work.is_short for sequence in self.live
        ):
            return self.max_sequences
        return min(self.max_sequences, self.max_long_sequences)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing in hand."""
        return not self.waiting and not self.live

    def add(self, request: Request) -> Work:
        """Takes a request."""
        count, payload = len(request.questions), request.payload
        is_short = payload.prompt_tokens <= SHORT_TOKENS
        work = Work(request, payload, collections.deque(range(count)), count, is_short)
        self.waiting.append(work)
        return work

    def wants_more(self) -> bool:
        """Whether another request should be taken: until an encoder call is full, and every place
        has somebody waiting for it.
        """
        places = self.places
        if len(self.live) >= places:
            return not self.waiting
        unencoded = sum(len(work.payload.tiles) - work.encoded for work in self.waiting)
        pending = sum(len(work.pending) for work in self.waiting)
        return (
            unencoded < 2 * self.tiles_at_once
            and pending < places - len(self.live) + self.tiles_at_once
        )

    def next_tiles(self) -> list[TileRun]:
        """The tiles of the next encoder call; none when nobody waits for them or no place would be
        free for their questions.
        """
        placed, room, places, runs = len(self.live), self.tiles_at_once, self.places, []
        for work in self.waiting:
            # Who waits behind a request takes no place from it: text alone needs no encoding.
            if not work.is_encoded:
                if room == 0 or placed >= places:
                    break
                take = min(room, len(work.payload.tiles) - work.encoded)
                runs.append(TileRun(work, work.encoded, work.encoded + take))
                room -= take
            placed += len(work.pending)
        return runs

    def next_questions(self) -> list[tuple[Work, int]]:
        """Questions that can be prefilled together now, in order; a prompt longer than a prefill
        goes alone.
        """
        found: list[tuple[Work, int]] = []
        tokens, places = 0, self.places
        for work in self.waiting:
            if not work.is_encoded:
                break
            prefix = 0 if work.prefix is not None else len(work.payload.prefix_ids)
            for question in work.pending:
                tokens += prefix + len(work.prompt_ids(question))
                prefix = 0
                if len(self.live) + len(found) >= places or (
                    found and tokens > self.max_prefill_tokens
                ):
                    return found
                found.append((work, question))
        return found

    def start(self, sequences: list[LiveSequence]) -> None:
        """Takes sequences from the waiting to the living."""
        for sequence in sequences:
            sequence.work.pending.remove(sequence.question)
            sequence.work.preempted.pop(sequence.question, None)
        self.live += sequences
        for sequence in sequences:
            sequence.batch_size = len(self.live)
        self.waiting = collections.deque(work for work in self.waiting if work.pending)

    def preempt(self, sequences: list[LiveSequence]) -> None:
        """Put living sequences back to the front of the waiting; they keep their tokens, and go on
        with them once they have a place again.
        """
        for sequence in reversed(sequences):
            self.live.remove(sequence)
            sequence.row = None
            sequence.work.preempted[sequence.question] = sequence
            sequence.work.pending.appendleft(sequence.question)
            if sequence.work in self.waiting:
                self.waiting.remove(sequence.work)
            self.waiting.appendleft(sequence.work)

    def drop(self, work: Work) -> None:
        """Forgets a request that is waiting."""
        if work in self.waiting:
            self.waiting.remove(work)
