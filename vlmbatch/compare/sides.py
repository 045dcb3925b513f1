"""A side of a comparison as a user writes it: ``ENGINE[/TYPE][:MODEL][,KEY=VALUE…]``, or
``MODEL[,KEY=VALUE…]`` for an engine that is given otherwise.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from vlmbatch.errors import JobError
from vlmbatch.job import EngineOptions, GenerationOptions, Job, job_key
from vlmbatch.job.model import ENGINE_NAMES

_SHORT = {
    "float32": ("fp32", "f32"),
    "float16": ("fp16", "f16"),
    "bfloat16": ("bf16",),
}
TYPES: dict[str, dict[str, str]] = {
    **{name: {"dtype": dtype} for dtype, short in _SHORT.items() for name in (dtype, *short)},
    **{name: {"quantize": name} for name in ("int8", "q4", "q8_0", "q5_0", "q4_0")},
}
"""Options that a TYPE stands for. The engine says whether it has them."""
COMMON = {field.name for field in dataclasses.fields(GenerationOptions)} - {"detail"}
"""Options of the questions, which both sides share."""
KEYS = tuple(
    field.name
    for field in dataclasses.fields(EngineOptions)
    if field.name not in COMMON | {"engine"}
)
"""Options that a side may have of its own."""
FORM = "ENGINE[/TYPE][:MODEL][,KEY=VALUE…] or MODEL[,KEY=VALUE…]"


@dataclasses.dataclass(frozen=True)
class Side:
    """A side.

    Attributes:
        text: As it was given.
        job: The job that it answers.
    """

    text: str
    job: Job

    @classmethod
    def parse(cls, text: str, common: Mapping[str, Any]) -> Side:
        """Read a side.

        Args:
            text: In the form above.
            common: Options of both sides, as keys of a job; the side's own come before them.

        Raises:
            JobError: It has another form, or a value is not allowed.
        """
        try:
            return cls(text, Job.from_dict({**common, **_settings(text)}))
        except JobError as error:
            raise JobError(f"{text}: {error}") from error


def _settings(text: str) -> dict[str, Any]:
    """Return the options that a side states."""
    # A comma may be part of a path; one before KEY= is not.
    head, *pairs = re.split(r",(?=[A-Za-z][A-Za-z0-9_-]*=)", text)
    found: dict[str, Any] = {}
    place, colon, model = head.partition(":")
    engine, slash, kind = place.partition("/")
    if engine not in ENGINE_NAMES:
        model = head
    else:
        found["engine"] = engine
        if slash and kind not in TYPES:
            raise JobError(
                f"{kind!r} is no type; there are {', '.join(TYPES)} (a folder {place}: ./{place})"
            )
        found |= TYPES[kind] if slash else {}
    if model:
        found["model"] = model
    elif colon or engine not in ENGINE_NAMES:
        raise JobError(f"no model: write {FORM}")
    for pair in pairs:
        key, _, value = pair.partition("=")
        name = _known(job_key(key))
        found[name] = _value(name, value)
    return found


def _known(key: str) -> str:
    if key in COMMON:
        raise JobError(f"{key} belongs to both sides: give it as an option of the command")
    if key not in KEYS:
        raise JobError(f"{key!r} is no option of a side; there are {', '.join(KEYS)}")
    return key


def _value(key: str, text: str) -> Any:
    """Return a value in the type of its option."""
    hint = {field.name: str(field.type) for field in dataclasses.fields(EngineOptions)}[key]
    try:
        if text != "auto" and hint.startswith("int"):
            return int(text)
        return float(text) if hint.startswith("float") else text
    except ValueError as error:
        raise JobError(f"{key} takes a number, not {text!r}") from error
