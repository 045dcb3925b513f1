"""Files that are made once and kept in the folder for caches: what they were made of, when they
were used last, and which of them are of no use any more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmbatch.checkpoint import folder_revision
from vlmbatch.errors import OutputError, one_line

SOURCE = ".source.json"
"""File in a folder that was made of a model: says of which. Its time is that of the last use."""
MODELS = ("gguf", "onnx")
LIBRARIES = ("native", "resize")
"""Folders of compiled libraries; the second is that of earlier versions."""
DAY_SECONDS = 86400.0


@dataclasses.dataclass(frozen=True)
class Leftover:
    """A file or folder that is of no use any more.

    Attributes:
        path: The file or folder.
        size_bytes: Its size.
        reason: Why it is of no use.
    """

    path: Path
    size_bytes: int
    reason: str

    def remove(self) -> None:
        """Remove it.

        Raises:
            OutputError: It cannot be removed.
        """
        try:
            if self.path.is_dir() and not self.path.is_symlink():
                shutil.rmtree(self.path)
            else:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be removed: {one_line(error)}") from error


def note_checkpoint(folder: Path, checkpoint_folder: Path, revision: str) -> None:
    """Note the checkpoint that the files in a folder were made of."""
    facts = {"checkpoint": str(checkpoint_folder.absolute()), "revision": revision}
    (folder / SOURCE).write_text(json.dumps(facts), encoding="utf-8")


def note_files(folder: Path, files: Sequence[Path]) -> None:
    """Note the files that the files in a folder were made of."""
    facts = {"files": [[str(path.absolute()), *(_state(path) or ())] for path in files]}
    (folder / SOURCE).write_text(json.dumps(facts), encoding="utf-8")


def note_use(folder: Path) -> None:
    """Note that a folder is used now."""
    with contextlib.suppress(OSError):  # someone else's cache, or one that cannot be written
        os.utime(folder / SOURCE)


def leftovers(cache: Path, unused_days: float) -> Iterator[Leftover]:
    """Yield what is of no use any more.

    Args:
        cache: The folder for caches.
        unused_days: Days without use after which a file is of no use.
    """
    for name in MODELS:
        for folder in _entries(cache / name):
            if folder.is_dir() and (reason := _model_reason(folder, unused_days)):
                yield Leftover(folder, _size(folder), reason)
    for name in LIBRARIES:
        for path in _entries(cache / name):
            if _unused_days(path) > unused_days:
                yield Leftover(path, _size(path), _unused(path))


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _model_reason(folder: Path, unused_days: float) -> str | None:
    """Return why a converted model is of no use; None if it may be of use."""
    if folder.name.startswith("."):  # a conversion works in it, or did
        return "left by a conversion that was killed" if _unused_days(folder) > 1 else None
    file = folder / SOURCE
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "made by an earlier version"
    if _has_changed(facts):
        return "the model that it was made of has changed, or is gone"
    return _unused(file) if _unused_days(file) > unused_days else None


def _has_changed(facts: Mapping[str, Any]) -> bool:
    """Whether a model is another than it was when files were made of it."""
    if "files" in facts:
        return any(_state(Path(path)) != tuple(state) for path, *state in facts["files"])
    folder, revision = Path(facts["checkpoint"]), facts["revision"]
    if not folder.is_dir():
        return True
    is_of_hub = folder.name == revision  # the folder of a commit, which does not change
    return not is_of_hub and folder_revision(folder) != revision


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _unused_days(path: Path) -> float:
    try:
        return (time.time() - path.stat().st_mtime) / DAY_SECONDS
    except OSError:  # another process removed it
        return 0.0


def _unused(path: Path) -> str:
    return f"not used for {_unused_days(path):.0f} days"


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
