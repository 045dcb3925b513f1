"""Damaged files of every kind: rows, never a crash, a hang or a gigabyte, and the files after them
are read.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults.damage import variants
from tests.faults.specimens import MANIFESTS, SPECIMENS, beside

ROOT = Path(__file__).parents[2]
MOST_BYTES = 1 << 30
TEXT_TABLES = (".txt", ".csv", ".jsonl")
"""A table of text that was cut after a line is a shorter table; every other kind of file says how
long it is.
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    """(what was done to it, file) of all damaged files."""
    folder = tmp_path_factory.mktemp("damaged")
    for name, content in beside().items():
        (folder / name).write_bytes(content)
    found = []
    for number, (name, make) in enumerate(SPECIMENS.items()):
        for kind, (what, content) in enumerate(variants(make(), seed=number)):
            path = folder / f"{kind:02d}-{name}"
            path.write_bytes(content)
            found.append((what, path))
    return found


def reports(
    paths: Sequence[Path], program: Sequence[str] = ("-m", "tests.faults.loading")
) -> Iterator[dict[str, Any]]:
    """What the loading process says of each file. After a file that ends it another process goes
    on.
    """
    left = list(paths)
    while left:
        process = subprocess.run(
            [sys.executable, *program],
            cwd=ROOT,
            input="".join(f"{path}\n" for path in left),
            capture_output=True,
            text=True,
            check=False,
        )
        said = [json.loads(line) for line in process.stdout.splitlines()]
        ended = [entry for entry in said if "ended" in entry]
        yield from ended
        left = left[len(ended) :]
        if left:
            assert process.returncode, process.stderr
            name = (
                signal.Signals(-process.returncode).name
                if process.returncode < 0
                else process.stderr[-300:]
            )
            yield {"ended": str(left.pop(0)), "raised": f"the process ended: {name}", "bytes": 0}


def troubles(
    found: Sequence[tuple[str, Path]], program: Sequence[str] = ("-m", "tests.faults.loading")
) -> list[str]:
    what = {str(path): f"{path.name}, {done}" for done, path in found}
    trouble = []
    for said in reports([path for _, path in found], program):
        name = what.pop(said["ended"])
        is_table = said["ended"].endswith(tuple(MANIFESTS))
        if "raised" in said or ("refused" in said and not is_table):
            trouble.append(f"{name}: {said.get('raised') or said['refused']}")
        elif (
            "refused" not in said
            and not said["good"] + said["bad"]
            and not said["ended"].endswith(TEXT_TABLES)
        ):
            trouble.append(f"{name}: no row")
        if said["bytes"] >= MOST_BYTES:
            trouble.append(f"{name}: {said['bytes'] / 2**20:.0f} MiB")
    return trouble + [f"{name}: nothing was said" for name in what.values()]


def test_whole_files_of_every_kind_are_read(tmp_path: Path) -> None:
    for name, content in beside().items():
        (tmp_path / name).write_bytes(content)
    for name, make in SPECIMENS.items():
        (tmp_path / name).write_bytes(make())
    said = list(reports([tmp_path / name for name in SPECIMENS]))
    assert [Path(entry["ended"]).name for entry in said] == list(SPECIMENS)
    assert [entry for entry in said if entry.get("bad") != 0 or entry.get("good", 0) < 1] == []


@pytest.mark.timeout(600)
def test_damaged_files_are_rows(corpus: list[tuple[str, Path]]) -> None:
    assert len(corpus) >= 1000
    assert troubles(random.Random(11).sample(corpus, 160)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_damaged_file_is_rows(corpus: list[tuple[str, Path]]) -> None:
    assert troubles(corpus) == []


ODD_LOADER = """
import os, signal
from tests.faults import loading
load = loading.load
def odd(job):
    name = os.path.basename(job.inputs[0])
    if name == "crash.png":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "hang.png":
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        signal.pause()
    if name == "hog.png":
        bytearray(1 << 20) * 1100
    return load(job)
loading.load = odd
loading.main()
"""


def test_the_watchdog_sees_a_crash_a_hang_and_a_gigabyte(tmp_path: Path) -> None:
    names = ("0.png", "crash.png", "hang.png", "hog.png", "1.png")
    for name in names:
        (tmp_path / name).write_bytes(beside()["0.png"])
    found = [("nothing", tmp_path / name) for name in names]
    crash, hang, hog = troubles(found, ("-c", ODD_LOADER))
    assert crash == "crash.png, nothing: the process ended: SIGSEGV"
    assert hang == "hang.png, nothing: the process ended: SIGALRM"
    assert hog.startswith("hog.png, nothing: 11")


def test_names_that_no_file_can_have_are_error_rows(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(beside()["0.png"])
    names = [
        "a\0b.png",
        "\ud800.png",
        "\udcff.png",
        "x" * 300 + ".png",
        "a/" * 2500 + "b.png",
        "0.png/b.png",
        "\n.png",
        ".",
        "..",
        "//",
        "file:///%00",
        "~",
    ]
    lines = [
        *({"path": name} for name in names),
        {"path": "0.png", "id": "\ud800"},
        {"path": "0.png", "id": "a\0b"},
        {"path": "0.png"},
        "\ud801",
        "a\0",
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "list.txt").write_bytes(b"\xff\xfd.png\n" + b"x" * 5000 + b"\n0.png\n./0.png\n")
    said = list(reports([tmp_path / "list.jsonl", tmp_path / "list.txt"]))
    assert [(entry.get("raised"), entry.get("good"), entry.get("bad")) for entry in said] == [
        (None, 3, len(lines) - 3),
        (None, 1, 2),
    ]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_tar_that_lost_a_part_says_so_wherever_it_is_cut(tmp_path: Path, suffix: str) -> None:
    whole = SPECIMENS["plain.tar"]()
    entries = [member.offset for member in tarfile.open(fileobj=io.BytesIO(whole)).getmembers()]
    end = len(whole.rstrip(b"\0"))
    holed = {
        "hole": whole[: entries[2] - 600] + bytes(900) + whole[entries[2] + 300 :],
        "two": whole + whole,
        "zeros": bytes(len(whole)),
    }
    damaged = {
        **{
            f"cut at {place}": whole[:place]
            for place in (*entries[1:], entries[1] + 200, end // 512 * 512)
        },
        **holed,
    }
    for what, content in damaged.items():
        (tmp_path / f"{what}.{suffix}").write_bytes(
            content if suffix == "tar" else gzip.compress(content)
        )
    (tmp_path / f"whole.{suffix}").write_bytes(whole if suffix == "tar" else gzip.compress(whole))
    said = {
        Path(entry["ended"]).name.removesuffix(f".{suffix}"): (entry["good"], entry["bad"])
        for entry in reports(sorted(tmp_path.iterdir()))
    }
    assert said.pop("whole") == (4, 0)
    silent = [what for what, (_, bad) in said.items() if not bad]
    assert silent == (
        ["zeros"] if suffix == "tar.gz" else []
    )  # packed on purpose, zeros are an empty archive
