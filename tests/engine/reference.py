"""The reference that engines are held against: transformers, in float32, one answer at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Completion, Conversation, Question, Request
from vlmbatch.engine import Engine, RequestQueue, open_engine
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.job import EngineOptions
from vlmbatch.prepare import Payload, Preparer

Key = tuple[int, int]
"""Number of a request, and of its question."""


class Reference:
    """The transformers engine on a checkpoint.

    Attributes:
        engine: The engine.
    """

    def __init__(self, folder: Path, batch_size: int | None = 1) -> None:
        options = EngineOptions(
            model=str(folder),
            engine="transformers",
            device="cpu",
            dtype="float32",
            batch_size=batch_size,
        )
        self.engine = open_engine(options)

    def answer(self, conversation: Conversation, questions: Sequence[Question]) -> list[Completion]:
        """The answers to the questions about a conversation."""
        request = self.engine.prepare(
            conversation, [dataclasses.replace(question, on_text=None) for question in questions]
        )
        found = run_all(self.engine, [request])
        return [found[0, number] for number in range(len(questions))]


def changed(request: Request, payload: Payload | None = None, **options: Any) -> Request:
    """The same request with another payload, or other options of all its questions."""
    questions = [dataclasses.replace(question, **options) for question in request.questions]
    return Request(
        request.conversation, questions, payload or request.payload, request.payload_bytes
    )


def build_engine(folder: Path, engine: TorchEngine, **options: Any) -> TorchEngine:
    """Another engine on the model that an engine has loaded: with another ``budget``,
    ``batch_size``, ``recorder`` or ``record_after``.
    """
    checkpoint = find_checkpoint(str(folder))
    return TorchEngine(
        options.pop("network", engine.network),
        options.pop("budget", engine.budget),
        Preparer.from_checkpoint(checkpoint),
        model_name=engine.model,
        revision=engine.revision,
        end_ids=checkpoint.end_token_ids(),
        **options,
    )


def run_all(engine: Engine, requests: Sequence[Request]) -> dict[Key, Completion]:
    """Completions of requests by (number of the request, question)."""
    queue = RequestQueue(len(requests) + 1, 1 << 62)
    for number, request in enumerate(requests):
        request.tag = number
        queue.put(request)
    queue.close()
    found: dict[Key, Completion] = {}
    for completion in engine.run(queue):
        key = completion.request.tag, completion.question
        assert key not in found  # one completion a question
        found[key] = completion
    return found


def answers(engine: Engine, requests: Sequence[Request]) -> dict[Key, Sequence[int]]:
    """Tokens of the answers by (number of the request, question)."""
    return {key: completion.token_ids for key, completion in run_all(engine, requests).items()}
