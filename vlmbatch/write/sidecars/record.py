"""``OUTPUT.sidecars``: the sidecars that were written, with the file and the SHA-256 of each."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vlmbatch.errors import OutputError
from vlmbatch.write.atomic import reason, replacing
from vlmbatch.write.sidecars.folder_index import file_digest
from vlmbatch.write.sources import is_gone


class WrittenSidecar(NamedTuple):
    """A line: the id and the source of the file, and the digest of the sidecar; empty while it is
    not written.
    """

    id: str
    source: str
    digest: str = ""


class SidecarRecord:
    """The record in memory, by path of the sidecar; about 600 bytes each.

    Args:
        path: ``OUTPUT.sidecars``; it need not be there.

    Raises:
        OutputError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: dict[bytes, WrittenSidecar] = {}
        try:
            with open(path, encoding="utf-8") as file:
                for line in file:
                    values = json.loads(line)
                    found = WrittenSidecar(values["id"], values["source"], values["sha256"])
                    self._written[os.fsencode(values["path"])] = found
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{path} is damaged; without it, sidecars that were written before stay as they are"
            ) from error
        except OSError as error:
            raise OutputError(f"cannot read {path}: {reason(error)}") from error

    def claim(self, name: str, source: str, paths: list[bytes]) -> bytes:
        """Choose the path of a file's sidecar: the one it had, or else the first that no other file
        has.

        Args:
            name: The file's id.
            source: The file.
            paths: The best one and the second best; then come numbers.
        """
        stem, suffix = os.path.splitext(paths[1])
        numbered = (stem + f".{number}".encode() + suffix for number in itertools.count(2))
        path = next((path for path in paths if self._owner(path) == name), None) or next(
            path for path in itertools.chain(paths, numbered) if self._owner(path) in (None, name)
        )
        found = self._written.get(path)
        if found is None or found.id != name:
            self._written[path] = WrittenSidecar(name, source, found.digest if found else "")
        return path

    def is_ours(self, path: bytes, content: bytes) -> bool:
        """Return whether this content was written to a path that was claimed."""
        return self._written[path].digest == file_digest(content)

    def gone(self, folders: Sequence[str]) -> dict[bytes, str]:
        """Return the paths of the sidecars whose file is gone, with the ids of the files.

        Args:
            folders: As for ``is_gone``.
        """
        return {
            path: found.id
            for path, found in self._written.items()
            if is_gone(found.source, folders)
        }

    def forget(self, path: bytes) -> None:
        """Leave a sidecar out of the record."""
        self._written.pop(path, None)

    def note(self, path: bytes, content: bytes) -> None:
        """Note the content of a path that was claimed."""
        self._written[path] = self._written[path]._replace(digest=file_digest(content))

    def save(self) -> None:
        """Write the record, in order of the paths.

        Raises:
            OutputError: It cannot be written.
        """
        with replacing(self._path) as file:
            for path, (name, source, digest) in sorted(self._written.items()):
                if digest:
                    # In ASCII, so that a path that is not UTF-8 comes back as it was.
                    text = os.fsdecode(path)
                    values = {"path": text, "id": name, "source": source, "sha256": digest}
                    file.write(json.dumps(values).encode() + b"\n")

    def _owner(self, path: bytes) -> str | None:
        """Return the id of the file that has a path; None also when that file is gone."""
        found = self._written.get(path)
        return None if found is None or is_gone(found.source) else found.id
