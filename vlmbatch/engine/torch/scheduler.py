"""The scheduler: chooses the requests of each step. It touches no tensor.

Policy: first come, first served. An engine step is at most one encoder call, then one prefill, then
one decode step for all live sequences, so no phase starves. While images wait, decoding goes on at
one token per encoder call, and its batch grows to the size at which answers finish as fast as
images are encoded. At full capacity nothing more is encoded; decoding has the machine to itself
until a sequence finishes, which is replaced at once. The capacity is larger while all prompts are
short (budget.py).
"""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Collection
from typing import Any, TypeAlias

from vlmbatch.core import FinishReason, Question, Request
from vlmbatch.engine.answer_text import AnswerText
from vlmbatch.engine.constraints import ConstraintState
from vlmbatch.engine.torch.budget import SHORT_TOKENS, MemoryBudget
from vlmbatch.engine.torch.pace import Pending
from vlmbatch.errors import GenerateError, IncompleteAnswer, ItemError
from vlmbatch.prepare import Payload

Ending: TypeAlias = tuple[FinishReason | None, ItemError | None]
"""Reason that an answer ended, or the error that it became."""


@dataclasses.dataclass(eq=False, slots=True)
class Work:
    """A request in progress.

    Attributes:
        request: The request.
        payload: Its tiles and token ids.
        pending: Numbers of the questions without a live sequence.
        unanswered: Number of questions without a completion.
        is_short: Whether its prompts are short, see ``budget.SHORT_TOKENS``.
        preempted: Preempted sequences, by question; they resume with their tokens.
        features: Features of the tiles encoded so far, one tensor per tile.
        encoded: Number of tiles encoded so far.
        prefix: Its prefix, or a part of it, whose keys and values are in the pool; None if they are
            not computed or no question continues them.
        is_searched: Whether the pool was searched for its prompt.
        cached_tokens: Tokens of the prompt that an earlier request left in the pool.
        wait_seconds, vision_seconds, prefill_seconds: Phases of the whole request.
        shared_seconds: Its share of the busy time, common to its questions.
        settled_seconds: The part of it that is booked to answered questions.
    """

    request: Request
    payload: Payload
    pending: collections.deque[int]
    unanswered: int
    is_short: bool = True
    preempted: dict[int, LiveSequence] = dataclasses.field(default_factory=dict)
    features: list[Any] = dataclasses.field(default_factory=list)
    encoded: int = 0
    prefix: Any = None
    is_searched: bool = False
    cached_tokens: int = 0
    wait_seconds: float | None = None
    vision_seconds: float = 0.0
    prefill_seconds: float = 0.0
    shared_seconds: float = 0.0
    settled_seconds: float = 0.0

    @property
    def is_encoded(self) -> bool:
        """True if every tile has its features."""
        return self.encoded == len(self.payload.tiles)

    def prompt_ids(self, question: int) -> list[int]:
        """Token ids after the prefix: the question, and the tokens of a preempted answer."""
        begun = self.preempted.get(question)
        return [*self.payload.question_ids[question], *(begun.tokens if begun else ())]

    def settle(self) -> float:
        """Close a question. Return its part of the shared seconds not yet booked, and free features
        after the last question.
        """
        share = (self.shared_seconds - self.settled_seconds) / self.unanswered
        self.settled_seconds += share
        self.unanswered -= 1
        if not self.unanswered:
            self.features = []
        return share

    def started(self) -> None:
        """Note the start of its first computation."""
        if self.wait_seconds is None:
            self.wait_seconds = time.perf_counter() - self.request.queued_at


