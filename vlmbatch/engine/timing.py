"""Work that an engine does to be timed: requests that run to their limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vlmbatch.core import Request
from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.queue import RequestQueue


def again(request: Request, max_new_tokens: int, tag: Any = None) -> Request:
    """Copy a request, with answers of this length."""
    questions = [
        dataclasses.replace(question, max_new_tokens=max_new_tokens, ignore_eos=True)
        for question in request.questions
    ]
    return Request(
        request.conversation,
        questions,
        request.payload,
        request.payload_bytes,
        tiles=request.tiles,
        tag=tag,
    )


def with_payload(request: Request, **changes: Any) -> Request:
    """Copy a request, with a changed payload."""
    payload = dataclasses.replace(request.payload, **changes)
    return Request(
        request.conversation,
        request.questions,
        payload,
        request.payload_bytes,
        tiles=request.tiles,
    )


def lengthen(request: Request, tokens: int) -> Request:
    """Repeat the question of a request until the prompt has this many tokens."""
    question = list(request.payload.question_ids[0])
    room = max(len(question), tokens - len(request.payload.prefix_ids))
    ids = (question * (room // len(question) + 1))[:room]
    return with_payload(request, question_ids=[ids])


def closed_queue(requests: Sequence[Request]) -> RequestQueue:
    """Return a queue that has these requests and takes no more."""
    queue = RequestQueue(len(requests) + 1, 1 << 62)
    for request in requests:
        queue.put(request)
    queue.close()
    return queue


def difference(before: EngineStats, after: EngineStats) -> EngineStats:
    """Subtract two states of the same counts and times; other fields as in the later one."""
    found = dataclasses.replace(after)
    for field in dataclasses.fields(EngineStats):
        value = getattr(after, field.name)
        if isinstance(value, int | float) and not field.name.startswith(("max_", "peak_")):
            setattr(found, field.name, value - getattr(before, field.name))
    return found
