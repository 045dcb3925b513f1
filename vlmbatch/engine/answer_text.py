"""The text of an answer while its tokens come: pieces for a listener, and stop strings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from vlmbatch.core import Question

logger = logging.getLogger(__name__)

INCOMPLETE = "\ufffd"
"""Stands at the end of a text whose last character still misses bytes."""


class AnswerText:
    """Follow the text of one answer.

    A piece that was given to the listener is never given again, so whatever may still change waits:
    half a character, white space at the end (which the answer's text does without), and what may
    be the beginning of a stop string.

    Attributes:
        is_stopped: Whether a stop string was found.
        is_broken: Whether the listener raised; it is not called again.
    """

    def __init__(self, question: Question, decode: Callable[[Sequence[int]], str]) -> None:
        """Follow the answer to a question.

        Args:
            question: Gives ``on_text`` and ``stop``.
            decode: Turns token ids into text, special tokens left out.
        """
        self._question, self._decode = question, decode
        self._streamed = 0
        self._end: int | None = None
        self.is_stopped = self.is_broken = False

    @property
    def is_needed(self) -> bool:
        """Whether anybody wants the text before the answer is complete."""
        return bool(self._question.stop) or self._question.on_text is not None

    def follow(self, tokens: Sequence[int], *, is_last: bool) -> None:
        """Look at the answer so far.

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
        self._stream(text.strip())

    def text(self, tokens: Sequence[int]) -> str:
        """The answer: white space around it removed, up to a stop string."""
        text = self._decode(tokens)
        return (text if self._end is None else text[: self._end]).strip()

    def _held_back(self, text: str) -> int:
        """Characters at the end that a later token may change."""
        whole = text.rstrip(INCOMPLETE)
        begun = max(
            (
                length
                for stop in self._question.stop
                for length in range(1, min(len(stop), len(whole) + 1))
                if whole.endswith(stop[:length])
            ),
            default=0,
        )
        return len(text) - len(whole) + begun

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
