"""A checkpoint converted for an engine: once, by a process of its own, and kept in the folder for
caches.
"""

from __future__ import annotations

import hashlib
import logging
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from vlmbatch.cached_files import note_checkpoint, note_use
from vlmbatch.checkpoint import Checkpoint
from vlmbatch.errors import MissingDependencyError, ModelLoadError

logger = logging.getLogger(__name__)


def converted_folder(
    checkpoint: Checkpoint, target: str, kind: str, cache: Path, number: int
) -> Path:
    """Return the folder of a converted checkpoint; convert it unless that was done.

    Args:
        checkpoint: The checkpoint.
        target: What it is converted to, as ``models convert --to`` has it.
        kind: Number format.
        cache: Folder for caches.
        number: Number of the form of the files; another one does not read them.

    Raises:
        ModelLoadError: It cannot be converted.
        MissingDependencyError: The packages for that are not installed.
    """
    key = hashlib.sha256(f"{checkpoint.folder}{checkpoint.revision}".encode()).hexdigest()[:12]
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", Path(checkpoint.name).name)
    folder = cache / target / f"{stem}-{kind}-{key}-{number}"
    if not folder.is_dir():
        logger.warning("converting %s to %s, once: %s", checkpoint.name, target.upper(), folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder.parent) as room:
            fresh = Path(room) / "model"
            _run_conversion(checkpoint, target, kind, fresh)
            note_checkpoint(fresh, checkpoint.folder, checkpoint.revision)
            try:
                fresh.rename(folder)
            except OSError:
                if not folder.is_dir():  # another run was quicker
                    raise
    note_use(folder)
    return folder


def _run_conversion(checkpoint: Checkpoint, target: str, kind: str, folder: Path) -> None:
    """Convert in a process of its own: its memory goes with it."""
    line = [sys.executable, "-m", "vlmbatch", "models", "convert", str(checkpoint.folder)]
    done = subprocess.run(
        [*line, "--to", target, "--type", kind, "-o", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        message = said[-1].removeprefix("vlmbatch: ") if said else "it ended without a word"
        if done.returncode == -9:  # SIGKILL, which Windows has not
            message += "; the system ended it, as it does when memory runs out"
        is_missing = done.returncode == MissingDependencyError.exit_code
        raise (MissingDependencyError if is_missing else ModelLoadError)(
            f"{checkpoint.name} cannot be converted: {message}"
        )