@dataclasses.dataclass(eq=False, slots=True)
class LiveSequence:
    """A question that is being answered.

    Attributes:
        work: Its request.
        question: Number of the question.
        draw: Sampling options; None for the most likely token.
        text: The text of the answer so far.
        slot: Its slot of the KV cache; None if it has none.
        max_tokens: Longest answer that the question and the context allow.
        constraint: The state of its constraint; None for any text.
        tokens: The answer so far.
        logprob: Sum of the log-probabilities of its tokens.
        logprobs: Log-probability of each token, and the most likely tokens with theirs, if the
            question asks for them.
        batch_size: Largest number of live sequences beside it, itself counted.
        prefill_seconds, compute_seconds: Its own phases and share of the busy time.
        first_token_at: Time of its first token.
    """

    work: Work
    question: int
    draw: Any
    text: AnswerText
    max_tokens: int
    constraint: ConstraintState | None = None
    slot: Any = None
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

    def words(self, end_ids: Collection[int]) -> list[int]:
        """Return its tokens without end tokens."""
        return [token for token in self.tokens if token not in end_ids]

    def follow(self, end_ids: Collection[int], dtype: str) -> Ending | None:
        """Stream its newest text. Return its end; None if it goes on.

        Args:
            end_ids: Tokens that end an answer.
            dtype: The dtype that the model computes in.
        """
        if not math.isfinite(self.logprob):
            name = dtype.partition("+")[0]
            text = f"the model gave no finite numbers in {name}; try --dtype float32"
            return None, GenerateError(text)
        stop = self.tokens[-1] in end_ids and not self.asked.ignore_eos
        is_last = stop or len(self.tokens) >= self.max_tokens
        if self.text.is_needed:
            self.text.follow(self.words(end_ids), is_last=is_last)
        if self.text.is_broken:
            return "cancelled", None
        if self.constraint is not None and (is_last or self.constraint.fault):
            return self._end_of_form(self.constraint)
        if stop or self.text.is_stopped:
            return "stop", None
        return ("length", None) if is_last else None

    def _end_of_form(self, constraint: ConstraintState) -> Ending:
        """Return the end of a constrained answer. Its end tokens come where it is whole."""
        if constraint.fault:
            return None, GenerateError(f"the constraint of its answer failed: {constraint.fault}")
        if constraint.is_complete:
            return "stop" if constraint.is_over else "length", None
        limit = self.asked.max_new_tokens
        if self.max_tokens == limit:
            text = f"--max-new-tokens {limit} ended the answer before it was whole: allow more"
        else:
            text = "the model's context ended the answer before it was whole: shorten the prompt"
        return None, IncompleteAnswer(text)


@dataclasses.dataclass(frozen=True, slots=True)
class TileRun:
    """Tiles ``begin`` to ``end`` of a request, in one encoder call."""

    work: Work
    begin: int
    end: int


def book_vision(runs: list[TileRun], seconds: float) -> None:
    """Book the seconds of an encoder call on the requests of its tiles."""
    tiles = sum(run.end - run.begin for run in runs)
    for run in runs:
        run.work.vision_seconds += seconds
        run.work.shared_seconds += seconds * (run.end - run.begin) / tiles


