"""Compare wall time with the engine's busy time, and memory with the number of items, in fresh
processes.

    python -m benchmarks.pipeline          # demo model; 1,000 and 10,000 pictures of one tile
    python -m benchmarks.pipeline --model FOLDER --items 40
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


def draw(folder: Path, count: int) -> None:
    """Write small pictures of coloured blocks."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(np.kron(blocks, np.ones((16, 16, 1), np.uint8))).save(
            folder / f"{number:06d}.png"
        )


def run(folder: Path, model: str, items: int, new_tokens: int, output: Path) -> dict[str, float]:
    """Caption this many pictures in a fresh process and read its summary."""
    command = [
        sys.executable,
        "-m",
        "vlmbatch",
        "caption",
        str(folder),
        "--model",
        model,
        "--limit",
        str(items),
        "-o",
        str(output),
    ]
    subprocess.run(
        [
            *command,
            "--detail",
            "low",
            "--max-new-tokens",
            str(new_tokens),
            "--quiet",
            "--overwrite",
        ],
        check=True,
    )
    summary = json.loads(Path(f"{output}.summary.json").read_text())
    busy = summary["engine"]["busy_seconds"]
    return {
        "items": items,
        "wall": summary["wall_seconds"],
        "busy": busy,
        "ratio": summary["wall_seconds"] / busy,
        "peak_mb": summary["peak_host_bytes"] / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--new-tokens", type=int, default=32)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        draw(Path(name) / "pictures", max(arguments.items))
        print(f"{'items':>8}{'wall s':>10}{'busy s':>10}{'wall/busy':>11}{'peak MB':>9}")
        for items in arguments.items:
            figures = run(
                Path(name) / "pictures",
                arguments.model,
                items,
                arguments.new_tokens,
                Path(name) / "out.jsonl",
            )
            print(
                f"{items:>8}{figures['wall']:>10.1f}{figures['busy']:>10.1f}{figures['ratio']:>11.3f}{figures['peak_mb']:>9.0f}"
            )


if __name__ == "__main__":
    main()
