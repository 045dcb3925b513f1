"""The same work through transformers' ``generate``, as a page of plain code does it: one request at
a time, or in batches padded on the left.

Both sides start from the same prepared pictures and prompts, so what is compared is the computing:
transformers gets what its processor would give, normalised float32 pictures and padded ids, and its
clock starts when it moves them to the device. Sides take turns in one process.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from vlmbatch.bench.rows import Row, spread, summarize
from vlmbatch.bench.subject import Outcome, as_text
from vlmbatch.engine.torch.device import empty_cache, is_out_of_memory, synchronize
from vlmbatch.engine.torch.weights import pixel_normalization
from vlmbatch.errors import MissingDependencyError

if TYPE_CHECKING:
    from vlmbatch.bench.bench import Bench
    from vlmbatch.bench.subject import Key, Subject
    from vlmbatch.bench.workloads import Work
    from vlmbatch.core import UInt8Array

PROCESSOR_SETTINGS = (
    "size",
    "max_image_size",
    "image_mean",
    "image_std",
    "rescale_factor",
    "resample",
)
"""What of a checkpoint's settings the image processor is given."""
PAD = 0
"""Any token: the mask hides it."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One question.

    Attributes:
        key: Number of the request and of the question.
        ids: Token ids.
        tiles: uint8, (tiles, 3, E, E).
        limit: Tokens of the answer.
    """

    key: Key
    ids: list[int]
    tiles: UInt8Array
    limit: int


@dataclasses.dataclass(frozen=True)
class Batch:
    """Prompts side by side, as transformers' processor gives them, on the CPU.

    Attributes:
        prompts: The prompts.
        ids: int64, (n, longest), padded on the left.
        mask: int64, likewise; 1 where a token is.
        pixels: Float32, (n, most tiles, 3, E, E), padded with zeros.
    """

    prompts: Sequence[Prompt]
    ids: torch.Tensor
    mask: torch.Tensor
    pixels: torch.Tensor


class Reference:
    """transformers' model on the subject's device and in its number format, and its image
    processor.

    Attributes:
        version: transformers' version.
        device: Where it computes.
    """

    def __init__(self, subject: Subject) -> None:
        """Loads the model.

        Raises:
            MissingDependencyError: transformers is not installed, or too old.
        """
        transformers = import_transformers()
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        self.version = str(transformers.__version__)
        self.device, self._dtype = subject.device, subject.dtype
        self._scale, self._shift = (
            part.view(1, 3, 1, 1) for part in pixel_normalization(subject.checkpoint)
        )
        model = transformers.SmolVLMForConditionalGeneration.from_pretrained(
            subject.checkpoint.folder, dtype=subject.dtype
        )
        self._model = model.to(subject.device).eval()
        self._model.generation_config.eos_token_id = (
            None  # answers run to their limits, as on our side
        )
        self._criteria = transformers.StoppingCriteriaList
        self._vocabulary = subject.shape.text.vocabulary
        settings = subject.checkpoint.image_processor()
        from transformers.models.smolvlm.image_processing_pil_smolvlm import (
            SmolVLMImageProcessorPil,
        )

        self._processor = SmolVLMImageProcessorPil(
            **{name: settings[name] for name in PROCESSOR_SETTINGS if name in settings}
        )

    def prepare(self, path: Path) -> int:
        """Reads a picture file and prepares it at full detail, as the processor does without
        torchvision; gives the number of tiles.
        """
        with Image.open(path) as picture:
            pixels = self._processor(picture.convert("RGB"), return_tensors="np")["pixel_values"]
        return int(pixels.shape[1])

    def batches(self, prompts: Sequence[Prompt], size: int) -> list[Batch]:
        """Prompts in batches of so many."""
        return [
            self._batch(prompts[begin : begin + size]) for begin in range(0, len(prompts), size)
        ]

    def _batch(self, prompts: Sequence[Prompt]) -> Batch:
        longest, most_tiles = (
            max(len(prompt.ids) for prompt in prompts),
            max(len(prompt.tiles) for prompt in prompts),
        )
        ids = torch.full((len(prompts), longest), PAD)
        mask = torch.zeros_like(ids)
        pixels = torch.zeros(len(prompts), most_tiles, *prompts[0].tiles.shape[1:])
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, longest - len(prompt.ids) :] = 1
            pixels[row, : len(prompt.tiles)] = (
                torch.from_numpy(prompt.tiles).float() * self._scale + self._shift
            )
        return Batch(prompts, ids, mask, pixels)

    @torch.inference_mode()
    def run(self, batches: Sequence[Batch]) -> Outcome:
        """Answers all prompts, batch by batch."""
        synchronize(self.device)
        started = time.perf_counter()
        outcome = Outcome(batch_size=len(batches[0].prompts))
        for batch in batches:
            for prompt, tokens in zip(batch.prompts, self._generate(batch), strict=True):
                outcome.answers[prompt.key] = as_text(tokens[: prompt.limit])
        outcome.seconds = time.perf_counter() - started
        return outcome

    @torch.inference_mode()
    def decode_rate(self, sequences: int, prompt_tokens: int, new_tokens: int) -> float:
        """Tokens a second of decoding alone, from the first tokens on, for prompts of words only."""
        ids = (
            torch.arange(sequences * prompt_tokens, device=self.device)
            % min(1000, self._vocabulary)
        ).view(sequences, prompt_tokens)
        ids = ids.where(ids != self._model.config.image_token_id, 0)
        times = []

        def note(seen: torch.Tensor, scores: object) -> torch.Tensor:
            if seen.shape[1] in (prompt_tokens + 1, prompt_tokens + 1 + new_tokens):
                synchronize(self.device)
                times.append(time.perf_counter())
            return torch.zeros(sequences, dtype=torch.bool, device=self.device)

        mask, criteria = torch.ones_like(ids), self._criteria([note])
        self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=1 + new_tokens,
            do_sample=False,
            pad_token_id=PAD,
            stopping_criteria=criteria,
        )
        return sequences * new_tokens / (times[1] - times[0])

    def _generate(self, batch: Batch) -> list[list[int]]:
        longest = batch.ids.shape[1]
        limits = torch.tensor([prompt.limit for prompt in batch.prompts], device=self.device)

        def over(ids: torch.Tensor, scores: object) -> torch.Tensor:
            return ids.shape[1] - longest >= limits  # a batch ends with its longest answer

        out = self._model.generate(
            input_ids=batch.ids.to(self.device),
            attention_mask=batch.mask.to(self.device),
            pixel_values=batch.pixels.to(self.device, self._dtype),
            max_new_tokens=max(prompt.limit for prompt in batch.prompts),
            do_sample=False,
            pad_token_id=PAD,
            stopping_criteria=self._criteria([over]),
        )
        answers: list[list[int]] = out[:, longest:].tolist()
        return answers


