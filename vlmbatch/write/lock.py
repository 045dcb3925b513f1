"""The lock that lets one run at a time write an OUTPUT."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from pathlib import Path

from vlmbatch.errors import OutputError, OutputLockedError
from vlmbatch.write.atomic import beside, reason

logger = logging.getLogger(__name__)

_UNSUPPORTED = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)


class OutputLock:
    """An exclusive lock on ``OUTPUT.lock``, held from construction to ``release``. The kernel drops
    it with the process, however that ends.

    Args:
        output: OUTPUT.
        name: Name of OUTPUT in messages, where that is not its path.

    Raises:
        OutputLockedError: Another run holds it.
        OutputError: The lock file cannot be made.
    """

    def __init__(self, output: Path, name: str | None = None) -> None:
        self.path = beside(output, ".lock")
        self._handle: int | None = None
        while self._handle is None:
            self._handle = self._try(name or str(output))

    def _try(self, output: str) -> int | None:
        """Take the lock. None when the run before has removed its file in between, so that the lock
        on it is worth nothing.
        """
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OutputError(f"cannot write {output}: {reason(error)}") from error
        try:
            self._flock(handle, output)
            if self._is_at_path(handle):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
                return handle
        except BlockingIOError as error:
            pid = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
            os.close(handle)
            raise OutputLockedError(
                f"another run{f' (process {pid})' if pid else ''} holds {output}"
            ) from error
        except OSError as error:
            os.close(handle)
            raise OutputError(f"cannot lock {output}: {reason(error)}") from error
        os.close(handle)
        return None

    @staticmethod
    def _flock(handle: int, output: str) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            logger.warning(
                "%s is on a file system without locks: take care that no second run writes to it",
                output,
            )

    def _is_at_path(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the file while the lock is still held, then let go."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        with contextlib.suppress(OSError):  # a file that stays, on a disk that fails, does no harm
            if self._is_at_path(handle):
                self.path.unlink()
        os.close(handle)
