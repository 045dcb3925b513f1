"""The part of the processor that this process may use, by its affinity and its control group."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

from vlmbatch.control_groups import MEMBERSHIP, ROOT, group_folders


@dataclasses.dataclass(frozen=True)
class ProcessorShare:
    """Cores and processor time that a process may use.

    Attributes:
        cores: Number of cores that its threads may run on.
        quota: Processor seconds a second that its control group may use; None without a limit.
        host_cores: Number of cores of the machine.
    """

    cores: int
    quota: float | None
    host_cores: int

    @property
    def threads(self) -> int:
        """Number of threads that fill this share. A fraction of a core gets one: threads that
        wait for their quota take turns, while a core without a thread is lost.
        """
        return self.cores if self.quota is None else max(1, min(self.cores, math.ceil(self.quota)))

    def describe(self) -> str:
        """Say what it is, such as ``2 of 64 cores, quota of 1.5``."""
        cores = "core" if self.host_cores == 1 else "cores"
        of = "" if self.cores == self.host_cores else f" of {self.host_cores}"
        quota = "" if self.quota is None else f", quota of {self.quota:g}"
        return f"{self.cores}{of} {cores}{quota}"


def processor_share(root: Path = ROOT, membership: Path = MEMBERSHIP) -> ProcessorShare:
    """Return the share of this process now.

    Args:
        root: Mount point of the control groups.
        membership: File that names the control group of this process.
    """
    host = os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else host
    quotas = [
        quota for folder in group_folders("cpu", root, membership) if (quota := _quota(folder))
    ]
    return ProcessorShare(cores, min(quotas, default=None), max(host, cores))


def _quota(folder: Path) -> float | None:
    """Return the quota of one control group in cores, or None without a limit."""
    try:
        limit, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass  # version 1
    try:
        limit, period = (
            (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")
            for name in ("quota", "period")
        )
        return int(limit) / int(period) if int(limit) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
