"""``.vlmbatch-sidecars``: in each folder with sidecars, the SHA-256 of those that were written from
any OUTPUT.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import zlib

from vlmbatch.write.atomic import reason

logger = logging.getLogger(__name__)

NAME = b".vlmbatch-sidecars"


class FolderIndexes:
    """The indexes of all folders that a run writes sidecars to, in memory; about 300 bytes a file.

    A damaged line, or an index that cannot be read, means that files count as those of others.
    """

    def __init__(self) -> None:
        self._folders: dict[bytes, dict[str, str]] = {}
        self._noted: dict[bytes, dict[str, str]] = {}

    def has(self, path: bytes, content: bytes) -> bool:
        """Return whether a file with this content was written from some OUTPUT."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = _read(folder)
        return self._folders[folder].get(os.fsdecode(name)) == file_digest(content)

    def note(self, path: bytes, content: bytes) -> None:
        """Note the content of a file that was written."""
        folder, name = os.path.split(path)
        self._noted.setdefault(folder, {})[os.fsdecode(name)] = file_digest(content)

    def save(self) -> None:
        """Write the indexes that have changed, with the lines that other runs wrote meanwhile."""
        for folder, noted in self._noted.items():
            there = _read(folder)
            if there.items() >= noted.items():
                continue
            lines = (
                json.dumps({"name": name, "sha256": digest}) + "\n"
                for name, digest in sorted({**there, **noted}.items())
            )
            try:
                replace_file(os.path.join(folder, NAME), "".join(lines).encode())
            except OSError as error:
                logger.warning(
                    "%s: the index of sidecars cannot be written (%s): other OUTPUTs take them for "
                    "files of others",
                    *(os.fsdecode(folder), reason(error)),
                )
        self._noted.clear()


def file_digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def replace_file(path: bytes, content: bytes) -> None:
    """Replace a file whole, without waiting for the disk.

    The temporary name is the same at every try, so that killed runs leave one file and not many. It
    is short, as a longer one than the file's might be too long.

    Raises:
        OSError: It cannot be written.
    """
    temporary = os.path.join(os.path.dirname(path), b".%08x.tmp" % zlib.crc32(path))
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        if os.path.isfile(temporary):
            os.unlink(temporary)
        raise


def _read(folder: bytes) -> dict[str, str]:
    try:
        with open(os.path.join(folder, NAME), "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            values = json.loads(line)
            found[str(values["name"])] = str(values["sha256"])
    return found
