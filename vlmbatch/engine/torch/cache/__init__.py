"""Keys and values: the pool (pool.py), sequences' places in it (slots.py), prefixes kept for later
requests (prefixes.py), attention over it (attend.py, packed.py); and features of tiles
(features.py).
"""

from vlmbatch.engine.torch.cache.attend import (
    DecodeAttention,
    PrefillAttention,
    attend_last,
    attend_prompts,
    wide_mask,
)
from vlmbatch.engine.torch.cache.packed import PackedAttention, Rows, Segment
from vlmbatch.engine.torch.cache.pool import slot_capacity
from vlmbatch.engine.torch.cache.prefixes import Prefix
from vlmbatch.engine.torch.cache.slots import Cache, Slot

__all__ = [
    "Cache",
    "DecodeAttention",
    "PackedAttention",
    "Prefix",
    "PrefillAttention",
    "Rows",
    "Segment",
    "Slot",
    "attend_last",
    "attend_prompts",
    "slot_capacity",
    "wide_mask",
]
