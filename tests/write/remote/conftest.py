"""Stores of the tests, empty at their beginning."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.write.remote.machines import Flaky


@pytest.fixture(autouse=True)
def memory() -> Iterator[MemoryFileSystem]:
    """fsspec's file system in memory, empty."""
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


@pytest.fixture
def flaky() -> Iterator[type[Flaky]]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.store.clear()
    Flaky.failures = []
    yield Flaky
    Flaky.store.clear()
