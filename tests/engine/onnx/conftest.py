"""The tiny checkpoint as graphs, and the engine that they are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.onnx.asking import options
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.convert import ConvertOptions, convert
from vlmbatch.engine import Engine, open_engine


@pytest.fixture(scope="session")
def graphs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint's graphs."""
    folder = tmp_path_factory.mktemp("graphs") / "tiny"
    convert(find_checkpoint(str(tiny)), "onnx", ConvertOptions(folder))
    return folder


@pytest.fixture(scope="session")
def reference(tiny: Path) -> Engine:
    return open_engine(options(tiny, "torch", dtype="float32"))
