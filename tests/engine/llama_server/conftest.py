"""A real llama.cpp server, the one of the package xllamacpp, with one compute thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vlmbatch.engine import open_engine
from vlmbatch.engine.llama_server.engine import LlamaServerEngine
from vlmbatch.job import EngineOptions

Open = Callable[..., LlamaServerEngine]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of converted checkpoints: each is converted once."""
    return tmp_path_factory.mktemp("cache")


def engine_options(model: object, cache: Path, **more: Any) -> EngineOptions:
    values = {"threads": 1, "batch_size": 2, "cache_dir": str(cache)} | more
    return EngineOptions(model=str(model), engine="llama-server", **values)


@pytest.fixture
def open_server(cache: Path) -> Iterator[Open]:
    """Opens engines, and closes them after the test."""
    opened: list[LlamaServerEngine] = []

    def open_one(model: object, **more: Any) -> LlamaServerEngine:
        engine = open_engine(engine_options(model, cache, **more))
        assert isinstance(engine, LlamaServerEngine)
        opened.append(engine)
        return engine

    yield open_one
    for engine in opened:
        engine.close()
