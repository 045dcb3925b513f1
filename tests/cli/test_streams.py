"""Commands whose standard streams are closed or broken, as under a daemon or after a hang-up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.media import write_picture


def start(folder: Path, redirect: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell that redirects its streams."""
    command = [sys.executable, "-m", "vlmbatch", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" {redirect}', *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("redirect", ["2>&-", "<&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_a_run_with_closed_streams_writes_its_rows_and_nothing_else_into_output(
    tmp_path: Path, tiny: Path, redirect: str
) -> None:
    write_picture(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "bad.png").write_bytes(b"no picture")
    arguments = ["caption", "photos", "--model", tiny, "--max-new-tokens", 2, "-o", "out.jsonl"]
    result = start(tmp_path, redirect, *arguments, "-vv", "--progress", "on")
    assert result.returncode == 3
    assert "Traceback" not in result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["status"]) for row in rows] == [("a.png", "ok"), ("bad.png", "error")]


@pytest.mark.parametrize(
    ("redirect", "arguments", "code", "message"),
    [
        ("<&-", ["caption", "-", "--model", "demo", "--dry-run"], 0, ""),
        ("<&-", ["run", "-"], 2, "vlmbatch: -: a job file holds keys and values"),
        ("2>&-", ["caption", "nowhere"], 2, ""),
        ("2>&- >&-", ["models", "list"], 1, ""),
    ],
)
def test_a_command_with_closed_streams_ends_with_its_own_exit_code(
    tmp_path: Path, redirect: str, arguments: list[str], code: int, message: str
) -> None:
    result = start(tmp_path, redirect, *arguments)
    assert result.returncode == code
    assert result.stderr.startswith(message)
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full device")
@pytest.mark.parametrize("arguments", [["caption", "nowhere"], ["caption"], ["captoin", "x"]])
def test_a_stderr_that_fails_does_not_change_the_exit_code(
    tmp_path: Path, arguments: list[str]
) -> None:
    assert start(tmp_path, "2>/dev/full", *arguments).returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full device")
def test_a_progress_bar_that_cannot_be_drawn_does_not_end_a_run(tmp_path: Path, tiny: Path) -> None:
    write_picture(tmp_path / "a.png")
    arguments = ["caption", "a.png", "--model", tiny, "--max-new-tokens", 2, "-o", "out.jsonl"]
    assert start(tmp_path, "2>/dev/full", *arguments, "--progress", "on").returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full device")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "vlmbatch", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (result.returncode, result.stderr) == (
        1,
        "vlmbatch: cannot write to stdout: No space left on device\n",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["caption", "a.png", "--model", "demo", "--dry-run"],
        ["caption", "a.png", "--model", "demo", "-o", "-"],
    ],
)
def test_a_closed_stdout_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    write_picture(tmp_path / "a.png")
    command = ["sh", "-c", 'exec "$0" "$@" >&-', sys.executable, "-m", "vlmbatch", *arguments]
    result = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (
        1,
        "vlmbatch: cannot write to stdout: it is closed\n",
    )


def test_a_terminal_that_lacks_a_character_shows_the_rest() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    result = subprocess.run(
        [sys.executable, "-m", "vlmbatch", "video", "--help"],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"--at T,T,\\u2026" in result.stdout
