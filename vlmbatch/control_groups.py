"""Folders of the control groups that this process is in, of version 1 or 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def group_folders(
    controller: str, root: Path = ROOT, membership: Path = MEMBERSHIP
) -> Iterator[Path]:
    """Yield the folders whose files may limit this process: its group's and those around it. Some
    may be missing, or be yielded twice.

    Args:
        controller: ``memory`` or ``cpu``.
        root: Mount point of the control groups.
        membership: File that names the group of this process.
    """
    # In a container the mount point itself is the group, whatever its name outside.
    yield root
    yield root / controller
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            # Version 2 names no controllers. Controllers mounted together share a folder.
            for base in {root / controllers, root / controller} if controllers else {root}:
                group = base / path.lstrip("/")
                yield from (
                    folder for folder in (group, *group.parents) if folder.is_relative_to(base)
                )
    except (OSError, ValueError):
        return  # not Linux, or no control groups
