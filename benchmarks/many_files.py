"""Measure a folder of a million pictures: time until the first is prepared, memory per path, and
time until a run knows all finished rows.

    python -m benchmarks.many_files
    python -m benchmarks.many_files --files 100000 --json

The files are links to a few small pictures in one folder. That is the hardest case: a folder is
sorted before its first file is known. Every figure is measured in a fresh process, as wall time and
CPU time; on a busy machine only the CPU time is meaningful. The pipeline prepares the first picture
as on the command line, progress included, with an engine that answers nothing. ``bytes`` is the
peak growth of the process per path or row.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from vlmbatch.core import Conversation, Record, Request
from vlmbatch.job import Job
from vlmbatch.write.store import CommitPolicy, OutputStore

LINKS_A_FILE = 50_000
"""ext4 allows 65,000 links to a file."""

PROMPT = "Describe this image in one sentence."
NEVER = CommitPolicy(rows=1 << 14, seconds=1e9, publish_seconds=1e9)


def make_folder(folder: Path, count: int) -> None:
    """Make this many picture files, in an order other than that of their names."""
    folder.mkdir()
    for number in range(count):
        path = folder / f"IMG_{number * 7_919 % count:08d}.png"
        if number % LINKS_A_FILE == 0:
            first = path
            Image.new("RGB", (8, 8), (number % 256, 128, 0)).save(path)
        else:
            os.link(first, path)


class Measured:
    """Seconds and bytes between construction and ``stop``."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._begun, self._cpu, self._bytes = (
            time.perf_counter(),
            time.process_time(),
            self._process.memory_info().rss,
        )

    def stop(self) -> dict[str, float]:
        """Return the figures so far."""
        peak = _peak_bytes(self._process)
        return {
            "wall_seconds": time.perf_counter() - self._begun,
            "cpu_seconds": time.process_time() - self._cpu,
            "peak_bytes": peak - self._bytes,
        }


def _peak_bytes(process: psutil.Process) -> int:
    """Peak memory of the process, where the system reports it; elsewhere its current memory."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return int(process.memory_info().rss)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def first_prepared(folder: Path, output: Path) -> dict[str, float]:
    """Measure until the pipeline has prepared its first picture."""
    from vlmbatch.engine.scripted import ScriptedEngine
    from vlmbatch.run.pipeline import Run
    from vlmbatch.run.progress import ProgressReporter

    found: dict[str, float] = {}

    class FirstOnly(ScriptedEngine):
        def prepare(self, conversation: Conversation, questions: Any) -> Request:
            if not found:
                found.update(measured.stop())
                run.stop()
            return super().prepare(conversation, questions)

    measured = Measured()
    with ProgressReporter(bar=False, lines=True) as reporter:
        run = Run(
            Job(inputs=(str(folder),), output=str(output)), engine=FirstOnly(), reporter=reporter
        )
        run.start()
    return found


def listing(folder: Path, shuffle: bool) -> dict[str, float]:
    """Measure until the last Item; ``shuffle`` holds them all in memory, as a run does."""
    from vlmbatch.read import open_reader

    reader = open_reader(Job(inputs=(str(folder),), output="x.jsonl", shuffle=shuffle))
    measured = Measured()
    count = len(list(reader)) if shuffle else sum(1 for _ in reader)
    return {**measured.stop(), "rows": count}


def open_store(output: Path) -> OutputStore:
    job = Job(inputs=("pictures",), output=str(output), model="demo")
    return OutputStore(output, job, {**job.identity(), "revision": "r1"}, policy=NEVER)


def write_rows(output: Path, count: int, killed: bool) -> None:
    """Write the rows of a run over this many pictures, finished or killed before its end."""
    rows = open_store(output)
    for number in range(count):
        rows.write(_record(number), f"{1000 + number}:1700000000000000000")
    rows.commit()
    if killed:
        os._exit(0)
    rows.close()


def _record(number: int) -> Record:
    from tests.write.rows import record

    name = f"IMG_{number:08d}.png"
    return record(number, id=name, source=f"/data/pictures/{name}", prompt=PROMPT)


def resumed(output: Path, count: int) -> dict[str, float]:
    """Measure until every row is known to be done, with its position."""
    measured = Measured()
    rows = open_store(output)
    for number in range(count):
        name = f"IMG_{number:08d}.png"
        if not rows.done(
            name,
            "caption",
            PROMPT,
            f"/data/pictures/{name}",
            f"{1000 + number}:1700000000000000000",
        ):
            raise SystemExit(f"row {number} is not known")
        rows.keep(name, "caption", PROMPT, number)
    figures = {**measured.stop(), "rows": count}
    rows.close()
    return figures


def alone(call: Callable[[], Any]) -> Any:
    """Return the result of a call in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call).result()


def measure(count: int, folder: Path) -> list[dict[str, Any]]:
    """Return one row per figure."""
    pictures, output = folder / "pictures", folder / "out.jsonl"
    make_folder(pictures, count)
    rows = [
        {
            "what": "first picture prepared",
            **alone(functools.partial(first_prepared, pictures, folder / "first.jsonl")),
        },
        {"what": "all listed", **alone(functools.partial(listing, pictures, False))},
        {"what": "all listed, --shuffle", **alone(functools.partial(listing, pictures, True))},
    ]
    shutil.rmtree(pictures)
    alone(functools.partial(write_rows, output, count, False))
    rows.append(
        {"what": "resume, finished OUTPUT", **alone(functools.partial(resumed, output, count))}
    )
    Path(f"{output}.journal").unlink()
    rows.append(
        {
            "what": "resume, OUTPUT without its journal",
            **alone(functools.partial(resumed, output, count)),
        }
    )
    for path in (output, Path(f"{output}.journal")):
        path.unlink()
    killed = multiprocessing.get_context("spawn").Process(
        target=write_rows, args=(output, count, True)
    )
    killed.start()
    killed.join()
    rows.append(
        {
            "what": "resume, killed before the end",
            **alone(functools.partial(resumed, output, count)),
        }
    )
    for row in rows:
        row["bytes_each"] = row.pop("peak_bytes") / count
        for clock in ("wall", "cpu"):
            row[f"{clock}_per_second"] = (
                row["rows"] / row[f"{clock}_seconds"] if "rows" in row else None
            )
    return rows


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--files", type=int, default=1_000_000, help="files in the folder, and rows in OUTPUT"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help=(
            "where they are made, and removed again; default: the system's folder for temporary "
            "files"
        ),
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(options.files, Path(folder))
    if options.json:
        json.dump(rows, sys.stdout, indent=2)
        print()
        return
    print(
        f"{f'{options.files:,} files':<36}{'wall s':>8}{'CPU s':>8}{'a second':>11}"
        f"{'a CPU second':>14}{'bytes each':>12}"
    )
    for row in rows:
        rates = [
            f"{row[f'{clock}_per_second']:,.0f}" if row[f"{clock}_per_second"] else ""
            for clock in ("wall", "cpu")
        ]
        print(
            f"{row['what']:<36}{row['wall_seconds']:>8.2f}{row['cpu_seconds']:>8.2f}{rates[0]:>11}{rates[1]:>14}{row['bytes_each']:>12,.0f}"
        )


if __name__ == "__main__":
    main()
