"""The sample pictures, which a comparison takes when no INPUT is named."""

from __future__ import annotations

from pathlib import Path

from vlmbatch.errors import NothingFound

PACKAGE = Path(__file__).parents[1]
PLACES = (PACKAGE / "samples", PACKAGE.parent / "sample_data" / "images")
"""Folder in an installed package, and in the source tree that it is packed from."""


def sample_folder() -> Path:
    """Return the folder of the sample pictures.

    Raises:
        NothingFound: They are not installed.
    """
    for folder in PLACES:
        if folder.is_dir():
            return folder
    raise NothingFound("the sample pictures are not installed: name an INPUT")
