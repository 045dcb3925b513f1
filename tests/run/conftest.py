"""Pictures that the tests of a run share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.media import write_picture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty pictures, the eighth of which is text."""
    folder = tmp_path / "photos"
    for number in range(20):
        write_picture(folder / f"{number:02d}.png", seed=number)
    (folder / "07.png").write_text("not a picture")
    return folder
