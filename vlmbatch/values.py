"""Parse values as users write them (sizes, pages, times), and check the types of options."""

from __future__ import annotations

import collections.abc
import dataclasses
import re
import typing
from typing import Any, Literal, get_args, get_origin

from vlmbatch.errors import JobError

LIST_TYPES = (tuple, collections.abc.Sequence)
"""Origins of the types of fields that hold several values. All of them hold tuples; ``Sequence``
lets type checkers accept lists.
"""


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``6GiB``, ``800M`` or ``1.5 GB``.

    K, M, G and T are powers of 1024; KB, MB, GB and TB are powers of 1000.

    Raises:
        JobError: The text is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?\s*", text, re.IGNORECASE)
    if not match:
        raise JobError(f"not a size: {text!r}; write one such as 6GiB or 800M")
    base = 1000 if (match[3] or "").lower() == "b" and match[2] else 1024
    return int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))


def parse_pages(text: str) -> tuple[tuple[int, int | None], ...]:
    """Return the ranges of pages in ``1``, ``1-3``, ``2,5-`` or ``all``.

    Returns:
        (first, last) of each range, counted from 1, both included; last is None for an open range.

    Raises:
        JobError: The text is no such list.
    """
    if text.strip() == "all":
        return ((1, None),)
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:(-)\s*([0-9]{1,9})?)?\s*", part)
        first = int(match[1]) if match else 0
        last = None if not match or (match[2] and not match[3]) else int(match[3] or match[1])
        if not first or (last is not None and last < first):
            raise JobError(f"not pages: {text!r}; write 1, 1-3, 2,5- or all")
        ranges.append((first, last))
    return tuple(ranges)


def parse_seconds(text: str) -> float:
    """Return the seconds of ``90``, ``1:30`` or ``0:01:30.5``.

    Raises:
        JobError: The text is no time.
    """
    total = 0.0
    try:
        for part in text.strip().split(":"):
            total = total * 60 + float(part)
    except ValueError as error:
        raise JobError(f"not a time: {text!r}; write seconds, or 1:30") from error
    return total


def check_types(job: Any) -> None:
    """Check every value of a dataclass of options against the annotation of its field.

    Whole numbers become floats where a field takes floats.

    Raises:
        JobError: A value has another type, as YAML may hold anything.
    """
    hints = typing.get_type_hints(type(job))
    for field in dataclasses.fields(job):
        value = getattr(job, field.name)
        options = get_args(hints[field.name])
        allowed = options if type(None) in options else (hints[field.name],)
        if value is None and type(None) in allowed:
            continue
        plain = next(hint for hint in allowed if hint is not type(None))
        if get_origin(plain) in LIST_TYPES:
            if not isinstance(value, tuple):
                raise JobError(f"{field.name} must be a list, not {value!r}")
            object.__setattr__(
                job,
                field.name,
                tuple(_convert(field.name, entry, get_args(plain)[0]) for entry in value),
            )
        else:
            object.__setattr__(job, field.name, _convert(field.name, value, plain))


def _convert(name: str, value: Any, wanted: Any) -> Any:
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise JobError(
                f"{name} must be one of {', '.join(map(str, get_args(wanted)))}, not {value!r}"
            )
        return value
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise JobError(f"{name} must be {_TYPE_NAMES[wanted]}, not {value!r}")
    return value


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
