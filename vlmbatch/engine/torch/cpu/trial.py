"""Try the compiled decode step against torch's: are its logits the same, and is it faster?"""

from __future__ import annotations

import ctypes
import functools
import json
import logging
import math
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from vlmbatch.engine.torch.attention import attend_prompt
from vlmbatch.engine.torch.cache import Cache, DecodeAttention, PrefillAttention, Segment, Slot
from vlmbatch.engine.torch.cpu.choices import write_json
from vlmbatch.engine.torch.cpu.native import (
    MAX_ROWS,
    SPAN_TOKENS,
    NativeDecoder,
    NativeWeights,
)
from vlmbatch.engine.torch.cpu.timing import Fastest, Stopwatch
from vlmbatch.engine.torch.model import LanguageModel
from vlmbatch.native_library import NativeLibrary

logger = logging.getLogger(__name__)

MAX_DIFFERENCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest difference from torch's logits, as a share of the largest logit, for the library to be
trusted. Sums in another order differ by 1e-6 in float32 and by 0.02 in bfloat16.
"""
CHECKED_LENGTHS = (SPAN_TOKENS - 1, 20)
"""Tokens of the sequences of the comparison; with the new one, the first fill a span."""
PROBED_ROWS = (1, 4, 16, MAX_ROWS)
"""Numbers of sequences with which both are timed. Reading weights takes the time of few, products
of many; a processor with units for matrices may be faster at those in torch's products.
"""
PROBED_TOKENS = 128
"""Tokens of each sequence when both are timed."""
PROBED_LAYERS = 3
"""Layers of the model that are timed, with its head: the others take as long."""


class BackgroundDecoder:
    """The native decoder of a model, as soon as there is one."""

    def __init__(
        self, weights: NativeWeights, library: NativeLibrary, kept: Path | None = None
    ) -> None:
        """Load the library, or start to compile it.

        Args:
            weights: The model's weights.
            library: The library.
            kept: File that keeps for how many sequences the library is faster than torch; it is
                measured if there is none. Without a path, the library decodes as many as it can.
        """
        self._weights, self._library, self._kept = weights, library, kept
        self._rows = 0
        self._compiler: subprocess.Popen[bytes] | None = None
        self._decoder = self._load()
        if self._decoder is None:
            self._compiler = library.compile()

    def get(self, rows: int) -> NativeDecoder | None:
        """Return the decoder for a step of so many sequences; None if torch should do it."""
        if self._compiler is not None and self._compiler.poll() is not None:
            self._compiler = None
            self._decoder = self._load()
        return self._decoder if rows <= self._rows else None

    def wait(self) -> bool:
        """Wait for the compiler, for measurements and tests. Return whether there is a decoder."""
        if self._compiler is not None:
            self._compiler.wait()
        return self.get(1) is not None

    def _load(self) -> NativeDecoder | None:
        library = self._library.load()
        if library is None:
            return None
        decoder = NativeDecoder(library, self._weights)
        language = self._weights.language
        difference = difference_from_torch(decoder, language)
        if difference > MAX_DIFFERENCE[language.embedding.dtype]:
            logger.warning(
                "the compiled decode step is not used: its logits differ by %.2g of the largest",
                difference,
            )
            return None
        self._rows = MAX_ROWS if self._kept is None else self._settle_rows(library, self._kept)
        return decoder

    def _settle_rows(self, library: ctypes.CDLL, kept: Path) -> int:
        """Most sequences that the library decodes faster than torch, from the file or measured."""
        try:
            found = int(json.loads(kept.read_text(encoding="utf-8"))["rows"])
            if 0 <= found <= MAX_ROWS:
                return found
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.debug("%s is not used: %s", kept, error)
        watch = Stopwatch(torch.get_num_threads())
        part = self._weights.first_layers(PROBED_LAYERS)
        rows = fastest_rows(NativeDecoder(library, part), part.language, watch.fastest)
        write_json(kept, {"rows": rows, "steadiness": watch.steadiness().describe()})
        return rows


@torch.inference_mode()
def difference_from_torch(decoder: NativeDecoder, language: LanguageModel) -> float:
    """Decode a token of two sequences natively and by torch. Return the largest difference of the
    logits, as a share of the largest one; infinity if a number is not finite.
    """
    shape, embedding = language.shape, language.embedding
    cache = Cache(shape, embedding.device, embedding.dtype, language.attend_rows)
    slots = [_prompt(cache, language, tokens) for tokens in CHECKED_LENGTHS]
    native = decoder.logits(slots, range(len(slots)))
    order, expected = _by_torch(cache, language, slots)
    share = ((native[order] - expected).abs().max() / expected.abs().max()).item()
    return share if math.isfinite(share) else math.inf


@torch.inference_mode()
def fastest_rows(decoder: NativeDecoder, language: LanguageModel, fastest: Fastest) -> int:
    """Return the most sequences, up to ``MAX_ROWS``, that the library decodes faster than torch; 0
    if it never does.
    """
    found = 0
    for count in PROBED_ROWS:
        cache = Cache(
            language.shape,
            language.embedding.device,
            language.embedding.dtype,
            language.attend_rows,
        )
        slots = [_prompt(cache, language, PROBED_TOKENS) for _ in range(count)]
        ways = (
            functools.partial(decoder.logits, slots, range(count)),
            functools.partial(_by_torch, cache, language, slots),
        )
        native, torchs = fastest(ways)
        if native >= torchs:
            break
        found = count
    return found


def _prompt(cache: Cache, language: LanguageModel, tokens: int) -> Slot:
    """Compute keys and values of a sequence."""
    slot = cache.take(tokens + 1)
    assert slot is not None  # the cache has no limit
    ids = torch.arange(tokens) * 7919 % language.shape.vocabulary
    attend = PrefillAttention([Segment(slot, tokens)], attend_prompt)
    language(language.embed(ids), torch.arange(tokens), attend)
    attend.finish()
    return slot


def _by_torch(cache: Cache, language: LanguageModel, slots: list[Slot]) -> tuple[Tensor, Tensor]:
    """Decode token ``i`` of sequence ``i``: the order of the rows, and their logits."""
    step = DecodeAttention(cache, slots)
    order = torch.tensor([slots.index(slot) for slot in step.slots])
    positions = torch.tensor([slot.length for slot in step.slots])
    return order, language.logits(language(language.embed(order), positions, step))
