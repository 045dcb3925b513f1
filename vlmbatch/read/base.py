"""The contract of a reader: INPUTs in, a lazy stream of Items out."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, BinaryIO, NoReturn, Protocol

from vlmbatch.core import Item, Pixels
from vlmbatch.errors import DecodeError, ItemError, ReadError

WHOLE_BYTES = 64 << 20
"""Size up to which the digest of a file is that of all its bytes."""
_DIGEST_BLOCK = 1 << 20


@dataclasses.dataclass(slots=True)
class Counts:
    """Things that a reader met and made no Item of. Grows while the reader is iterated.

    Attributes:
        other_media: Videos that an image job left alone, and the other way round.
        filtered: Files that ``include`` and ``exclude`` kept out.
        duplicates: Files given more than once, taken once.
        system_folders: Folders that a system keeps for itself, such as ``@eaDir``.
        text_files: Text files with the extension of a video, such as TypeScript.
        without_suffix: Pictures in folders whose names have no extension, as far as they were
            looked at.
        repeated_ids: Rows of manifests, or files in archives, whose id was there before: they got
            another one.
        values_not_carried: Values of ``keep`` that no row can hold, which became null.
        unchosen: Documents and videos of which no page or frame was asked for.
        example: One of these, and why.
    """

    other_media: int = 0
    filtered: int = 0
    duplicates: int = 0
    system_folders: int = 0
    text_files: int = 0
    without_suffix: int = 0
    repeated_ids: int = 0
    values_not_carried: int = 0
    unchosen: int = 0
    example: str = ""

    def reset(self) -> None:
        """Start to count anew."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, field.default)

    def numbers(self) -> dict[str, int]:
        """Return the counts by name."""
        values = dataclasses.asdict(self)
        del values["example"]
        return values

    def leave_out(self, why: str) -> None:
        """Count a document or video of which nothing was asked for.

        Args:
            why: Its name and the reason.
        """
        self.unchosen += 1
        self.example = self.example or why


class Reader(Protocol):
    """Gives the Items of a job in input order.

    Making a reader checks the INPUTs and raises ``JobError``; iterating it raises no error of an
    item: a thing that cannot be read is an Item whose ``load`` raises ``ReadError`` or
    ``DecodeError``. Every iteration starts over and gives the same ids.
    """

    counts: Counts

    def __iter__(self) -> Iterator[Item]:
        """Yield Items lazily: the first comes before the listing ends."""
        ...


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture before it is decoded.

    Raises:
        DecodeError: It has more pixels than ``max_pixels``.
    """
    if width * height > max_pixels:
        raise DecodeError(
            f"{width} x {height} = {width * height:,} pixels "
            f"are more than --max-pixels {max_pixels:,}"
        )


def check_file_size(size: int, max_bytes: float) -> None:
    """Refuse a file before it is read.

    Raises:
        ReadError: It has more bytes than ``max_bytes``.
    """
    if size > max_bytes:
        raise ReadError(f"{size:,} bytes are more than --max-file-size allows ({max_bytes:,})")


def copy_within(blocks: Iterable[bytes], sink: BinaryIO, max_bytes: int) -> None:
    """Write blocks whose sum need not have been stated.

    Raises:
        ReadError: They have more bytes than ``max_bytes``.
    """
    total = 0
    for block in blocks:
        total += len(block)
        if total > max_bytes:
            raise ReadError(f"more bytes than --max-file-size allows ({max_bytes:,})")
        sink.write(block)


def digest(data: bytes) -> str:
    """Return a digest that stands for bytes in a fingerprint."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def with_carried(
    content: Callable[[], str] | None, extra: Mapping[str, Any]
) -> Callable[[], str] | None:
    """Return a digest of content and carried values: what an item with these is made from."""
    if not extra or content is None:
        return content
    carried = digest(repr(extra).encode("utf-8", "backslashreplace"))
    return lambda: f"{found}:{carried}" if (found := content()) else ""


def content_digest(file: IO[bytes]) -> str:
    """Return a digest of an open file's size and content, from its start; it is left at its end.

    Of files above ``WHOLE_BYTES`` it takes blocks from the first to the last, evenly spread: videos
    of many gigabytes are not read a second time for it.
    """
    size = file.seek(0, os.SEEK_END)
    found = hashlib.blake2b(str(size).encode(), digest_size=16)
    num_blocks = -(-min(size, WHOLE_BYTES) // _DIGEST_BLOCK)
    for number in range(num_blocks):
        at = number * _DIGEST_BLOCK
        if size > WHOLE_BYTES:
            at = number * (size - _DIGEST_BLOCK) // (num_blocks - 1)
        file.seek(at)
        found.update(file.read(_DIGEST_BLOCK))
    return found.hexdigest()


def failing_load(kind: type[ItemError], message: str) -> Callable[[], Pixels]:
    """Return a ``load`` for a thing that is known not to be readable."""

    def load() -> NoReturn:
        raise kind(message)

    return load
