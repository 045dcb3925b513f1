"""Processes that the tests kill, or take the disk away from: ``python -m tests.write.child WHAT
OUTPUT …``.
"""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path

from tests.write.rows import record, store
from vlmbatch.errors import OutputError
from vlmbatch.write import CommitPolicy

BUSY = CommitPolicy(rows=7, seconds=10, publish_seconds=0.0, publish_share=float("inf"))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def write_until_killed(output: Path, total: int) -> None:
    """Do every row that is not done, as fast as possible, and say which were committed."""
    with store(output, policy=BUSY) as rows:
        say("open")
        fresh = []
        for number in range(total):
            made = record(number, text=f"{number} " * 50)
            if rows.done(*made.key, made.source, "size"):
                rows.keep(*made.key, number)
                continue
            rows.write(made, "size")
            fresh.append(number)
            if number % 5 == 4:
                rows.commit()
                say("committed " + " ".join(map(str, fresh)))
                fresh = []
    say("finished")


def hold(output: Path) -> None:
    """Hold OUTPUT until the process is killed."""
    rows = store(output)
    say("open")
    signal.pause()
    rows.close()


def fill_disk(output: Path, limit: int) -> None:
    """Write rows until no file may grow any more."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    committed = 0
    try:
        with store(output) as rows:
            for number in range(100_000):
                rows.write(record(number))
                if number % 10 == 9:
                    rows.commit()
                    committed = number + 1
    except OutputError as error:
        say(f"{committed} {error}")


def publish_on_full_disk(output: Path, limit: int) -> None:
    """Have room for the journal but not for OUTPUT."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    rows = store(output)
    for number in range(200):
        rows.write(record(number))
    rows.commit()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        rows.close()
    except OutputError as error:
        say(str(error))


def reorder_on_full_disk(output: Path, limit: int) -> None:
    """Have no room for the temporary file of rows that change places."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    rows = store(output)
    for number in range(50):
        rows.keep(*record(number).key, 50 - number)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        rows.close()
    except OutputError as error:
        say(str(error))


if __name__ == "__main__":
    what, path, *numbers = sys.argv[1:]
    globals()[what](Path(path), *map(int, numbers))
