"""One batch through transformers' ``generate``.

Two of its own hooks make it serve questions that want different things: a logits processor draws
the tokens of those that are sampled, and a stopping criterion streams, counts and finishes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

from vlmbatch.engine.torch.device import synchronize
from vlmbatch.engine.transformers.answers import Answer


class Batch(transformers.LogitsProcessor):
    """Answers side by side, padded on the left.

    Attributes:
        answers: The answers.
        first_token_at: ``time.perf_counter()`` when the prompts had been worked through; None
            before.
        steps: Tokens that were chosen for each answer.
    """

    def __init__(self, answers: Sequence[Answer], is_stopped: Callable[[], bool]) -> None:
        """Make a batch.

        Args:
            answers: None of them is done.
            is_stopped: Says whether to give up.
        """
        self.answers = answers
        self.first_token_at: float | None = None
        self.steps = 0
        self._is_stopped = is_stopped
        self._logits = torch.empty(0)

    def generate(self, model: Any) -> None:
        """Add tokens to the answers until all are done.

        What was there before is continued, so that a batch which ran out of memory can be taken up
        by smaller ones.
        """
        model.generate(
            **collate(self.answers, model.device, model.dtype),
            max_new_tokens=max(answer.most_tokens - len(answer.tokens) for answer in self.answers),
            logits_processor=transformers.LogitsProcessorList([self]),
            stopping_criteria=transformers.StoppingCriteriaList([self._look]),
        )

    def __call__(self, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Leave one token to those that are sampled. See ``transformers.LogitsProcessor``."""
        self._logits = logits
        if self.first_token_at is None:
            synchronize(logits.device)  # or a prefill would count as decoding
            self.first_token_at = time.perf_counter()
        sampled = [
            place
            for place, answer in enumerate(self.answers)
            if answer.is_sampled and not answer.is_done
        ]
        if not sampled:
            return logits
        chosen = logits.clone()
        for place in sampled:
            token = self.answers[place].draw(logits[place])
            chosen[place] = -torch.inf
            chosen[place, token] = 0.0
        return chosen

    def _look(self, input_ids: torch.Tensor, scores: object) -> torch.Tensor:
        """Take the newest token of each answer; bool (n,), True where an answer is done."""
        self.steps += 1
        newest = input_ids[:, -1]
        totals = self._logits.logsumexp(dim=-1)
        logprobs = self._logits.gather(1, newest[:, None])[:, 0] - totals
        rows = torch.stack([newest.double(), logprobs.double()]).tolist()  # one wait for the device
        for place, (answer, token, logprob) in enumerate(zip(self.answers, *rows, strict=True)):
            if answer.is_done:
                continue
            if answer.wants_logprobs:
                answer.add_logprobs(int(token), self._logits[place] - totals[place])
            answer.add(int(token), logprob)
        gives_up = self._is_stopped()
        done = [gives_up or answer.is_done for answer in self.answers]
        return torch.tensor(done, device=input_ids.device)


def collate(
    answers: Sequence[Answer], device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The model's inputs: prompts and the tokens so far, padded on the left; media one after the
    other, as every family takes them.
    """
    lengths = [answer.prompt_tokens + len(answer.tokens) for answer in answers]
    longest = max(lengths)
    names = dict.fromkeys(name for answer in answers for name in answer.prompt)
    inputs = {name: torch.zeros(len(answers), longest, dtype=torch.long) for name in names}
    mask = torch.zeros(len(answers), longest, dtype=torch.long)
    for place, (answer, length) in enumerate(zip(answers, lengths, strict=True)):
        begin, end = longest - length, longest - len(answer.tokens)
        mask[place, begin:] = 1
        for name, values in answer.prompt.items():
            inputs[name][place, begin:end] = values[0]
        inputs["input_ids"][place, end:] = torch.tensor(answer.tokens, dtype=torch.long)
    inputs["attention_mask"] = mask
    found = {name: value.to(device) for name, value in inputs.items()}
    for name in dict.fromkeys(name for answer in answers for name in answer.media):
        parts = [answer.media[name] for answer in answers if name in answer.media]
        kind = dtype if parts[0].is_floating_point() else parts[0].dtype
        # Moved one by one: a device puts them together faster than the host does.
        found[name] = _concatenate([part.to(device, kind) for part in parts])
    return found


def _concatenate(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors along their first dimension, the others padded with zeros where they differ."""
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    whole = parts[0].new_zeros(sum(map(len, parts)), *shape)
    begin = 0
    for part in parts:
        end = begin + len(part)
        whole[(slice(begin, end), *map(slice, part.shape[1:]))] = part
        begin = end
    return whole
