"""Files that rows were made from, as their sources name them: whether they are still there."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from vlmbatch.urls import is_url

_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_ROW_NUMBER = re.compile(r"#row=\d+$|#\d+$")
_GLOB = re.compile(r"[*?\[]")


def find_source(source: str) -> bytes | None:
    r"""Return the path of the file that a record names; None when there is none. Names that are not
    UTF-8 stand in records with ``\xNN`` in them.
    """
    raw = source.encode()
    for path in (raw, _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), raw)):
        if b"\0" not in path and os.path.isfile(path):
            return path
    return None


def is_gone(source: str, folders: Sequence[str] = ()) -> bool:
    """Return whether a source was a file of a folder and is no longer there. Of URLs and of what is
    inside archives nobody knows, and a whole folder may be on a disk that is not mounted.

    Args:
        source: As records have it.
        folders: Folders, as absolute paths, that are known to be there: below them a missing folder
            is gone too.
    """
    if is_url(source) or find_source(source) is not None:
        return False
    whole = _ROW_NUMBER.sub("", source)
    if find_source(whole) is not None:
        return False
    parent = os.path.dirname(whole) or "."
    path = os.path.abspath(parent)
    is_below = any(os.path.commonpath([path, folder]) == folder for folder in folders)
    if os.path.isdir(parent):
        # A relative path counts from the folder that its run was started in.
        return is_below or os.path.isabs(whole) or not folders
    if not is_below:
        return False
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return os.path.isdir(path)


def is_other_file(was: str, now: str) -> bool:
    """Return whether two sources are two files that are both there. A file that was moved, or that
    has another path in this run, is no other one.

    Args:
        was, now: As records have them. What is inside an archive counts as the archive.
    """
    if was == now or is_url(was) or is_url(now):
        return False
    paths = [find_outer(source) for source in (was, now)]
    try:
        return None not in paths and not os.path.samefile(*filter(None, paths))
    except OSError:
        return False


def find_outer(source: str) -> bytes | None:
    """Return the path of the file that a record names, or of the archive or table that has it."""
    source = _ROW_NUMBER.sub("", source)
    while source:
        found = find_source(source)
        if found is not None:
            return found
        source = os.path.dirname(source) if source != os.path.dirname(source) else ""
    return None


def input_folders(inputs: Sequence[str]) -> list[str]:
    """Return the folders of this disk that INPUTs are, or stand in, where these are there."""
    found = []
    for text in inputs:
        if text == "-" or is_url(text):
            continue
        path = os.path.abspath(text)
        while _GLOB.search(os.path.basename(path)) and not os.path.lexists(path):
            path = os.path.dirname(path)
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        if os.path.isdir(folder):
            found.append(folder)
    return found
