"""What several tests of the engine start from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.engine.reference import answers
from tests.engine.torch.test_parity import mixed_requests, open_tiny


@pytest.fixture(scope="module")
def plain(tiny: Path) -> dict[tuple[int, int], Sequence[int]]:
    """The tiny checkpoint's answers to ``mixed_requests``, by an engine as it is opened."""
    engine, preparer = open_tiny(tiny)
    return answers(engine, mixed_requests(preparer))
