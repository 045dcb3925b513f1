"""Resource options: memory, batch size and threads."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from vlmbatch.errors import JobError
from vlmbatch.job.option import check_at_least, option
from vlmbatch.values import parse_size


def usual_cache_root() -> Path:
    """Return the platform's folder for the caches of a user's programs."""
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResourceOptions:
    """Limits of memory and threads. See the help text of each field."""

    max_memory: str | None = option(
        None,
        "Memory limit for weights and batches, such as 6GiB.",
        metavar="SIZE",
        group="Resources",
    )
    memory_fraction: float = option(
        0.8, "Share of the free memory that may be used.", metavar="F", group="Resources"
    )
    batch_size: int | None = option(
        None,
        "Sequences decoded together; auto: as many as fit into memory.",
        metavar="N|auto",
        group="Resources",
    )
    threads: int | None = option(
        None,
        "Threads that compute on a CPU; auto: as many as the process may use by its affinity and "
        "its control group's quota.",
        metavar="N|auto",
        group="Resources",
    )
    read_workers: int | None = option(
        None,
        "Threads that read and prepare; auto: by the number of cores that the process may use.",
        metavar="N|auto",
        group="Resources",
    )
    cache_dir: str | None = option(
        None,
        "Folder for what is made once on a machine: the choice of kernels, converted models. "
        "[default: vlmbatch in the user's folder for caches]",
        metavar="PATH",
        is_path=True,
        group="Resources",
    )

    @property
    def cache_folder(self) -> Path:
        """``cache_dir``, or the platform's usual one."""
        if self.cache_dir is not None:
            return Path(self.cache_dir)
        return usual_cache_root() / "vlmbatch"

    @property
    def max_memory_bytes(self) -> int | None:
        """``max_memory`` in bytes."""
        return None if self.max_memory is None else parse_size(self.max_memory)

    def check_resources(self) -> None:
        """Check the values of this group.

        Raises:
            JobError: A value is not allowed.
        """
        check_at_least(self, batch_size=1, threads=1, read_workers=1)
        if not 0 < self.memory_fraction <= 1:
            raise JobError(
                f"memory_fraction must be above 0 and at most 1, not {self.memory_fraction}"
            )
        if self.max_memory is not None:
            parse_size(self.max_memory)
