"""The check that a run continues only an OUTPUT that was made with the same settings.

An identity is a mapping of plain JSON values: ``engine``, ``model``, ``revision``, ``detail`` and
whatever else answers and ids depend on. Settings of generation stand under ``tasks`` by task, so
that captions and texts of the same items share one OUTPUT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmbatch.errors import OtherSettingsError, OutputError
from vlmbatch.write.columns import Row
from vlmbatch.write.summary import read_summary

ANSWER_SETTINGS = ("engine", "model", "revision", "detail", "quantize")
"""Settings, beside those of generation, on which answers depend and not the choice of items."""

_GENERATION = ("max_new_tokens", "temperature", "top_p", "seed")
"""Keys that stood at the top before they stood under their task."""

_FORMS = ("schema", "regex", "choices")
"""Digests of the constraint of answers, under their task."""


def previous_identity(output: Path, first: Row, here: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an OUTPUT without a journal: from its summary, or this run's settings
    with the model, revision and engine of the first row.

    Raises:
        OutputError: There is neither a summary nor settings of this run.
    """
    try:
        summary = read_summary(output) or {}
    except OutputError:
        summary = {}
    identity = summary.get("identity")
    if isinstance(identity, dict):
        return identity
    if not here:
        raise OutputError(
            f"{output} has neither its journal nor its summary beside it: run its job again first"
        )
    found = {**here, "model": first["model"], "revision": first["revision"]}
    if here.get("engine") and first["engine"]:
        found["engine"] = first["engine"]
    return found


def check_identity(output: Path | str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse to mix rows that were made with different settings.

    Args:
        output: OUTPUT, for the message.
        there: The settings its rows were made with.
        here: This run's, as plain JSON values.

    Raises:
        OtherSettingsError: They differ; the message names each difference.
    """
    theirs, ours = _flat(there, here), _flat(here, here)
    names = [*ours, *(name for name in theirs if name not in ours)]
    if here.get("revision") == there.get("revision") and str(here.get("revision")).startswith(
        "sha256:"
    ):
        names.remove("model")  # the same folder under another path
    different = [name for name in names if not _same(name, theirs.get(name), ours.get(name))]
    differences = [
        f"{name}: {_shown(theirs.get(name))} there, {_shown(ours.get(name))} here"
        for name in different
    ]
    if differences:
        may_redo = set(different) <= {*ANSWER_SETTINGS, *_GENERATION, *_FORMS}
        raise OtherSettingsError(
            f"{output} was made with other settings ({'; '.join(differences)}); "
            "--overwrite starts it anew"
            + (", --redo stale asks again with those given here" if may_redo else ""),
            tuple(different),
        )


def joined_identity(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """Return this run's identity with the tasks that the OUTPUT has already."""
    if "tasks" not in here:
        return dict(here)
    earlier = {name: there[name] for name in _GENERATION if name in there}
    return {**earlier, **here, "tasks": {**(there.get("tasks") or {}), **here["tasks"]}}


def _flat(identity: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that matter for this run's tasks, without nesting."""
    found = {name: value for name, value in identity.items() if name != "tasks"}
    if here.get("engine"):
        found.setdefault("engine", "torch")  # before there were others
    if not here.get("tasks"):
        return found
    earlier = {name: found.pop(name) for name in _GENERATION if name in found}
    for task, ours in here["tasks"].items():
        found |= (identity.get("tasks") or {}).get(task, earlier or ours)
    return found


def _same(name: str, there: Any, here: Any) -> bool:
    """Compare two settings. A revision that is not known on one side is no difference."""
    return bool(there == here) or (name == "revision" and not (there and here))


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
