"""Figures of an OUTPUT for Prometheus: a file that node exporter's text file collector reads
(https://github.com/prometheus/node_exporter#textfile-collector).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmbatch.errors import MissingDependencyError, OutputError, one_line

_COUNTS = {
    "items": "Items that have rows.",
    "tiles": "Tiles of the pictures.",
    "prompt_tokens": "Tokens of the prompts.",
    "new_tokens": "Tokens of the answers.",
}


def write_metrics(path: Path, output: str, figures: Mapping[str, Any]) -> None:
    """Write a file of metrics, whole or not at all.

    Args:
        path: The file; it ends in ``.prom``, or the collector would not read it.
        output: OUTPUT, the value of a label.
        figures: From ``collect``.

    Raises:
        OutputError: It cannot be written.
        MissingDependencyError: prometheus-client is not installed.
    """
    try:
        import prometheus_client
    except ImportError as error:
        raise MissingDependencyError(
            "--metrics needs prometheus-client: pip install 'vlmbatch[metrics]'"
        ) from error
    registry = prometheus_client.CollectorRegistry()

    def gauge(name: str, text: str, value: float, **labels: str) -> None:
        labels = {"output": output, **labels}
        found = made.get(name) or prometheus_client.Gauge(
            f"vlmbatch_{name}", text, [*labels], registry=registry
        )
        made[name] = found
        found.labels(**labels).set(value)

    made: dict[str, prometheus_client.Gauge] = {}
    for status in dict.fromkeys(("ok", "error", *figures["status"])):
        count = figures["status"].get(status, 0)
        gauge("output_rows", "Rows of each status.", count, status=status)
    for kind, count in figures["errors"].items():
        gauge("output_errors", "Error rows of each kind.", count, error_type=kind)
    for name, text in _COUNTS.items():
        gauge(f"output_{name}", text, figures[name])
    busy = figures["phases"]["compute_seconds"]["total"]
    gauge("output_busy_seconds", "Time that engines have computed.", busy)
    gauge("output_runs", "Runs over OUTPUT.", figures["runs"])
    for name, text, number in _last_run(figures["last_run"] or {}):
        gauge(f"last_run_{name}", text, number)
    try:
        prometheus_client.write_to_textfile(str(path), registry)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {one_line(error)}") from error


def _last_run(run: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    if not run:
        return []
    ended = datetime.datetime.fromisoformat(run["ended_at"])
    return [
        ("exit_code", "Exit code of the last run.", run["exit_code"]),
        ("end_timestamp_seconds", "End of the last run, Unix time.", ended.timestamp()),
        ("wall_seconds", "Time that the last run took.", run["wall_seconds"]),
        ("rows", "Rows that the last run made.", run["rows"]),
        ("error_rows", "Rows of them that are errors.", run["status"].get("error", 0)),
        ("new_tokens", "Tokens of the answers of the last run.", run["new_tokens"]),
    ]
