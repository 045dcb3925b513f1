"""ONNX: the three graphs that ONNX Runtime and transformers.js run, with the checkpoint's small
files beside them.

Names, inputs, outputs and suffixes are those of the hub.
"""

from __future__ import annotations

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.convert import Converted, ConvertOptions
from vlmbatch.convert.onnx.library import require_packages

__all__ = ["convert"]


def convert(checkpoint: Checkpoint, options: ConvertOptions) -> Converted:
    """Write the graphs. See ``vlmbatch.convert.convert``."""
    require_packages()
    from vlmbatch.convert.onnx import conversion

    return conversion.convert(checkpoint, options)
