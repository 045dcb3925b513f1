"""Keep the choice of kernels: made once for a machine, a model's shape and a dtype.

One JSON file each in the folder for caches. A choice made while other programs used the processor
is used all the same, and measured again for the next OUTPUT that is begun while they do not; an
OUTPUT that is continued is computed with it as it stands.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from vlmbatch.engine.torch.cpu.kernels import Choice, choose_kernels, is_choice, use_kernels
from vlmbatch.engine.torch.cpu.timing import Steadiness, Stopwatch
from vlmbatch.engine.torch.weights import Model

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the files, and of the kernels there are to choose from: a file of another version is
measured again.
"""
FOLDER = "kernels"
IDENTIFYING = (
    *("vendor_id", "model name", "cpu family", "model", "stepping", "cache size", "flags"),
    *("CPU implementer", "CPU variant", "CPU part", "CPU revision", "Features"),
)
"""Lines of /proc/cpuinfo that tell processors apart, of x86 and of ARM."""


@dataclasses.dataclass(frozen=True)
class KeptChoice:
    """A choice of kernels and the state of the machine when it was measured."""

    kernels: Choice
    steadiness: Steadiness


class KernelChoices:
    """The choices of one machine, in a folder."""

    def __init__(self, cache: Path, stopwatch: Callable[[int], Stopwatch] = Stopwatch) -> None:
        """Look into a folder.

        Args:
            cache: vlmbatch's folder for caches; it may be missing or not writable.
            stopwatch: Measures with a number of threads.
        """
        self._folder = cache / FOLDER
        self._stopwatch = stopwatch

    def settle(self, model: Model, *, copies: bool, continued: bool) -> KeptChoice:
        """Make a model use the kernels that were chosen for it; choose them if there is no choice
        that can be relied on, and keep it.

        Args:
            model: The model; its layers are changed.
            copies: Whether packed copies of weights are allowed.
            continued: Whether a choice is used even if it was made on an unsteady machine: an
                OUTPUT that is continued should be computed as it began.
        """
        key = _key(model, copies=copies)
        choice = self._load(key, model)
        is_doubtful = choice is not None and not choice.steadiness.is_steady
        watch = self._stopwatch(torch.get_num_threads())
        if choice is None or (is_doubtful and not continued and watch.is_machine_quiet()):
            measured = self._measure(model, copies=copies)
            # Two doubtful choices are equally good: the one that earlier answers are of stays.
            if choice is None or measured.steadiness.is_steady:
                choice = measured
                self._save(key, choice)
        use_kernels(model.vision, model.language, choice.kernels)
        return choice

    def forget(self) -> None:
        """Remove all choices, so that each is made again when it is needed."""
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError):
                path.unlink()

    def _measure(self, model: Model, *, copies: bool) -> KeptChoice:
        watch = self._stopwatch(torch.get_num_threads())
        chosen = choose_kernels(model.vision, model.language, watch.fastest, copies=copies)
        return KeptChoice(chosen, watch.steadiness())

    def _load(self, key: Mapping[str, Any], model: Model) -> KeptChoice | None:
        """Return a kept choice; None if there is none, or the file is broken or of another key."""
        path = self._path(key)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["key"] != key or not is_choice(found["kernels"], model.vision, model.language):
                return None
            spread, share = (float(found["steadiness"][name]) for name in ("spread", "share"))
            return KeptChoice(found["kernels"], Steadiness(spread, share))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.debug("%s is ignored: %s", path, error)
            return None

    def _save(self, key: Mapping[str, Any], choice: KeptChoice) -> None:
        """Keep a choice, if that is possible."""
        path = self._path(key)
        entry = {
            "key": key,
            "kernels": choice.kernels,
            "steadiness": dataclasses.asdict(choice.steadiness),
        }
        write_json(path, entry)

    def native_rows(self, model: Model, *, copies: bool) -> Path:
        """File for the number of sequences that the compiled decode step of a model is used for."""
        return self._path({**_key(model, copies=copies), "kept": "native rows"})

    def _path(self, key: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{digest[:24]}.json"


def write_json(path: Path, entry: Mapping[str, Any]) -> None:
    """Write a value beside its file and rename it; without a writable folder it is not kept."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, fresh = tempfile.mkstemp(prefix=path.stem, suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                json.dump(entry, file, indent=1)
            os.replace(fresh, path)
        except BaseException:
            os.unlink(fresh)
            raise
    except OSError as error:
        logger.debug("the choice of kernels is not kept: %s", error)


def _key(model: Model, *, copies: bool) -> dict[str, Any]:
    """Everything that a choice depends on, as JSON values."""
    return {
        "format": FORMAT,
        "processor": processor_model(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "shape": dataclasses.asdict(model.shape),
        "dtype": str(model.dtype),
        "quantized": model.quantized,
        "copies": copies,
    }


def processor_model() -> dict[str, str]:
    """Identify the model of the processor, and what it can compute."""
    found = {"machine": platform.machine(), "processor": platform.processor()}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return found  # not Linux
    for line in text.partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        if name.strip() in IDENTIFYING:
            found[name.strip()] = value.strip()
    return found
