"""The place of OUTPUT: its folder, and whether files of its name can stand there."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from vlmbatch.errors import JobError, OutputError
from vlmbatch.write.atomic import reason

LONGEST_SUFFIX = ".summary.json.tmp"
"""The longest suffix of a file that stands beside OUTPUT."""

NAME_BYTES = 255
"""Bytes of a file name, where the file system does not say."""

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def resolve_output(output: Path, name: str) -> Path:
    """Make the folder of OUTPUT, and return OUTPUT's path without symbolic links.

    Args:
        output: OUTPUT.
        name: Its name in messages.

    Raises:
        JobError: OUTPUT is a pipe or a device, or its name leaves no room for the files beside it.
        OutputError: OUTPUT is a folder, or its folder cannot be made.
    """
    try:
        mode = output.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    except OSError as error:
        refusal = JobError if error.errno == errno.ENAMETOOLONG else OutputError
        raise refusal(f"cannot write {name}: {reason(error)}") from error
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            raise JobError(
                f"cannot write {name}: it is {kind}, which cannot be continued or replaced; "
                "give a file, or `-` for JSONL on stdout"
            )
    if stat.S_ISDIR(mode):
        raise OutputError(f"cannot write {name}: it is a folder")
    path = Path(os.path.realpath(output))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise OutputError(f"cannot write {name}: {path.parent} is no folder") from error
    except OSError as error:
        raise OutputError(f"cannot write {name}: {reason(error)}") from error
    room = _name_bytes(path.parent) - len(os.fsencode(path.name + LONGEST_SUFFIX))
    if room < 0:
        raise JobError(
            f"the name of {name} is too long by {-room} bytes: files such as "
            f"OUTPUT{LONGEST_SUFFIX} must fit beside it; give it a shorter name"
        )
    return path


def _name_bytes(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError):
        return NAME_BYTES
