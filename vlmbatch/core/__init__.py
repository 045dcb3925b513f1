"""The types that pass between stages, and the stage that fills each.

Readers and samplers make an ``Item``. A run loads it, makes a ``Conversation`` about its ``Pixels``
and asks ``Question``s. An engine's ``prepare`` turns these into a ``Request``; its ``run`` answers
with one ``Completion`` a question. The run joins item and completion into a ``Record``, and a
writer stores it.
"""

from __future__ import annotations

from vlmbatch.core.completion import Completion, FinishReason, Timing, TokenLogprob
from vlmbatch.core.conversation import (
    Constraint,
    ConstraintKind,
    Conversation,
    Part,
    PartKind,
    Question,
    Request,
    Role,
    Turn,
    draw_seed,
)
from vlmbatch.core.item import Item, Media, Picture, Pixels, UInt8Array, picture_size
from vlmbatch.core.record import RECORD_FIELDS, Record, Status, utc_now

__all__ = [
    "Completion",
    "Constraint",
    "ConstraintKind",
    "Conversation",
    "FinishReason",
    "Item",
    "Media",
    "Part",
    "PartKind",
    "Picture",
    "Pixels",
    "Question",
    "RECORD_FIELDS",
    "Record",
    "Request",
    "Role",
    "Status",
    "Timing",
    "TokenLogprob",
    "Turn",
    "UInt8Array",
    "draw_seed",
    "picture_size",
    "utc_now",
]