class Scheduler:
    """Requests in progress and their next steps.

    Attributes:
        waiting: Requests with pending questions, oldest first.
        live: Sequences being answered.
        max_sequences: Maximum number of live sequences if their prompts are short; lowered when
            memory runs out.
        max_long_sequences: Maximum number of live sequences if a prompt is long.
        max_tiles: Maximum number of tiles in an encoder call; lowered when memory runs out.
        max_prefill_tokens: Maximum number of tokens in a prefill; lowered when memory runs out.
    """

    def __init__(self, budget: MemoryBudget, batch_size: int | None) -> None:
        self.waiting: collections.deque[Work] = collections.deque()
        self.live: list[LiveSequence] = []
        self.budget = budget
        self.max_sequences = batch_size or budget.max_sequences(is_short=True)
        self.max_long_sequences = batch_size or budget.max_sequences(is_short=False)
        self.max_tiles: int | None = None
        self.max_prefill_tokens = budget.prefill_tokens

    @property
    def tiles_at_once(self) -> int:
        """Maximum number of tiles in one encoder call, by the budget and by out-of-memory errors so
        far.
        """
        allowed = self.budget.tiles_at_once
        return allowed if self.max_tiles is None else min(allowed, self.max_tiles)

    @property
    def capacity(self) -> int:
        """Maximum number of live sequences, with the requests that wait now."""
        if all(work.is_short for work in self.waiting) and all(
            sequence.work.is_short for sequence in self.live
        ):
            return self.max_sequences
        return min(self.max_sequences, self.max_long_sequences)

    @property
    def is_idle(self) -> bool:
        """True if no request is in progress."""
        return not self.waiting and not self.live

    def add(self, request: Request) -> Work:
        """Add a request to the waiting ones."""
        count, payload = len(request.questions), request.payload
        is_short = payload.prompt_tokens <= SHORT_TOKENS
        work = Work(request, payload, collections.deque(range(count)), count, is_short)
        self.waiting.append(work)
        return work

    def wants_more(self) -> bool:
        """True if another request should be taken: until an encoder call is full, and a question
        waits for every free slot.
        """
        capacity = self.capacity
        if len(self.live) >= capacity:
            return not self.waiting
        unencoded = sum(len(work.payload.tiles) - work.encoded for work in self.waiting)
        pending = sum(len(work.pending) for work in self.waiting)
        return (
            unencoded < 2 * self.tiles_at_once
            and pending < capacity - len(self.live) + self.tiles_at_once
        )

    def next_tiles(self) -> list[TileRun]:
        """Tiles of the next encoder call; none if no request needs one or its questions would find
        no capacity.
        """
        placed, room, capacity, runs = len(self.live), self.tiles_at_once, self.capacity, []
        for work in self.waiting:
            # Later requests take no capacity from it: text alone needs no encoding.
            if not work.is_encoded:
                if room == 0 or placed >= capacity:
                    break
                take = min(room, len(work.payload.tiles) - work.encoded)
                runs.append(TileRun(work, work.encoded, work.encoded + take))
                room -= take
            placed += len(work.pending)
        return runs

    def next_questions(self) -> list[tuple[Work, int]]:
        """Questions to prefill together now, in order; an overlong prompt goes alone."""
        found: list[tuple[Work, int]] = []
        tokens, capacity = 0, self.capacity
        for work in self.waiting:
            if not work.is_encoded:
                break
            computed = work.prefix.tokens if work.prefix else 0
            prefix = max(0, len(work.payload.prefix_ids) - computed)
            for question in work.pending:
                tokens += prefix + len(work.prompt_ids(question))
                prefix = 0
                if len(self.live) + len(found) >= capacity or (
                    found and tokens > self.max_prefill_tokens
                ):
                    return found
                found.append((work, question))
        return found

    def pending_answers(self) -> list[Pending]:
        """The live sequences, as the pace of decoding sees them."""
        return [
            Pending(
                len(sequence.work.payload.tiles) / len(sequence.work.request.questions),
                sequence.max_tokens,
                len(sequence.tokens),
            )
            for sequence in self.live
        ]

    def start(self, sequences: list[LiveSequence]) -> None:
        """Move sequences from waiting to live."""
        for sequence in sequences:
            sequence.work.pending.remove(sequence.question)
            sequence.work.preempted.pop(sequence.question, None)
        self.live += sequences
        for sequence in sequences:
            sequence.batch_size = len(self.live)
        self.waiting = collections.deque(work for work in self.waiting if work.pending)

    def preempt(self, sequences: list[LiveSequence]) -> None:
        """Move live sequences back to the front of the waiting ones; they keep their tokens and
        resume once there is capacity.
        """
        for sequence in reversed(sequences):
            self.live.remove(sequence)
            sequence.slot = None
            sequence.work.preempted[sequence.question] = sequence
            sequence.work.pending.appendleft(sequence.question)
            if sequence.work in self.waiting:
                self.waiting.remove(sequence.work)
            self.waiting.appendleft(sequence.work)

    def drop(self, work: Work) -> None:
        """Remove a waiting request."""
        if work in self.waiting:
            self.waiting.remove(work)
