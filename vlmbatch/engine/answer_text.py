"""The text of an answer while its tokens arrive: pieces for streaming, and stop strings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from vlmbatch.core import Question

logger = logging.getLogger(__name__)

INCOMPLETE = "\ufffd"
"""Decoded in place of a last character that lacks bytes."""


class AnswerText:
    """Streams the text of one answer and watches for stop strings.

    A streamed piece is never sent again. So text that may still change is held back: half a
    character, trailing white space (stripped from the answer), and a possible beginning of a stop
    string.

    Attributes:
        is_stopped: Whether a stop string was found.
        is_broken: Whether ``on_text`` raised; it is not called again.
    """

    def __init__(self, question: Question, decode: Callable[[Sequence[int]], str]) -> None:
        """Follow the answer to a question.

        Args:
            question: Its ``on_text`` and ``stop`` are used. With a constraint, white space around
                the answer belongs to it.
            decode: Turns token ids into text without special tokens.
        """
        self._question, self._decode = question, decode
        self._streamed = 0
        self._end: int | None = None
        self.is_stopped = self.is_broken = False

    @property
    def is_needed(self) -> bool:
        """True if the text is needed before the answer is complete."""
        return bool(self._question.stop) or self._question.on_text is not None

    def follow(self, tokens: Sequence[int], *, is_last: bool) -> None:
        """Process the answer so far.

        Args:
            tokens: Its tokens.
            is_last: Whether no more will come.
        """
        if not self.is_needed or self.is_broken:
            return
        text = self._decode(tokens)
        found = [place for stop in self._question.stop if (place := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._end = True, min(found)
            text = text[: self._end]
        elif not is_last:
            text = text[: len(text) - self._held_back(text)]
        self._stream(self._stripped(text))

    def text(self, tokens: Sequence[int]) -> str:
        """Return the answer: stripped, up to a stop string."""
        text = self._decode(tokens)
        return self._stripped(text if self._end is None else text[: self._end])

    def _stripped(self, text: str) -> str:
        return text if self._question.constraint else text.strip()

    def _held_back(self, text: str) -> int:
        """Count the characters at the end that a later token may change."""
        whole = text.rstrip(
            INCOMPLETE
        )  # an incomplete character may still become part of a stop string
        return len(text) - min(len(one) - self._begun_stop(one) for one in (text, whole))

    def _begun_stop(self, text: str) -> int:
        """Count the characters at the end that a stop string begins with."""
        return max(
            (
                length
                for stop in self._question.stop
                for length in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:length])
            ),
            default=0,
        )

    def _stream(self, text: str) -> None:
        on_text = self._question.on_text
        piece = text[self._streamed :]
        if on_text is None or not piece:
            return
        self._streamed = len(text)
        try:
            on_text(piece)
        except Exception as error:
            logger.warning("on_text raised %r: its question is cancelled", error)
            self.is_broken = True
