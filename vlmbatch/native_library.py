"""Native routines: compiled by the system's compiler on first use, kept in the folder for caches.

Nothing depends on them. Where there is no compiler, and where the library cannot be trusted, their
callers compute in another way.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path

logger = logging.getLogger(__name__)

SCRIPT = (
    'library=$0; umask 077; nice "$@" -o "$library.$$" && mv -f "$library.$$" "$library" '
    '|| { rm -f "$library.$$"; exit 1; }'
)
"""Shell script that makes ``$0`` by the command in its arguments; another process never sees half a
library.
"""
_running: list[subprocess.Popen[bytes]] = []
"""Compilers at work; an engine that is closed meanwhile drops its own reference."""


@dataclasses.dataclass(frozen=True)
class NativeLibrary:
    """A source file and how it is compiled.

    Attributes:
        source: The source file.
        folder: Keeps the library; it may be missing or not writable.
        compiler: Name of the compiler.
        options: Its options, beside those of a shared library.
        machines: Kinds of processors that the source is for, as ``platform.machine()`` names them;
            empty for all.
        key: What else the library depends on, such as the processor, if the options say so.
    """

    source: Path
    folder: Path
    compiler: str
    options: tuple[str, ...]
    machines: tuple[str, ...] = ()
    key: str = ""

    @property
    def path(self) -> Path:
        """Path of the library; it changes with the source and everything it is compiled with."""
        digest = hashlib.sha256(self.source.read_bytes())
        for part in (platform.machine(), self.compiler, *self.options, self.key):
            digest.update(b"\0" + part.encode())
        return self.folder / f"{self.source.stem}-{digest.hexdigest()[:16]}.so"

    def compile(self) -> subprocess.Popen[bytes] | None:
        """Start the compiler; None if there is none, or no folder to write to."""
        compiler = shutil.which(self.compiler)
        if compiler is None or (self.machines and platform.machine() not in self.machines):
            return None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(self.folder)
            shell: list[str | Path] = ["/bin/sh", "-c", SCRIPT, self.path]
            process = subprocess.Popen(
                [*shell, compiler, *self.options, "-shared", "-fPIC", self.source, "-lm"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C lets it finish: the next run has the library
            )
            _running[:] = [process, *(each for each in _running if each.poll() is None)]
            return process
        except OSError as error:
            logger.debug("%s is not compiled: %s", self.source.name, error)
            return None

    def load(self) -> ctypes.CDLL | None:
        """Load the library; None if it is not there, or not to be trusted."""
        path = self.path
        try:
            _check_owner(path.parent)
            _check_owner(path)
            with contextlib.suppress(OSError):  # the time of the last use: old ones are removed
                os.utime(path)
            return ctypes.CDLL(str(path))
        except OSError as error:
            logger.debug("%s is not used: %s", self.source.name, error)
            return None


def _check_owner(path: Path) -> None:
    """Raise an OSError if another user could have written it."""
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise OSError(f"others may write to {path}")
