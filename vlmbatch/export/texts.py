"""Texts and subtitles of an OUTPUT."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from vlmbatch.errors import JobError
from vlmbatch.export.places import name_of, writing
from vlmbatch.urls import is_url, without_credentials
from vlmbatch.write import make_content
from vlmbatch.write.columns import Row
from vlmbatch.write.records import FileRows


def is_one_file(form: str, target: str | None) -> bool:
    """Return whether a target is a file, not the folder of many.

    Raises:
        JobError: Texts cannot go there.
    """
    is_file = (
        target is not None
        and name_of(target).suffix.lower() == f".{form}"
        and not os.path.isdir(target)
    )
    if target == "-":
        raise JobError(
            f"{form} files cannot go to stdout: give -o FOLDER, or -o FILE.{form} for one picture "
            "or video"
        )
    if target is not None and is_url(target) and not is_file:
        raise JobError(
            f"{form} files go to a folder of this disk, or one of them to a URL that ends in "
            f".{form}, not to {without_credentials(target)}"
        )
    return is_file


def check_times(output: Path, rows: Iterable[Row], form: str) -> None:
    """Refuse subtitles of an OUTPUT that has answers and no times.

    Raises:
        JobError: It is so.
    """
    answers = [row["time_seconds"] is not None for row in rows if row["status"] != "error"]
    if answers and not any(answers):
        raise JobError(f"{output} has no times: {form} files are made from videos")


def write_text(
    output: Path,
    path: Path,
    files: Iterator[FileRows],
    form: str,
    target: str,
    *,
    overwrite: bool,
) -> None:
    """Write the one file of an OUTPUT that is about one picture or video.

    Args:
        output: Name of the OUTPUT.
        path: The file that was read.
        files: Its rows.
        form: ``txt``, ``srt`` or ``vtt``.
        target: The file or URL.
        overwrite: Whether what is there is replaced.

    Raises:
        JobError: It is about several, or has no answer.
        OutputError: The file cannot be written, or is there.
    """
    found = [make_content(form, rows) for _, rows in files]
    if len(found) != 1 or found[0] is None:
        raise JobError(
            f"{output} is about {len(found)} files, not one: give -o FOLDER"
            if len(found) != 1
            else f"{output} has no answer to write"
        )
    with writing((path,), target, overwrite=overwrite) as file:
        file.write(found[0])
