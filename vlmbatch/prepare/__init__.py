"""Preprocessing as by the checkpoint's own processor: pixels to tiles, text to token ids; on uint8,
in threads, without torch.
"""

from __future__ import annotations

from vlmbatch.prepare.payload import Payload, UncutPicture, UncutTiles
from vlmbatch.prepare.preparer import Preparer

__all__ = ["Payload", "Preparer", "UncutPicture", "UncutTiles"]
