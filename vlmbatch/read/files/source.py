"""What a listing gives: a file of the job, or a thing inside a manifest or archive that stands for
one.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

from vlmbatch.read.files.temporary import TemporaryFile

_NOTHING: Mapping[str, Any] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A file of the job, or what stands for one in a manifest or archive.

    Attributes:
        path: What the operating system opens, or a URL; empty when there is neither.
        id: Stable name, valid UTF-8; see spec.md.
        source: The path for a person to read, valid UTF-8.
        fingerprint: ``size:mtime_ns``, or what a server states; empty when the file has none.
        error: Why this is no readable file; None when nothing is known against it.
        read: Gives the bytes of what is no file by itself, on a worker's thread; raises
            ``ReadError``. None for a file.
        held_bytes: Bytes that ``read`` holds.
        copy: Makes a file of what is none by itself; raises ``ReadError``. None where that takes
            ``read``.
        is_copied: Whether that file is there already, and cannot be made again.
        questions: What is asked about it instead of the job's questions.
        extra: Values that are carried into its rows.
    """

    path: str
    id: str
    source: str
    fingerprint: str = ""
    error: str | None = None
    read: Callable[[], bytes] | None = None
    held_bytes: int = 0
    copy: Callable[[], TemporaryFile] | None = None
    is_copied: bool = False
    questions: tuple[str, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=lambda: _NOTHING)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """What a manifest or archive names, before it is known whether it belongs to the job.

    Attributes:
        found: The thing; its id may be that of another one.
        match: What ``include`` and ``exclude`` are held against.
        label: Put behind an id that is taken.
        repeats: What makes it the same as another one that was given before; empty when nothing
            does.
    """

    found: Found
    match: str
    label: str = ""
    repeats: str = ""
