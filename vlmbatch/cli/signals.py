"""Signals that end a run or a training in order."""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import Protocol

from vlmbatch.run.events import event

report = logging.getLogger("vlmbatch.report")

_URGENT = (signal.SIGINT, signal.SIGTERM)
"""A second one of these ends the process at once."""

_NOTICES = (signal.SIGHUP, signal.SIGUSR1)
"""The terminal is gone; the batch system will end the job soon. Both may come several times."""


class Stoppable(Protocol):
    """A run or a training."""

    def stop(self) -> None:
        """End soon, with everything saved. Called from a signal handler."""


def catch_signals(running: Stoppable) -> None:
    """Stop in order at SIGINT, SIGTERM, SIGHUP or SIGUSR1.

    SIGHUP and SIGUSR1 stay ignored if they were ignored at the start (nohup).
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if number in _URGENT:
            for each in _URGENT:
                signal.signal(each, signal.SIG_DFL)
        else:
            for each in _NOTICES:
                signal.signal(each, signal.SIG_IGN)
        # First: a signal that comes while a log line is written cannot write another one.
        running.stop()
        report.info(
            "stopping: what is finished is committed, the same command goes on from there "
            "(again: quit at once)",
            extra=event("stopping", signal=signal.Signals(number).name),
        )

    for each in (*_URGENT, *_NOTICES):
        if each in _URGENT or signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, stop)
