"""What several tests of the engine start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.reference import texts
from tests.engine.torch.test_parity import mixed_requests, open_tiny


@pytest.fixture(scope="module")
def plain(tiny: Path) -> dict[tuple[int, int], str | None]:
    """The tiny checkpoint's answers to ``mixed_requests``, by an engine as it is opened."""
    engine, preparer = open_tiny(tiny)
    return texts(engine, mixed_requests(preparer))
