"""The packages that ONNX files are written with, which are optional."""

from __future__ import annotations

import importlib

from vlmbatch.errors import MissingDependencyError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_packages() -> None:
    """Check that the packages are installed.

    Raises:
        MissingDependencyError: One is not; the message says how to install it.
    """
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingDependencyError(
                f"ONNX files are written with the package {name}: pip install "
                f"'vlmbatch[onnx-export]' ({error})"
            ) from error
