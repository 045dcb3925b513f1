"""Fields that are options: a default and a help text, stated once for the command line and YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from vlmbatch.errors import JobError

Kind = Literal["image", "video"]


def option(default: Any, text: str | Mapping[str, str], **metadata: Any) -> Any:
    """Make a field with a help text.

    Args:
        default: The default value.
        text: The help text, or one for each kind of media.
        metadata: ``metavar``; ``flags`` (short ones); ``group`` (its heading in ``--help``);
            ``media`` (the only kind of media that has it); ``choices`` (allowed values for each
            kind of media); ``is_path`` (names files or folders).
    """
    return dataclasses.field(default=default, metadata={"help": text, **metadata})


def check_at_least(options: Any, **lowest: int) -> None:
    """Check that numbers are not too small.

    Args:
        options: A group of options; None means "not given" and is allowed.
        lowest: The minimum of each field.

    Raises:
        JobError: A value is smaller; the message names it.
    """
    for name, least in lowest.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise JobError(f"{name} must be at least {least}, not {value}")
