"""Two ways to run a command line: as a process of its own, and, many times quicker, in this one."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from vlmbatch.cli.main import main

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def process(tmp_path: Path) -> Command:
    """Runs a command line in an empty folder, as a user does."""

    def call(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "vlmbatch", *map(str, arguments)]
        return subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            input=stdin,
            env=environment,
            check=False,
        )

    return call


@pytest.fixture
def vlmbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command line in an empty folder, in this process: from the arguments to the exit code
    by the same function, without the two seconds of a start.
    """

    def call(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = ["vlmbatch", *map(str, arguments)]
        code = 0
        with (
            monkeypatch.context() as patch,
            as_it_was(),
            CliRunner().isolation(input=stdin) as (stdout, stderr, _),
        ):
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", command)
            patch.setattr(os, "_exit", sys.exit)
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return subprocess.CompletedProcess(
            command, code, stdout.getvalue().decode(), stderr.getvalue().decode()
        )

    return call


@contextlib.contextmanager
def as_it_was() -> Iterator[None]:
    """Puts back what a command changes in its process, as it may count on ending with it: signals,
    log handlers, the filter of warnings.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    handlers = {number: signal.getsignal(number) for number in numbers}
    loggers = [logging.getLogger(name) for name in ("vlmbatch", "vlmbatch.report", "py.warnings")]
    states = [(each.handlers, each.propagate, each.level) for each in loggers]
    try:
        with warnings.catch_warnings():
            warnings.resetwarnings()
            warnings.simplefilter(
                "ignore", ResourceWarning
            )  # as Python does by itself; the process that is meant would end here
            yield
    finally:
        logging.captureWarnings(False)
        for each, (handlers_before, each.propagate, level) in zip(loggers, states, strict=True):
            each.handlers = handlers_before
            each.setLevel(level)
        for number, handler in handlers.items():
            signal.signal(number, handler)
