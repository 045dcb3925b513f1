"""An OUTPUT of each format."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.write.rows import SUFFIXES


@pytest.fixture(params=SUFFIXES)
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Path of an OUTPUT that is not there yet."""
    return tmp_path / f"out.{request.param}"
