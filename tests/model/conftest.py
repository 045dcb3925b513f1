"""The demo model, loaded once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import vlmbatch


@pytest.fixture(scope="module")
def model() -> Iterator[vlmbatch.Model]:
    with vlmbatch.Model("demo", device="cpu", dtype="float32") as opened:
        yield opened
