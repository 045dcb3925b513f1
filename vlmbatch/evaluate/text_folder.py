"""Right answers in a folder of ``.txt`` files beside pictures, as ``--sidecar txt`` writes them and
people correct them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlmbatch.errors import JobError, one_line
from vlmbatch.evaluate.options import Columns, EvalOptions
from vlmbatch.evaluate.reference import Reference, RightAnswers
from vlmbatch.evaluate.texts import clean
from vlmbatch.text_files import read_text, texts_beside
from vlmbatch.write.columns import clean_text


def read_text_folder(
    folder: Path, rows: Iterable[Mapping[str, Any]], options: EvalOptions
) -> Reference:
    """Read a reference: a text for each picture, whatever was asked about it.

    Args:
        folder: The pictures' folder, or one that has the texts alone, in the same tree.
        rows: The rows of OUTPUT. Their ids tell which pictures the texts are about.
        options: How to join.

    Raises:
        JobError: There is no text, one cannot be read, or OUTPUT has several answers about a
            picture.
    """
    if options.columns != Columns():
        raise JobError(f"{folder} is a folder: it has no columns to choose")
    ids = _ids(rows, options)
    suffixes = {os.path.splitext(id)[1].lower() for id in ids}
    by_stem: dict[str, str] = {}
    for id in ids:
        by_stem.setdefault(os.path.splitext(id)[0], id)
    reference = Reference()
    try:
        for text, about in texts_beside(str(folder)):
            name = text[: -len(".txt")]
            item = about or (name if name in ids else by_stem.get(name))
            if not item or os.path.splitext(item)[1].lower() not in suffixes:
                continue  # notes and lists
            answer = clean(read_text(str(folder / text)))
            if answer:
                reference.entries[clean_text(item), None] = RightAnswers([answer])
            else:
                reference.without_answer += 1
    except (OSError, ValueError) as error:
        raise JobError(f"reference {folder}: {one_line(error)}") from error
    if not reference.entries:
        raise JobError(
            f"reference {folder}: no .txt file in it is about a picture of OUTPUT, such as "
            f"{next(iter(ids), 'none')!r}"
        )
    return reference


def _ids(rows: Iterable[Mapping[str, Any]], options: EvalOptions) -> dict[str, None]:
    """Return the ids of OUTPUT, each once.

    Raises:
        JobError: One has several rows.
    """
    ids: dict[str, None] = {}
    for row in rows:
        if options.task not in (None, row["task"]):
            continue
        id = options.id_prefix + row["id"]
        if id in ids:
            raise JobError(
                f"OUTPUT has several answers about {row['id']!r}, and a .txt file is one: choose "
                "with --task, or give a table with a column prompt"
            )
        ids[id] = None
    return ids
