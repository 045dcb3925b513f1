"""Question options: the task, and the questions about each item."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vlmbatch import tasks
from vlmbatch.errors import JobError
from vlmbatch.job.inputs import TABLE_SUFFIXES
from vlmbatch.job.option import Kind, option

Per = Literal["frame", "clip", "window", "page", "tile"]

DEFAULT_PER: dict[str, Per] = {"image": "page", "video": "frame"}
PER_BY_MEDIA = {"image": ("page", "tile"), "video": ("frame", "clip", "window")}
"""Allowed values of ``per`` for each kind of media."""

QUESTION_NAME = "question_name"
"""Column of an OUTPUT, and of a question file, with the names of questions."""

_NAME = re.compile(r"[^\W\d][\w-]*")
_NAMED = re.compile(rf"({_NAME.pattern})?=(.*)", re.DOTALL)

IMAGE_TOKEN = "<image>"
"""Token that stands for pixels in the prompts of the published checkpoints."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionOptions:
    """Task and questions. See the help text of each field."""

    task: tasks.Task = "caption"
    prompt: str | None = option(
        None, "The instruction, instead of the task's own.", metavar="TEXT", group="Question"
    )
    questions: Sequence[str] = option(
        (),
        "A question about each item; repeatable. NAME=TEXT names it, for a column of `export "
        "--wide`; a text with a name of its own begins with `=`.",
        flags=("-q", "--question"),
        metavar="[NAME=]TEXT",
        group="Question",
    )
    questions_file: str | None = option(
        None,
        "Questions from a file: .txt with one a line, .jsonl or .csv with rows of id and question.",
        flags=("--questions",),
        metavar="FILE",
        is_path=True,
        group="Question",
    )
    question_column: str | None = option(
        None,
        "Column with a row's own question or questions, asked instead of the job's. "
        "[default: question or prompt, if there is one]",
        metavar="COL",
        group="Question",
    )
    per: Per = option(
        None,
        {
            "image": "page asks about the image as a whole; tile asks about one tile after the "
            "other and joins the answers to one record. [default: page]",
            "video": "One record per frame, per clip (the whole video in one prompt) or per window "
            "of --window seconds. [default: frame]",
        },
        choices=PER_BY_MEDIA,
        group="Question",
    )

    def check_questions(self, media: Kind, inputs: Sequence[str]) -> None:
        """Check the values of this group.

        Args:
            media: The kind of media.
            inputs: The INPUTs; table rows may hold questions.

        Raises:
            JobError: A value, or a combination, is not allowed.
        """
        allowed = PER_BY_MEDIA[media]
        if self.per not in allowed:
            raise JobError(
                f"per must be one of {', '.join(allowed)} for {media}s, not {self.per!r}"
            )
        if self.per == "tile" and self.task != "ocr":
            raise JobError(
                f"per tile goes with the task ocr: {self.task} is about the picture as a whole"
            )
        if self.task == "vqa":
            self._check_vqa(inputs)
        else:
            self._check_instruction()
        asked = [split_name(text)[1] for text in self.questions]
        for text in (*asked, *([self.prompt] if self.prompt is not None else [])):
            check_question(text)

    def _check_instruction(self) -> None:
        if self.questions or self.questions_file:
            raise JobError(
                "questions go with the task vqa: choose it with --task vqa (`vlmbatch vqa` for "
                f"pictures), or give {self.task} its instruction with --prompt"
            )
        if self.question_column:
            raise JobError(f"question_column goes with the task vqa, not with {self.task}")

    def _check_vqa(self, inputs: Sequence[str]) -> None:
        if self.prompt is not None:
            raise JobError("vqa takes questions, not a prompt: use -q TEXT or --questions FILE")
        if self.questions and self.questions_file:
            raise JobError(
                "vqa takes questions from -q TEXT or from --questions FILE, not from both"
            )
        rows_may_ask = self.question_column is not None or any(
            text.lower().endswith(TABLE_SUFFIXES) for text in inputs
        )
        if not (self.questions or self.questions_file or rows_may_ask):
            raise JobError(
                "vqa needs questions: either -q TEXT (as often as you like) or --questions FILE, "
                "or a manifest with a column of questions"
            )


def named_questions(value: Any) -> Any:
    """Return questions with their names as texts: ``{color: What color is it?}``, alone or in a
    list, becomes ``color=What color is it?``; anything else stays.

    Raises:
        JobError: A name, or its question, is not allowed.
    """
    if isinstance(value, list | tuple):
        return tuple(
            text
            for entry in value
            for text in (named_questions(entry) if isinstance(entry, Mapping) else (entry,))
        )
    if not isinstance(value, Mapping):
        return value
    for name, text in value.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(text, str):
            raise JobError(
                "questions takes texts, or names and texts such as `color: What color is it?`; a "
                f"name is a word of letters, digits, _ and -; not {name!r}: {text!r}"
            )
    return tuple(f"{name}={text}" for name, text in value.items())


def split_name(text: str) -> tuple[str | None, str]:
    """Return the name of a question, and its text: of ``NAME=TEXT``, or of a text without a name,
    which ``=`` may begin.
    """
    found = _NAMED.fullmatch(text)
    return (found[1], found[2].strip()) if found else (None, text)


def check_question(text: str) -> None:
    """Check that a question can be asked.

    Raises:
        JobError: It is empty, holds an image token, or is not valid text.
    """
    if not text.strip():
        raise JobError("an empty question or prompt")
    if IMAGE_TOKEN in text:
        raise JobError(
            f"a question or prompt may not hold {IMAGE_TOKEN}, which stands for pixels: "
            "the picture comes before it by itself"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Command-line bytes that are invalid in the locale's encoding.
        raise JobError(f"a question or prompt is not valid text: {text!r}") from error
