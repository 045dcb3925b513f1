"""From completions to the JSON of OpenAI's API."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from typing import Any

from vlmbatch.core import Completion, TokenLogprob
from vlmbatch.serve.errors import ApiError

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


def to_json(value: Any) -> bytes:
    """Encode a value; half a surrogate pair becomes an escape sequence."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def random_id() -> str:
    """Return 32 hexadecimal digits. They tell requests apart and are no secret: asking the system
    for each would let other threads go first.
    """
    return f"{random.getrandbits(128):032x}"


class ReplyMaker:
    """Makes the JSON of one reply: whole, or in chunks.

    Attributes:
        id: Id of the reply.
    """

    def __init__(self, model: str) -> None:
        """Name the model that answers."""
        self.id = f"chatcmpl-{random_id()}"
        self._model, self._created = model, int(time.time())

    def whole(
        self, completions: Sequence[Completion], seconds: float | None = None
    ) -> dict[str, Any]:
        """Return the whole reply.

        Args:
            completions: One for each answer.
            seconds: Time since the request came; None for a request of a file.

        Raises:
            ApiError: An answer could not be generated.
        """
        check_answered(completions)
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": completion.text, "refusal": None},
                "logprobs": logprobs_of(completion),
                "finish_reason": completion.finish_reason,
            }
            for number, completion in enumerate(completions)
        ]
        timings = timings_of(completions)
        phases = [timings[f"{phase}_seconds"] for phase in ("vision", "prefill", "decode")]
        known = [seconds for seconds in phases if seconds is not None]
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": usage_of(completions),
            **({} if seconds is None else {"processing_time": round(seconds, 6)}),
            "inference_time": round(sum(known), 6) if known else None,
            "timings": timings,
        }

    def piece(self, number: int, delta: dict[str, Any], **rest: Any) -> dict[str, Any]:
        """Return a chunk about one answer.

        Args:
            number: Number of the answer.
            delta: What is new of its message.
            rest: ``finish_reason``, ``logprobs``.
        """
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": None, **rest}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Return the chunk with the usage, which has no choices."""
        head = self._head("chat.completion.chunk")
        return {**head, "choices": [], "usage": usage_of(completions)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": None,
        }


def check_answered(completions: Sequence[Completion]) -> None:
    """Check that every answer is there.

    Raises:
        ApiError: One could not be generated.
    """
    for completion in completions:
        if completion.error is not None:
            raise ApiError(400, str(completion.error), code="generation_failed")


def usage_of(completions: Sequence[Completion]) -> dict[str, Any]:
    """Count tokens: the prompt once, and all answers. Details that the engine cannot tell are left
    out.
    """
    first = completions[0]
    prompt = first.prompt_tokens or 0
    new = sum(completion.new_tokens or 0 for completion in completions)
    details = {"cached_tokens": first.cached_tokens, "image_tokens": first.image_tokens}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {
            name: count for name, count in details.items() if count is not None
        },
    }


def timings_of(completions: Sequence[Completion]) -> dict[str, Any]:
    """Return seconds of the phases, of the answer that took longest in each; None where the engine
    cannot tell.
    """
    found: dict[str, Any] = {}
    for name in ("wait", "vision", "prefill", "decode", "compute"):
        values = [getattr(each.timing, f"{name}_seconds") for each in completions]
        known = [value for value in values if value is not None]
        total = sum(known) if name == "compute" else max(known, default=0.0)
        found[f"{name}_seconds"] = round(total, 6) if known else None
    return found


def logprobs_of(completion: Completion) -> dict[str, Any] | None:
    """Return the log-probabilities of an answer's tokens; None if they were not asked for."""
    if completion.request.questions[completion.question].logprobs is None:
        return None
    return {"content": [_token(entry) for entry in completion.logprobs], "refusal": None}


def _token(entry: TokenLogprob) -> dict[str, Any]:
    top = [_named(token, logprob) for token, logprob in entry.top]
    return {**_named(entry.token, entry.logprob), "top_logprobs": top}


def _named(token: str, logprob: float) -> dict[str, Any]:
    # A token that is half a character has no text of its own, and its bytes are not known here.
    data = None if "\ufffd" in token else list(token.encode("utf-8", "replace"))
    return {"token": token, "logprob": max(logprob, LEAST_LOGPROB), "bytes": data}


def model_of(name: str) -> dict[str, Any]:
    """Describe a model, as ``/v1/models`` does."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "vlmbatch"}
