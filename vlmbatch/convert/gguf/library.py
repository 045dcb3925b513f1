"""The package gguf, which is optional."""

from __future__ import annotations

from typing import Any

from vlmbatch.errors import MissingDependencyError


def import_gguf() -> Any:
    """Import the gguf package.

    Raises:
        MissingDependencyError: It is not installed; the message says how to install it.
    """
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise MissingDependencyError(
            f"GGUF files need the package gguf: pip install 'vlmbatch[llama]' ({error})"
        ) from error
    return gguf
