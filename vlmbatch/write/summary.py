"""``OUTPUT.summary.json``: the figures of a run, and its settings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmbatch.errors import OutputError
from vlmbatch.write.atomic import beside, replacing


def summary_path(output: Path) -> Path:
    """Return the path of the summary of an OUTPUT."""
    return beside(output, ".summary.json")


def write_summary(output: Path, summary: Mapping[str, Any]) -> Path:
    """Write the summary of an OUTPUT, whole or not at all. Numbers that are not finite become null.

    Args:
        output: The OUTPUT.
        summary: Plain values; under ``identity`` the settings that the rows depend on.

    Returns:
        The file.

    Raises:
        OutputError: It cannot be written.
    """
    path = summary_path(output)
    with replacing(path) as file:
        file.write(
            json.dumps(
                _finite(summary), ensure_ascii=False, indent=2, allow_nan=False, default=str
            ).encode("utf-8", "backslashreplace")
            + b"\n"
        )
    return path


def read_summary(output: Path) -> dict[str, Any] | None:
    """Read the summary of an OUTPUT; None when there is none.

    Raises:
        OutputError: There is one and it cannot be read.
    """
    path = summary_path(output)
    try:
        summary = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    return summary if isinstance(summary, dict) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
