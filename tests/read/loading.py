"""Facts about an item that only its pixels, or the error in their place, tell."""

from __future__ import annotations

import numpy as np
import pytest

from tests.media import picture
from vlmbatch.core import Item
from vlmbatch.errors import ItemError


def error(item: Item) -> str:
    """The message of an item that cannot be read."""
    with pytest.raises(ItemError) as caught:
        item.load()
    return str(caught.value)


def seed_of(item: Item) -> int:
    """The seed, below 4, of the picture that an item gives."""
    return next(
        seed for seed in range(4) if np.array_equal(item.load().frames[0], picture(seed=seed))
    )
