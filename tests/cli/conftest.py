"""Run a command line as a process of its own, or, many times quicker, in this process."""

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

from tests.media import write_picture
from vlmbatch.cli.main import main

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(4):
        write_picture(tmp_path / "photos" / f"{number}.png", 60 + number, 40, seed=number)
    return tmp_path / "photos"


@pytest.fixture
def process(tmp_path: Path) -> Command:
    """Run a command line in an empty folder, as a user does."""

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
    """Run a command line in an empty folder, in this process.

    The same function goes from the arguments to the exit code, without the seconds of a start.
    """

    def call(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = ["vlmbatch", *map(str, arguments)]
        code = 0
        with (
            monkeypatch.context() as patch,
            as_a_process(),
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
def as_a_process() -> Iterator[None]:
    """Filter warnings as Python does by itself: the process that is meant would end after it."""
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("ignore", ResourceWarning)
        yield


@pytest.fixture(autouse=True)
def _command_leaves_nothing() -> Iterator[None]:
    """Restore what a command changes in its process: signals and log handlers."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    actions = {number: signal.getsignal(number) for number in numbers}
    loggers = [logging.getLogger(name) for name in ("vlmbatch", "vlmbatch.report", "py.warnings")]
    states = [(each.handlers[:], each.propagate, each.level) for each in loggers]
    yield
    logging.captureWarnings(False)
    for each, (handlers, propagate, level) in zip(loggers, states, strict=True):
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)
    for number, action in actions.items():
        signal.signal(number, action)
