"""Waiting policy of OpenMP's threads, set before torch is loaded.

A step of decoding has a thousand short parallel regions. At the end of each, threads that are ready
wait for those that are not. By default they spin for milliseconds. On a machine with other work
they keep the thread that they wait for from its core. Here they sleep after few spins, which costs
nothing measurable on a quiet machine.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

POLICY = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
"""Variables of GNU's and of LLVM's (and Intel's) runtime: number of spins, and milliseconds. GNU's
was chosen by measurement (docs/performance.md); LLVM's is its counterpart.
"""
OF_USERS = ("OMP_WAIT_POLICY", "KMP_LIBRARY", *POLICY)
"""Variables by which users set a policy of their own."""
RUNTIMES = ("libgomp*.so*", "libiomp5*", "libomp*.so*", "libomp*.dylib")


def set_waiting_policy() -> None:
    """Load torch's OpenMP runtime with the policy in the environment, unless the user set one.

    The runtime reads the environment once, when it is loaded. Afterwards the variables are removed,
    so that no child process inherits them.
    """
    if users_policy() is not None:
        return
    os.environ.update(POLICY)
    try:
        for path in _runtimes():
            try:
                # GNU's runtime reads the environment when it is loaded, LLVM's when it is called.
                ctypes.CDLL(str(path)).omp_get_max_threads()
                return
            except (OSError, AttributeError):
                continue  # for another machine, or no runtime
    finally:
        for name in POLICY:
            del os.environ[name]


def users_policy() -> str | None:
    """Return the variables of the environment by which the user set a policy; None without any."""
    found = [f"{name}={os.environ[name]}" for name in OF_USERS if name in os.environ]
    return " ".join(found) or None


def _runtimes() -> Iterator[Path]:
    """Find the runtimes that torch may load: its own, or the environment's."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return
    package = Path(spec.origin).parent
    for folder in (package / "lib", package.parent / "torch.libs", Path(sys.prefix) / "lib"):
        for pattern in RUNTIMES:
            yield from sorted(folder.glob(pattern))
