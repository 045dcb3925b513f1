"""Processes that a test starts. One that the test leaves behind, as when it fails or runs into its
time limit, is ended after it (``tests/conftest.py``).
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from typing import Any

_started: list[subprocess.Popen[str]] = []


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start a process whose pipes carry text; ``options`` are those of ``Popen``."""
    process = subprocess.Popen(command, text=True, **options)
    _started.append(process)
    return process


def end_all() -> None:
    """Kill what still runs, and close all pipes."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
        with contextlib.suppress(BrokenPipeError), process:
            pass
