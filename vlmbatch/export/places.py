"""Files that an export writes, on this disk or behind a URL: whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vlmbatch.errors import JobError, OutputError
from vlmbatch.urls import can_be_written, is_url, url_name, without_credentials
from vlmbatch.write.atomic import replacing
from vlmbatch.write.remote.file import RemoteFile


def check_target(target: str, outputs: tuple[str, ...]) -> None:
    """Check a URL that an export goes to.

    Raises:
        JobError: It cannot be written, or is an OUTPUT.
    """
    if not is_url(target):
        return
    if not can_be_written(target):
        raise JobError(
            "-o must be a file, or a URL of a store that can be written such as s3://, gs:// "
            f"or hf://, not {without_credentials(target)}"
        )
    if place_of(target) in map(place_of, outputs):
        raise JobError(f"{without_credentials(target)} is the OUTPUT itself: give -o another file")


def place_of(target: str) -> str:
    """Return the same text for every way of writing a place."""
    if target.lower().startswith("file://"):
        target = urllib.parse.unquote(urllib.parse.urlsplit(target).path)
    return target if is_url(target) else os.path.realpath(target)


def name_of(target: str) -> Path:
    """Return the name of a file or URL, with its suffix."""
    return Path(url_name(target) if is_url(target) else target)


@contextlib.contextmanager
def writing(outputs: tuple[Path, ...], target: str, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a file that takes its place, on this disk or behind a URL, once the block has ended
    well.

    Args:
        outputs: The OUTPUTs, which are not written to.
        target: The file or URL.
        overwrite: Whether what is there is replaced.

    Raises:
        JobError: It is an OUTPUT.
        OutputError: It is there, or cannot be written.
    """
    if is_url(target):
        remote = RemoteFile(target, allow_private=True)
        if not overwrite and remote.fingerprint() is not None:
            raise OutputError(f"{remote.shown} is there; --overwrite replaces it")
        with tempfile.TemporaryDirectory(prefix="vlmbatch-") as folder:
            path = Path(folder) / url_name(target)
            with replacing(path) as file:
                yield file
            remote.put(path)
        return
    path = Path(target)
    _make_way(outputs, path, overwrite)
    with replacing(path) as file:
        yield file


def _make_way(outputs: tuple[Path, ...], path: Path, overwrite: bool) -> None:
    for output in outputs:
        if path.exists() and output.exists() and os.path.samefile(path, output):
            raise JobError(f"{path} is the OUTPUT itself: give -o another file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} is there; --overwrite replaces it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
