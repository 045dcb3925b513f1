"""Validate prepared requests before they can harm the others in their batch."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from vlmbatch.core import Request
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.prepare import Payload


def find_fault(request: Request, shape: ModelShape) -> str | None:
    """Return the reason why a request cannot be computed; None if it can."""
    payload = request.payload
    if not isinstance(payload, Payload) or not request.questions:
        return "the request was not prepared by this engine"
    edge = shape.vision.image_size
    if payload.tiles.shape[1:] != (3, edge, edge) or payload.tiles.dtype != "uint8":
        return f"tiles are uint8 (n, 3, {edge}, {edge}), not {payload.tiles.shape}"
    questions = len(request.questions)
    if len(payload.question_ids) != questions or len(payload.seeds) not in (0, questions):
        return f"{len(payload.question_ids)} prompts for {questions} questions"
    counts = collections.Counter(payload.prefix_ids)
    if (found := counts[shape.image_token_id]) != len(payload.tiles) * shape.tile_tokens:
        return f"{found} image tokens for {len(payload.tiles)} tiles of {shape.tile_tokens}"
    if counts and not 0 <= min(counts) <= max(counts) < shape.text.vocabulary:
        return "its token ids are not in the vocabulary"
    if payload.prompt_tokens >= shape.text.context:
        return f"{payload.prompt_tokens} tokens; the context is {shape.text.context}"
    return None


def are_words(ids: Sequence[int], shape: ModelShape) -> bool:
    """True if there are token ids, all of them text in the vocabulary."""
    return (
        bool(ids)
        and 0 <= min(ids) <= max(ids) < shape.text.vocabulary
        and shape.image_token_id not in ids
    )
