"""The loaded model."""

from __future__ import annotations

import dataclasses
import functools
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

from vlmbatch.core import Conversation, Question, Record
from vlmbatch.engine import Engine, open_engine
from vlmbatch.errors import EngineError, JobError
from vlmbatch.job import EngineOptions
from vlmbatch.job.generation import MAX_NEW_TOKENS
from vlmbatch.job.questions import check_question
from vlmbatch.model.asking import Asking
from vlmbatch.model.messages import read_messages
from vlmbatch.model.options import (
    Answering,
    AnswerSettings,
    ModelSettings,
    answering,
    engine_options,
)
from vlmbatch.model.pictures import PictureLike, items_of
from vlmbatch.model.replies import Reply, ReplyStream, reply_of
from vlmbatch.serve.dispatcher import ClosedError, Dispatcher
from vlmbatch.serve.ticket import Ticket
from vlmbatch.tasks import TASKS, Task, default_prompt

CHAT_MAX_NEW_TOKENS = 512
"""Longest answer of a chat, unless another limit is given; the server's default."""


class Model:
    """A model that stays loaded, for questions about pictures and for chats.

        with vlmbatch.Model("demo") as model:
            for record in model.ask(["a.png", "b.png"], "What is this?"):
                print(record.id, record.text)
            print(model.chat([{"role": "user", "content": "Hello."}]))

    Thread-safe: any number of threads may ask and chat at the same time, and their requests share
    the batches of one engine. Each iterator belongs to the thread that takes from it.

    Attributes:
        engine: The open engine. It states ``name``, ``model``, ``revision``, ``device``, ``dtype``
            and ``stats``.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = EngineOptions.model,
        **settings: Unpack[ModelSettings],
    ) -> None:
        """Load a model.

        Args:
            model: Hub id, folder, or ``demo``.
            **settings: See ``ModelSettings``.

        Raises:
            JobError: An option is not known, or not allowed.
            ModelLoadError: The checkpoint is missing, broken or of another kind.
            DeviceError: The device or dtype is not available.
            OutOfMemoryError: The model does not fit.
        """
        self._options = engine_options(os.fspath(model), settings)
        self._max_new_tokens = settings.get("max_new_tokens")
        opening = functools.partial(open_engine, self._options, reuse_prefixes=True)
        self._dispatcher = Dispatcher(opening, workers=self._options.read_workers)
        self.engine: Engine = self._dispatcher.engine
        self._close = weakref.finalize(self, _close, self._dispatcher, self.engine)

    def ask(
        self,
        pictures: PictureLike | Iterable[PictureLike],
        questions: str | Sequence[str] | None = None,
        *,
        task: Task = "vqa",
        **settings: Unpack[AnswerSettings],
    ) -> Iterator[Record]:
        """Ask one question or several about each picture; yield a Record an answer, as they finish.

        ``record.index`` counts the pictures in the order given, ``record.id`` is the path as given
        (with the folder), or ``picture-N`` for pixels. A picture that cannot be read is a Record
        with ``status`` "error".

            captions = {record.id: record.text for record in model.ask("photos", task="caption")}

        Args:
            pictures: One picture or any iterable of them, taken lazily, 64 ahead: paths of files,
                folders, archives or documents, URLs, Pillow images, arrays (uint8, (H, W, 3)), the
                bytes of picture files, or such files open in binary mode.
            questions: The question or questions. A caption and ocr have a default.
            task: ``vqa``, ``caption`` or ``ocr``.
            **settings: See ``AnswerSettings``. [default of max_new_tokens: 64; 512 for ocr]

        Raises:
            JobError: A question or option is not allowed.
            EngineError: The engine cannot go on, or was closed.
        """
        if task not in TASKS:
            raise JobError(f"task must be one of {', '.join(TASKS)}, not {task!r}")
        if questions is None:
            questions = default_prompt(task)
        texts = (questions,) if isinstance(questions, str) else tuple(questions or ())
        if not texts:
            raise JobError("give a question, or task='caption' or 'ocr'")
        for text in texts:
            if not isinstance(text, str):
                raise JobError(f"a question is text, not {text!r:.100}")
            check_question(text)
        how = self._answering(settings, MAX_NEW_TOKENS[task])
        self._check_open()
        asking = Asking(self._dispatcher, task, texts, how)
        return self._kept_for(asking.records(items_of(pictures, task)))

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        **settings: Unpack[AnswerSettings],
    ) -> Reply: ...

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: Literal[True],
        **settings: Unpack[AnswerSettings],
    ) -> ReplyStream: ...

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: bool = False,
        **settings: Unpack[AnswerSettings],
    ) -> Reply | ReplyStream:
        """Answer the last message of a chat.

            picture = {"type": "image", "path": "a.png"}
            messages = [
                {"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}]}
            ]
            reply = model.chat(messages)
            messages += [
                {"role": "assistant", "content": reply},
                {"role": "user", "content": "What color is it?"},
            ]
            for piece in model.chat(messages, stream=True):
                print(piece, end="", flush=True)

        Args:
            messages: Each a dict with ``role`` (system, user or assistant) and ``content``: a
                string, or a list of parts. Parts have a ``type``: ``text``; ``image`` with
                ``image`` (a Pillow image, an array, a path or URL), ``path``, ``url`` or
                ``base64``; ``image_url``; ``video`` with ``path`` or ``url`` and, if you like,
                ``fps`` or ``num_frames``; ``video_url``.
            stream: Whether the answer comes piece by piece.
            **settings: See ``AnswerSettings``. [default of max_new_tokens: 512]

        Returns:
            The text, a ``str`` that also says how it ended; or an iterator of its pieces.

        Raises:
            JobError: The messages or an option are not allowed.
            ItemError: A picture or video cannot be read, or the chat is too long.
            EngineError: The engine cannot go on, or was closed.
        """
        how = self._answering(settings, CHAT_MAX_NEW_TOKENS)
        self._check_open()
        conversation, text = read_messages(messages)
        question = how.question(text)
        if not stream:
            ticket = self._submit(conversation, question)
            try:
                return reply_of(ticket)
            except KeyboardInterrupt:
                ticket.cancel()
                raise
        pieces = ReplyStream()
        question = dataclasses.replace(question, on_text=pieces.on_text)
        pieces.follow(self._submit(conversation, question), self)
        return pieces

    def close(self) -> None:
        """Free the model. Open answers end in an EngineError. May be called again."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{self.engine.device}, {self.engine.dtype}" if self._close.alive else "closed"
        return f"<vlmbatch.Model {self.engine.model}: {self.engine.name}, {state}>"

    def _kept_for(self, records: Iterator[Record]) -> Iterator[Record]:
        """Yield records; a model that nobody else holds stays open until they end."""
        yield from records

    def _submit(self, conversation: Conversation, question: Question) -> Ticket:
        try:
            return self._dispatcher.submit(conversation, [question])
        except ClosedError as error:
            raise EngineError("the model was closed: open another Model") from error

    def _answering(self, settings: Mapping[str, Any], max_new_tokens: int) -> Answering:
        """Check the options of a call, whose answers have so many tokens by default."""
        how = answering(self._options, settings, self._max_new_tokens or max_new_tokens)
        if how.constraint is not None and not getattr(self.engine, "takes_constraints", False):
            kind, name = how.constraint.kind, self.engine.name
            raise JobError(f"the engine {name} has no {kind}; the torch engine has")
        return how

    def _check_open(self) -> None:
        if not self._close.alive:
            raise EngineError("the model was closed: open another Model")


def _close(dispatcher: Dispatcher, engine: Engine) -> None:
    """Free a model that is closed or no longer used."""
    dispatcher.close()
    engine.close()
