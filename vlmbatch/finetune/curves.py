"""Draw the curves of a training log. matplotlib is imported when a picture is drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a training log."""
    entries = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            entries.append(json.loads(line))
    except (OSError, ValueError):
        pass  # no log yet, or a last line that a kill cut off
    return entries


def draw_curves(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw loss and held-out accuracy over the updates.

    Args:
        entries: Lines of the log.
        path: The picture to write.
    """
    # Without pyplot: no display is needed, and no global state is changed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    losses = figure.add_subplot()
    losses.set_xlabel("updates")
    losses.set_ylabel("loss a token")
    losses.grid(alpha=0.3)
    for key, label in (("loss", "trained on"), ("eval_loss", "held out")):
        points = [(entry["step"], entry[key]) for entry in entries if entry.get(key) is not None]
        if points:
            losses.plot(
                *zip(*points, strict=True), marker="." if key == "eval_loss" else "", label=label
            )
    points = [
        (entry["step"], 100 * entry["eval_answer_accuracy"])
        for entry in entries
        if "eval_answer_accuracy" in entry
    ]
    if points:
        shares = losses.twinx()
        shares.plot(
            *zip(*points, strict=True),
            color="tab:green",
            linestyle="--",
            marker=".",
            label="held-out answers right",
        )
        shares.set_ylabel("%")
        shares.set_ylim(0, 100)
    if losses.has_data():
        figure.legend(loc="outside upper center", ncols=3)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)
