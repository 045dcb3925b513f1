"""Whether a run may go on with an OUTPUT: only one that was made with the same settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmbatch.errors import OutputError
from vlmbatch.write.columns import Row
from vlmbatch.write.summary import read_summary


def earlier_identity(output: Path, first: Row, here: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that an OUTPUT without a journal was made with: from its summary, or else this
    run's with its first row's model and revision.
    """
    try:
        summary = read_summary(output) or {}
    except OutputError:
        summary = {}
    identity = summary.get("identity")
    if isinstance(identity, dict):
        return identity
    return {**here, "model": first["model"], "revision": first["revision"]}


def check_identity(output: Path | str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuses to mix rows that were made with different settings.

    Args:
        output: OUTPUT, for the message.
        there: The settings its rows were made with.
        here: This run's, as plain JSON values.

    Raises:
        OutputError: They differ; the message names each difference.
    """
    names = [*here, *(name for name in there if name not in here)]
    if here.get("revision") == there.get("revision") and str(here.get("revision")).startswith(
        "sha256:"
    ):
        names.remove("model")  # the same folder under another path
    pairs = [(name, there.get(name), here.get(name)) for name in names]
    differences = [
        f"{name}: {_shown(theirs)} there, {_shown(ours)} here"
        for name, theirs, ours in pairs
        if not _same(name, theirs, ours)
    ]
    if differences:
        raise OutputError(
            f"{output} was made with other settings ({'; '.join(differences)}); --overwrite starts it anew"
        )


def _same(name: str, there: Any, here: Any) -> bool:
    """A revision that is not known on one side is no difference."""
    return there == here or (name == "revision" and not (there and here))


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
