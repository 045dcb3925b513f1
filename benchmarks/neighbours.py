"""Measure whole runs beside other work: seconds in company over seconds alone, and the same of a
script with transformers' `generate`.

    python -m benchmarks.neighbours            # 256M shape, 8 photos of 12 MP, 3 rounds
    python -m benchmarks.neighbours --quick    # about two minutes on two cores

Both sides run as fresh processes on the same files, in turns. Each row is a condition:

    quiet       nothing else runs
    busy core   a program that never waits runs beside it
    half quota  a control group may use half the cores (or, where none can be made, an affinity)
    two runs    the same run twice at once

`speed` is seconds alone over seconds in company. `left` is the share of the processor that others
did not take: measured for the busy program, half in the other rows. `of left` is speed over left.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from vlmbatch.bench.checkpoint import cached_checkpoint
from vlmbatch.bench.pictures import photo
from vlmbatch.processor import processor_share

ROWS = ("quiet", "busy core", "half quota", "two runs")
CONTROL_GROUPS = (
    (Path("/sys/fs/cgroup/cpu"), "cpu.cfs_quota_us", "{limit}"),
    (Path("/sys/fs/cgroup"), "cpu.max", "{limit} 100000"),
)
"""Folder, file and its text for a quota, in version 1 and 2; a period has 100,000 microseconds."""


@dataclasses.dataclass(frozen=True)
class Taken:
    """A run: its wall seconds, and the share of the processor that was left for it."""

    seconds: float
    left: float


@dataclasses.dataclass(frozen=True)
class Task:
    """The work of both sides."""

    model: Path
    pictures: list[Path]
    new_tokens: int
    folder: Path

    def command(self, side: str, number: int) -> list[str]:
        """Return the command line of a side; ``number`` tells runs at the same time apart."""
        out = self.folder / f"{side}-{number}.jsonl"
        pictures = [str(path) for path in self.pictures]
        length = str(self.new_tokens)
        if side == "generate":
            start = [sys.executable, "-m", "benchmarks.plain_generate", "--new-tokens", length]
            return [*start, str(self.model), str(out), *pictures]
        start = [sys.executable, "-m", "vlmbatch", "caption", *pictures, "--model", str(self.model)]
        options = "--device cpu --dtype float32 --detail low --quiet --overwrite --progress off"
        return [*start, *options.split(), "--max-new-tokens", length, "-o", str(out)]


def measure(task: Task, side: str, row: str) -> Taken:
    """Do the work of a side once, in a condition."""
    if row == "busy core":
        return _beside_busy_core(task.command(side, 0))
    if row == "half quota":
        cores = processor_share().cores
        with _half(cores) as (prefix, left):
            return Taken(_run([[*prefix, *task.command(side, 0)]]), left)
    if row == "two runs":
        return Taken(_run([task.command(side, number) for number in range(2)]), 0.5)
    return Taken(_run([task.command(side, 0)]), 1.0)


def _run(commands: Sequence[Sequence[str]]) -> float:
    """Run commands at the same time, and return the seconds until the last one ended.

    Raises:
        RuntimeError: One failed.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    begun = time.perf_counter()
    running = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    errors = [process.communicate()[1] for process in running]
    seconds = time.perf_counter() - begun
    for command, process, error in zip(commands, running, errors, strict=True):
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)[:80]} …: {error[-500:]}")
    return seconds


def _beside_busy_core(command: Sequence[str]) -> Taken:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        watched = psutil.Process(busy.pid)
        before = sum(watched.cpu_times()[:2])
        seconds = _run([command])
        taken = sum(watched.cpu_times()[:2]) - before
    finally:
        busy.kill()
        busy.wait()
    return Taken(seconds, 1 - taken / (seconds * processor_share().cores))


@contextlib.contextmanager
def _half(cores: int) -> Iterator[tuple[list[str], float]]:
    """Yield the beginning of a command line that may use half the cores, and the share of them."""
    group = _group_with_quota(cores / 2)
    if group is None:
        some = sorted(os.sched_getaffinity(0))[: max(1, cores // 2)]
        yield ["taskset", "-c", ",".join(map(str, some))], len(some) / cores
        return
    try:
        yield ["sh", "-c", f'echo $$ > {group / "cgroup.procs"} && exec "$@"', "sh"], 0.5
    finally:
        group.rmdir()


def _group_with_quota(quota: float) -> Path | None:
    """Make a control group that may use this many cores; None where that is not allowed."""
    for root, file, text in CONTROL_GROUPS:
        group = root / f"vlmbatch-neighbours-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / file).write_text(text.format(limit=round(100_000 * quota)))
            return group
        except OSError:
            group.rmdir()  # this version is mounted without the processor's controller
    return None


def draw(folder: Path, count: int) -> list[Path]:
    """Write photos of 12 MP."""
    paths = [folder / f"{number:02}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        photo(number, 4000, 3000).save(path, "JPEG", quality=90)
    return paths


def report(row: str, side: str, alone: Sequence[Taken], taken: Sequence[Taken]) -> str:
    """Make the line of a row: medians, with the least and the most of several rounds."""
    quiet = statistics.median(one.seconds for one in alone)
    seconds = [one.seconds for one in taken]
    left = statistics.median(one.left for one in taken)
    middle = statistics.median(seconds)
    spread = f" ({min(seconds):.1f} to {max(seconds):.1f})" if len(seconds) > 1 else ""
    speed = quiet / middle
    return (
        f"{row:<12}{side:<10}{f'{middle:.1f} s{spread}':<26}{speed:>8.2f}{left:>8.2f}"
        f"{speed / left:>9.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="256m")
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=ROWS[1:], action="append", help="beside quiet")
    parser.add_argument("--quick", action="store_true", help="2 photos, 8 tokens, one round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.photos, arguments.new_tokens, arguments.rounds = 2, 8, 1
    rows = [row for row in ROWS if row == "quiet" or not arguments.only or row in arguments.only]
    sides = ("vlmbatch", "generate")
    found: dict[str, dict[str, list[Taken]]] = {side: {row: [] for row in rows} for side in sides}
    with tempfile.TemporaryDirectory() as name:
        pictures = draw(Path(name), arguments.photos)
        model = cached_checkpoint(arguments.shape)
        task = Task(model, pictures, arguments.new_tokens, Path(name))
        # The files come into memory, and the kernels are chosen on a quiet machine, for all threads
        # and for those of half a quota.
        for row in {"quiet", "half quota"} & set(rows):
            measure(dataclasses.replace(task, pictures=pictures[:1]), "vlmbatch", row)
        print(f"{'':<12}{'':<10}{'seconds':<26}{'speed':>8}{'left':>8}{'of left':>9}", flush=True)
        for number in range(arguments.rounds):
            for row in rows:
                for side in sides:
                    found[side][row].append(measure(task, side, row))
                    if number == arguments.rounds - 1:
                        alone, taken = found[side]["quiet"], found[side][row]
                        print(report(row, side, alone, taken), flush=True)
    if arguments.json:
        listed = {
            side: {row: [dataclasses.asdict(one) for one in taken] for row, taken in rows.items()}
            for side, rows in found.items()
        }
        arguments.json.write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    main()
