"""Small sets of rows to learn from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training import scenes
from vlmbatch.tasks import DEFAULT_PROMPTS

PROMPT = DEFAULT_PROMPTS["caption"]


def reworded(caption: str) -> str:
    """Return a caption in a wording that the demo model never uses."""
    return f"Here you see {caption[0].lower()}{caption[1:]}"


def write_scenes(
    folder: Path, count: int, wording: Callable[[str], str] = reworded, seed: int = 5
) -> Path:
    """Draw small scenes of shapes and write a row for each.

    Returns:
        ``data.jsonl`` in the folder.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        scene = scenes.random_scene(rng, longest=(64, 96), reading=0.0)
        Image.fromarray(scene.pixels).save(folder / f"{number:02d}.png")
        rows.append(
            {"image": f"{number:02d}.png", "prompt": PROMPT, "answer": wording(scene.caption)}
        )
    return write_rows(folder / "data.jsonl", rows)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
