"""Answers of a side, with the time and memory that they took."""

from __future__ import annotations

import dataclasses

from vlmbatch.core import TokenLogprob


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer to one question about one item, or the error in its place.

    Attributes:
        place: Place of the item in input order; see ``Item``.
        id: The item.
        question: The question.
        text: The answer, as a record has it; None if there is an error.
        error: Class name and message.
        new_tokens: Number of its tokens; None where the engine cannot tell.
        mean_logprob: Mean log-probability of its tokens; None where the engine cannot tell.
        ids: Ids of its tokens; empty where the engine cannot tell.
        tokens: Its tokens with their log-probabilities; empty where the engine cannot tell.
    """

    place: tuple[int, int]
    id: str
    question: str
    text: str | None = None
    error: str | None = None
    new_tokens: int | None = None
    mean_logprob: float | None = None
    ids: tuple[int, ...] = ()
    tokens: tuple[TokenLogprob, ...] = ()

    @property
    def key(self) -> tuple[tuple[int, int], str]:
        """Place and question, by which the answers of two sides belong together."""
        return self.place, self.question


@dataclasses.dataclass(frozen=True)
class Figures:
    """Engine of a side, and the time and memory that its answers took.

    Attributes:
        engine, model, revision, device, dtype: As the engine says; see ``Engine``.
        load_seconds: Time to load the model, conversion included.
        seconds: Time from the first picture to the last answer.
        memory_bytes: Peak memory of its processes on this machine; None where another machine
            answers.
        device_bytes: Peak memory on the device; None on a CPU.
    """

    engine: str
    model: str
    revision: str
    device: str
    dtype: str
    load_seconds: float
    seconds: float
    memory_bytes: int | None
    device_bytes: int | None


@dataclasses.dataclass(frozen=True)
class SideAnswers:
    """A side's answers and figures.

    Attributes:
        name: The side as the user wrote it.
        figures: What they took.
        answers: The answers, by ``Answer.key``.
    """

    name: str
    figures: Figures
    answers: dict[tuple[tuple[int, int], str], Answer]
