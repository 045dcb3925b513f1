"""Twenty thousand items in one run: memory, threads and open files stay where they were, and the
counts are right.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.faults.runs import CAPTION_PHOTOS, begin
from tests.media import write_picture
from vlmbatch.write import read_records

ITEMS = 20_000
PICTURES = 50
"""Different ones, each under many names."""

EVERY_BAD = 100
WARM_ITEMS = 2_000
MOST_GROWTH_BYTES = 64 << 20
"""About 200 bytes a row belong to the table of rows, and an allocator keeps some megabytes; a
picture kept by each item would be many times that.
"""


def write_items(folder: Path) -> None:
    """Small pictures; one name in a hundred is a damaged one."""
    held = folder.parent / "held"
    for number in range(PICTURES):
        write_picture(held / f"{number}.png", 24, 24, seed=number)
    (held / "bad.png").write_bytes((held / "0.png").read_bytes()[:100])
    for number in range(ITEMS):
        target = folder / f"{number // 1000:02d}" / f"{number:05d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(
            held
            / ("bad.png" if number % EVERY_BAD == EVERY_BAD - 1 else f"{number % PICTURES}.png")
        )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_threads_and_files_do_not_grow_over_a_long_run(tmp_path: Path) -> None:
    write_items(tmp_path / "photos")
    journal, output = tmp_path / "out.jsonl.journal", tmp_path / "out.jsonl"
    process = begin(tmp_path, *CAPTION_PHOTOS, "-o", "out.jsonl")
    watched = psutil.Process(process.pid)
    seen: list[tuple[int, int, int, int]] = []  # rows in the journal, bytes, threads, open files
    rows = place = 0
    while process.poll() is None:
        time.sleep(0.5)  # samples of another process; nothing is synchronised by it
        if journal.exists():
            with open(journal, "rb") as file:
                file.seek(place)
                block = file.read()
                rows, place = rows + block.count(b"\n"), place + len(block)
        try:
            with watched.oneshot():
                seen.append(
                    (
                        rows,
                        watched.memory_info().rss,
                        watched.num_threads(),
                        len(os.listdir(f"/proc/{process.pid}/fd")),
                    )
                )
        except (psutil.Error, OSError):
            break
    _, errors = process.communicate()
    assert process.returncode == 3, errors
    assert "Traceback" not in errors

    warm = [entry for entry in seen if WARM_ITEMS <= entry[0] < 2 * WARM_ITEMS]
    late = [entry for entry in seen if entry[0] >= ITEMS * 3 // 4]
    assert warm
    assert late
    growth, threads, files = (
        max(entry[column] for entry in late) - max(entry[column] for entry in warm)
        for column in (1, 2, 3)
    )
    print(
        f"\n{growth / 2**20:+.1f} MiB, {threads:+d} threads, {files:+d} open files "
        f"from item {warm[0][0]:,} to {late[-1][0]:,}"
    )
    assert growth < MOST_GROWTH_BYTES
    assert threads <= 0
    assert files <= 2  # a new OUTPUT is being written now and then

    found = list(read_records(output, ("id", "index", "status", "error_type")))
    assert [row["index"] for row in found] == list(range(ITEMS))
    assert [row["id"] for row in found] == [
        f"{number // 1000:02d}/{number:05d}.png" for number in range(ITEMS)
    ]
    assert Counter((row["status"], row["error_type"]) for row in found) == {
        ("ok", None): ITEMS - ITEMS // EVERY_BAD,
        ("error", "DecodeError"): ITEMS // EVERY_BAD,
    }
    summary = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert summary["status"] == {"ok": ITEMS - ITEMS // EVERY_BAD, "error": ITEMS // EVERY_BAD}
