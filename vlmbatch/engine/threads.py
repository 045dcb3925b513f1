"""The number of threads that compute on a CPU."""

from __future__ import annotations

import functools

import torch

from vlmbatch.job import ResourceOptions
from vlmbatch.processor import processor_share


def num_threads(options: ResourceOptions) -> int:
    """Return the number of threads that torch should use: as many as the job says, or as many as
    the process may use, unless torch was told to use fewer (OMP_NUM_THREADS).
    """
    return options.threads or min(_num_threads_at_start(), processor_share().threads)


def use_threads(options: ResourceOptions) -> int:
    """Make torch use that number of threads, and return it. Each of its calls waits for its slowest
    thread: more of them than may run at a time would only wait for each other.
    """
    threads = num_threads(options)
    torch.set_num_threads(threads)
    return threads


@functools.cache
def _num_threads_at_start() -> int:
    """Return torch's own choice, before any engine changed it."""
    return torch.get_num_threads()
