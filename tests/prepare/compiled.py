"""The compiled routine, made once for all tests of a process."""

from __future__ import annotations

import functools
import platform
import shutil
import tempfile
from pathlib import Path

import pytest

from vlmbatch.prepare.compiled import COMPILER, MACHINE, CompiledResizer


@functools.cache
def compiled_resizer() -> CompiledResizer:
    """Return what resizes with the routine; without a compiler it never has it."""
    compiled = CompiledResizer(Path(_folder().name))
    compiled.compile_now()
    return compiled


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="resize-")


def copy_library(folder: Path) -> Path:
    """Copy the compiled library into a folder; return the copy."""
    compiled_resizer()
    (library,) = Path(_folder().name).iterdir()
    return Path(shutil.copy2(library, folder))


needs_compiler = pytest.mark.skipif(
    platform.machine() != MACHINE or shutil.which(COMPILER) is None,
    reason="no compiler, or a processor that the routine is not made for",
)