def prompts_of(work: Work) -> list[Prompt]:
    """The questions of a workload, one by one."""
    found = []
    for number, request in enumerate(work.requests):
        limit = work.limits[number] if work.limits else work.max_new_tokens
        found += [
            Prompt((number, place), [*request.prefix_ids, *question], request.tiles, limit)
            for place, question in enumerate(request.questions)
        ]
    return found


def import_transformers() -> Any:
    """transformers, where it is installed and knows SmolVLM.

    Raises:
        MissingDependencyError: With what to install.
    """
    try:
        import transformers
        from transformers import SmolVLMForConditionalGeneration  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"--compare transformers needs transformers 5.17 or newer: pip install 'transformers>=5.17' ({error})"
        ) from error
    return transformers


def compare(bench: Bench, reference: Reference, work: Work) -> Iterator[Row]:
    """Our row, and one for each way of theirs: the ratio of speeds in items a second, and how many
    answers are equal token for token.
    """
    from vlmbatch.bench.workloads import LENGTHS, speed

    prompts = prompts_of(work)
    singles = (
        bench.sizes.singles if work.limits is None else max(bench.sizes.singles, len(LENGTHS))
    )  # as long on average as all of them
    ways = {"one at a time": reference.batches(prompts[:singles], 1)}
    tried = _try_batches(reference, prompts, bench.sizes.batches)
    theirs: dict[str, list[Outcome]] = {way: [] for way in ways}
    if tried:
        best = min(tried, key=lambda size: tried[size].seconds)
        ways[f"batches of {best}"] = reference.batches(prompts, best)
        theirs[f"batches of {best}"] = (
            [tried[best]] if bench.sizes.rounds == 1 else []
        )  # one round: that was it
    if not tried or reference.device.type != "cpu":
        reference.run(ways["one at a time"][:1])
    ours: list[Outcome] = []
    for number in range(bench.sizes.rounds):
        ours.append(work.run(bench))
        for way, batches in ways.items():
            if len(theirs[way]) == number:
                theirs[way].append(reference.run(batches))
    yield speed(work, ours)
    for way in ways:
        rates = [len(outcome.answers) / outcome.seconds for outcome in theirs[way]]
        ratios = [
            work.answers / mine.seconds / rate for mine, rate in zip(ours, rates, strict=True)
        ]
        found = theirs[way][-1].answers
        equal = sum(ours[-1].answers[key] == answer for key, answer in found.items())
        details = {
            "ratio": summarize(ratios),
            "per_second": summarize(rates),
            "answers": len(found),
            "equal": equal,
            "tried_seconds": {str(batch): outcome.seconds for batch, outcome in tried.items()},
        }
        note = " ".join(filter(None, (spread(ratios), f"{equal} of {len(found)} answers equal")))
        yield Row(
            work.name, f"  over generate, {way}", statistics.median(ratios), "x", note, details
        )


def _try_batches(
    reference: Reference, prompts: Sequence[Prompt], sizes: Sequence[int]
) -> dict[int, Outcome]:
    """The whole work by batch size; sizes that memory has no room for are left out."""
    found: dict[int, Outcome] = {}
    for size in dict.fromkeys(min(size, len(prompts)) for size in sizes):
        if size == 1:
            continue
        batches = reference.batches(prompts, size)
        try:
            if reference.device.type != "cpu":
                reference.run(
                    batches[:1]
                )  # what is allocated and tuned at first use is not what is asked for
            found[size] = reference.run(batches)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        empty_cache(reference.device)
    return found
