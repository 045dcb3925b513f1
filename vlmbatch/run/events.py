"""Events of a run: log lines with fields, which ``--log-format json`` writes out. In the other
format most of them are details, shown with ``-v``.
"""

from __future__ import annotations

import logging
from typing import Any

events = logging.getLogger("vlmbatch.events")


def event(name: str, **fields: Any) -> dict[str, Any]:
    """Return the ``extra`` of a log line that is an event.

    Args:
        name: Of the event, such as ``item_error``.
        fields: Plain JSON values.
    """
    return {"fields": {"event": name, **fields}}
