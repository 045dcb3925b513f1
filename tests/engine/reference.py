"""The reference: transformers' own modules and ``generate`` on the same checkpoint, one request at
a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Completion, Request
from vlmbatch.engine import Engine, RequestQueue
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.prepare import Payload, Preparer

Key = tuple[int, int]
"""Number of a request, and of its question."""


class Reference:
    """transformers' SmolVLMForConditionalGeneration in float32."""

    def __init__(self, folder: Path) -> None:
        transformers.utils.logging.disable_progress_bar()
        self.model = transformers.SmolVLMForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self.pad = self.model.config.text_config.pad_token_id

    @torch.inference_mode()
    def generate(self, request: Request, max_new_tokens: int) -> list[list[int]]:
        """Greedy tokens of every question of a request, the stop token included."""
        pixels = (torch.from_numpy(request.payload.tiles).float()[None] * (1 / 255) - 0.5) / 0.5
        answers = []
        for question in request.payload.question_ids:
            ids = torch.tensor([[*request.payload.prefix_ids, *question]])
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self.pad,
            )
            answers.append(out[0, ids.shape[1] :].tolist())
        return answers


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
    queue = RequestQueue(len(requests) + 1)
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
