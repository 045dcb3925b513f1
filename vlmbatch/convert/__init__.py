"""Convert a checkpoint for other programs. ``TARGETS`` has a row for each; a target's libraries are
imported when it is asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

from vlmbatch.checkpoint import Checkpoint

TARGETS = {"gguf": "vlmbatch.convert.gguf", "onnx": "vlmbatch.convert.onnx"}
"""The module of each target by name; its ``convert(checkpoint, options) -> Converted`` writes the
files.
"""


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """Options of a conversion.

    Attributes:
        output: Folder for the files; made if it is not there.
        type: Number format of the weights; None for the target's default.
        llama_quantize: llama.cpp's ``llama-quantize``, for the types that only it writes.
    """

    output: Path
    type: str | None = None
    llama_quantize: str | None = None


@dataclasses.dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Attributes:
        files: The files, the most important first.
        notes: Lines for the user: deviations, and the commands that go on from here.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def convert(checkpoint: Checkpoint, target: str, options: ConvertOptions) -> Converted:
    """Convert a checkpoint.

    Args:
        checkpoint: The checkpoint.
        target: A key of ``TARGETS``.
        options: Folder and number format.

    Raises:
        JobError: The target has no such type, or needs another option for it.
        MissingDependencyError: The target needs a package that is not installed.
        ModelLoadError: The checkpoint is broken, or of a kind that the target cannot hold.
        OutputError: The files cannot be written.
    """
    converted: Converted = importlib.import_module(TARGETS[target]).convert(checkpoint, options)
    return converted
