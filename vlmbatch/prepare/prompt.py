"""Prompts: conversations to token ids, with the checkpoint's own chat template and tokenizer.

A prompt is split right after the last media token, and all questions about one picture share one
prefix. Most tokenizers never merge across a special token: the ids of the prefix followed by the
ids of a question are the ids of the whole text. ``PromptWriter`` tries whether this one does so
before it relies on it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import tokenizers

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.errors import ModelLoadError, PrepareError
from vlmbatch.prepare.chat import ChatTemplate, Message, fill_in
from vlmbatch.prepare.media_text import (
    VIDEO_MARKER,
    VIDEO_OUTRO,
    MediaTokens,
    image_text,
    video_text,
)

_QUESTION, _ANSWER = "\x00question\x00", "\x00answer\x00"
_TRIED = ("a", " a", "a ", "\n\n7", "")
"""Questions that must continue a picture and a clip as if the whole were tokenized at once."""

_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""The tokens of tokenizer_config.json that templates may name, as ``bos_token``."""


class PromptWriter:
    """Turns media and questions into token ids with the checkpoint's own tokenizer and chat
    template. Thread-safe and picklable.

    Attributes:
        splits: Whether ``image_prefix`` and ``image_question``, ``video_prefix`` and
            ``video_question`` make up the ids of a whole prompt. ``chat`` always does.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        template: str,
        tokens: MediaTokens,
        special: dict[str, str] | None = None,
    ) -> None:
        """Render the chat template once around a picture and a question.

        Args:
            tokenizer: The checkpoint's tokenizer, without truncation or padding.
            template: Jinja source of the chat template.
            tokens: The checkpoint's media tokens.
            special: Further variables of the template, such as ``bos_token``.

        Raises:
            ModelLoadError: The template is broken, or a media token is not one token of the
                vocabulary.
        """
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.image_token_id = self._single_id(tokens.image)
        self._single_id(tokens.fake)
        self._special = special or {}
        self._chat = ChatTemplate(template, self._special)
        self._added = frozenset(tokenizer.get_added_tokens_decoder())
        self._head, self._tail = self._around_question()
        self.splits = self._splits()
        self._before_answer, self._after_answer = self._around_answer()

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> PromptWriter:
        """Read tokenizer.json, the chat template and the number of image tokens per tile from a
        checkpoint's files.
        """
        tokenizer = checkpoint.tokenizer()
        tokens = MediaTokens(checkpoint.image_seq_len())
        if not checkpoint.takes_clips:
            # As the processor of transformers does; not every vocabulary has the last one.
            missing = (tokens.fake, tokens.image, tokens.end_of_utterance)
            tokenizer.add_special_tokens(
                [tokenizers.AddedToken(token, normalized=False) for token in missing]
            )
        return cls(tokenizer, checkpoint.chat_template(), tokens, special_tokens(checkpoint))

    def image_prefix(self, rows: int, cols: int) -> list[int]:
        """Return token ids of the chat opening and a picture; every question continues them."""
        return self._prefix(self._head + image_text(rows, cols, self.tokens))

    def image_question(self, question: str) -> list[int]:
        """Return token ids of a question about a picture and of the rest of the prompt up to the
        answer.

        Raises:
            PrepareError: The question holds an image token.
        """
        return self._question(question + self._tail)

    def chat(
        self, turns: Sequence[Message], media: Sequence[str], questions: Sequence[str]
    ) -> tuple[list[int], list[list[int]]]:
        """Return token ids of a whole conversation, and of each question after it.

        A question continues the last turn if it is the user's, and opens a new user turn otherwise.

        Args:
            turns: The turns; media without their text.
            media: The text of each picture (``image_text``) and clip (``video_text``), in order.
            questions: The questions.

        Raises:
            PrepareError: A text holds an image token.
        """
        for text in (*questions, *(text for _, parts in turns for _, text in parts)):
            if self.tokens.image in text:
                raise PrepareError(
                    f"a text may not hold the token {self.tokens.image}: it stands for pixels"
                )
        probe, *found = [
            self.encode(self.written(turns, media, question))
            for question in (_QUESTION, *questions)
        ]
        shared = min(_same(probe, ids) for ids in found)
        cut = next((end for end in range(shared, 0, -1) if probe[end - 1] in self._added), 0)
        for ids in found:
            if self.image_token_id in ids[cut:]:
                raise PrepareError("the chat template puts a picture behind the question")
        return probe[:cut], [ids[cut:] for ids in found]

    def video_prefix(self, times_seconds: Sequence[float], duration_seconds: float) -> list[int]:
        """Return token ids of the chat opening and a clip, up to its last media token."""
        # The published templates have no video turn; the processor then uses its own, in which ": "
        # follows a role.
        text = "<|im_start|>User: " + video_text(times_seconds, duration_seconds, self.tokens)
        return self._prefix(text[: text.rindex(self.tokens.fake) + len(self.tokens.fake)])

    def video_question(self, question: str) -> list[int]:
        """Return token ids after the last frame: the break, the question and the turn's end."""
        return self._question(f"{VIDEO_OUTRO}{question}{self.tokens.end_of_utterance}\nAssistant:")

    @property
    def before_answer(self) -> str:
        """Text that the template writes between the prompt and an answer, such as a space."""
        return self._before_answer

    def answer(self, text: str) -> list[int]:
        """Return token ids of an answer as a training target: what the template writes after the
        start of the assistant's turn, up to the token that ends it.

        Raises:
            PrepareError: The answer holds an image token.
        """
        return self._question(f"{self._before_answer}{text}{self._after_answer}")

    def decode(self, ids: Sequence[int]) -> str:
        """Decode an answer without special tokens; white space around it is kept."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_text(self, token: int) -> str:
        """Decode one token, also a special one."""
        text: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return text

    def written(self, turns: Sequence[Message], media: Sequence[str], question: str) -> str:
        """Return the text of a conversation and a question; arguments as for ``chat``."""
        *before, last = turns if turns and turns[-1][0] == "user" else [*turns, ("user", ())]
        messages = [*before, ("user", [*last[1], ("text", question)])]
        marker = {"image": self.tokens.image, "video": VIDEO_MARKER}
        markers = [marker[kind] for _, parts in messages for kind, _ in parts if kind != "text"]
        return fill_in(self._chat.render(messages), markers, media)

    def _around_question(self) -> tuple[str, str]:
        """The text before a picture, and the text after a question about it."""
        try:
            text = self._chat.render([("user", [("image", ""), ("text", _QUESTION)])])
        except PrepareError as error:
            raise ModelLoadError(f"the checkpoint's chat template is broken: {error}") from error
        head, image, rest = text.partition(self.tokens.image)
        _, question, tail = rest.partition(_QUESTION)
        if not image or not question:
            raise ModelLoadError(
                "the checkpoint's chat template does not put a question behind its picture"
            )
        return head, tail

    def _around_answer(self) -> tuple[str, str]:
        """The template's text before and after an answer, up to the token that ends the turn."""
        asked: list[Message] = [("user", [("image", ""), ("text", _QUESTION)])]
        answered: list[Message] = [*asked, ("assistant", [("text", _ANSWER)])]
        usual = " ", self.tokens.end_of_utterance
        try:
            opened = self._chat.render(asked)
            whole = self._chat.render(answered, opens_answer=False)
        except PrepareError:  # no template for several turns
            return usual
        before, found, after = whole.removeprefix(opened).partition(_ANSWER)
        if not found or not whole.startswith(opened):
            return usual
        special = (token.content for token in self.tokenizer.get_added_tokens_decoder().values())
        end = re.search("|".join(map(re.escape, sorted(special, key=len, reverse=True))), after)
        return before, after[: end.end()] if end else after

    def _splits(self) -> bool:
        """Try whether questions continue a picture and a clip."""
        picture, clip = image_text(0, 0, self.tokens), video_text([0.0], 1.0, self.tokens)
        prefix, clip_prefix = self.image_prefix(0, 0), self.video_prefix([0.0], 1.0)
        return all(
            prefix + self.image_question(text) == self._whole("image", picture, text)
            and clip_prefix + self.video_question(text) == self._whole("video", clip, text)
            for text in _TRIED
        )

    def _whole(self, kind: str, medium: str, question: str) -> list[int]:
        """Token ids of a question about one picture or clip, tokenized at once."""
        return self.encode(self.written([("user", [(kind, "")])], [medium], question))

    def encode(self, text: str) -> list[int]:
        """Return token ids of a prompt. As in transformers, the tokenizer adds tokens of its own
        unless the template has begun with them.
        """
        bos = self._special.get("bos_token")
        return self._ids(text, adds_tokens=not (bos and text.startswith(bos)))

    def _prefix(self, text: str) -> list[int]:
        return self._ids(text)

    def _question(self, text: str) -> list[int]:
        ids = self._ids(text)
        if self.image_token_id in ids:
            raise PrepareError(
                f"a question or answer may not hold the token {self.tokens.image}: it stands for "
                "pixels"
            )
        return ids

    def _ids(self, text: str, *, adds_tokens: bool = False) -> list[int]:
        try:
            return list(self.tokenizer.encode(text, add_special_tokens=adds_tokens).ids)
        except (
            TypeError,
            UnicodeEncodeError,
        ) as error:  # half a surrogate pair, which JSON can hold
            raise PrepareError(f"a text is not valid text: {text[:200]!r}") from error

    def _single_id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ModelLoadError(
                f"the tokenizer has no token {token}: this is neither a SmolVLM2 nor an Idefics3 "
                "checkpoint"
            )
        return int(found)


def special_tokens(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the special tokens that a chat template may name, such as ``bos_token``."""
    config = checkpoint.tokenizer_config()
    names = (f"{kind}_token" for kind in _SPECIAL)
    return {name: _token_text(config[name]) for name in names if config.get(name)}


def _token_text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _same(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of ids that two prompts begin with alike; the other keeps at least one to follow."""
    most = min(len(one), len(other) - 1)
    return next((place for place in range(most) if one[place] != other[place]), most)
