"""Put finished files in their place, and check beforehand that there is room for them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from vlmbatch.errors import OutputError


def check_space(folder: Path, need_bytes: int) -> None:
    """Check that files fit on the disk.

    Args:
        folder: Folder for the files.
        need_bytes: Their size, and what is needed for a while.

    Raises:
        OutputError: They do not.
    """
    free = shutil.disk_usage(folder).free
    if need_bytes > free:
        raise OutputError(
            f"{folder} has {free / 1e9:.2f} GB free, the files take {need_bytes / 1e9:.2f} GB: "
            "make room, or take a smaller --type or another -o"
        )


def publish(paths: Sequence[Path], folder: Path) -> None:
    """Move finished files to their place, safe from a power cut."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(path, folder / path.name)
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
