"""Keep the state of a training in OUT: its settings, its checkpoints, its lock."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vlmbatch.errors import OutputError
from vlmbatch.write.atomic import reason, replacing
from vlmbatch.write.lock import OutputLock


class SavedStep(NamedTuple):
    """State to continue a training from.

    Attributes:
        path: The Trainer's checkpoint.
        step: Number of updates that are done.
        complete: Whether these are all.
    """

    path: Path
    step: int
    complete: bool


class TrainingFolder:
    """Files of OUT.

    Attributes:
        path: OUT.
        state_file: Settings and status, and at the end the result.
        verdicts: Result of the check of every row.
        held_out: The held-out rows, which `eval --reference` takes.
        log: One line for every loss and every measurement.
        curves: Picture of the log.
        checkpoints: The Trainer's checkpoints; removed at the end.
        adapter: The LoRA adapter.
    """

    def __init__(self, path: Path) -> None:
        """Name the files; touch nothing."""
        self.path = path
        self.state_file = path / "finetune.json"
        self.verdicts = path / "rows.jsonl"
        self.held_out = path / "held_out.jsonl"
        self.log = path / "training.jsonl"
        self.curves = path / "curves.png"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"

    def open(self, *, overwrite: bool) -> OutputLock:
        """Make or empty the folder, and lock it.

        Raises:
            OutputLockedError: Another training has locked it.
            OutputError: It cannot be made, or contains something else than a training.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = OutputLock(self.path)
            try:
                self._make(overwrite)
            except BaseException:
                lock.release()
                raise
            return lock
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {reason(error)}") from error

    def _make(self, overwrite: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path} is a file; OUT is a folder")
        others = (
            {path.name for path in self.path.iterdir()}
            - {self.verdicts.name, f"{self.verdicts.name}.tmp"}
            if self.path.exists()
            else set()
        )
        if others and not self.state_file.exists():
            raise OutputError(
                f"{self.path} holds something else ({min(others)}); choose an empty or a new folder"
            )
        if overwrite and self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(exist_ok=True)

    def state(self) -> dict[str, Any] | None:
        """Read ``finetune.json``; None if it does not exist.

        Raises:
            OutputError: It cannot be read.
        """
        try:
            state = json.loads(self.state_file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot read {self.state_file}: {error}") from error
        return state if isinstance(state, dict) else {}

    def begin(self, identity: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        """Write the settings of a new training, or compare them with those of an earlier start.

        Raises:
            OutputError: The folder holds a training with other settings.
        """
        state = self.state()
        if state is None:
            self.write_state({"status": "training", "identity": dict(identity), "job": dict(job)})
            return
        earlier = state.get("identity", {})
        for name, value in identity.items():
            if earlier.get(name) != value:
                change = (
                    ""
                    if name in ("rows", "held_out")
                    else f" ({earlier.get(name)!r} there, {value!r} now)"
                )
                raise OutputError(
                    f"{self.path} holds a training with another {name}{change}; choose another "
                    "OUT, or start anew with --overwrite"
                )

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Replace ``finetune.json``.

        Raises:
            OutputError: It cannot be written.
        """
        with replacing(self.state_file) as file:
            file.write(json.dumps(state, ensure_ascii=False, indent=2).encode() + b"\n")

    def write_held_out(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the held-out rows, unless they stand there.

        Raises:
            OutputError: They cannot be written.
        """
        text = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        if self.held_out.is_file() and self.held_out.read_bytes() == text:
            return
        with replacing(self.held_out) as file:
            file.write(text)

    def last_checkpoint(self) -> SavedStep | None:
        """Return the latest complete checkpoint; None if there is none."""
        for path in sorted(self.checkpoints.glob("checkpoint-*"), key=_step, reverse=True):
            try:
                # The Trainer writes this file last.
                state = json.loads((path / "trainer_state.json").read_bytes())
            except (OSError, ValueError):
                continue
            step = int(state["global_step"])
            return SavedStep(path, step, step >= int(state["max_steps"]))
        return None


def _step(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
