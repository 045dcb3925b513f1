"""Periods of time as users write them."""

from __future__ import annotations

import datetime
import re

from vlmbatch.errors import JobError

_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_since(text: str, now: datetime.datetime | None = None) -> str:
    """Return the begin of a period in the form of ``created_at``.

    Args:
        text: How long ago, such as ``7d``, ``12h``, ``30m`` or ``2w``; or a date or time such as
            ``2026-01-31``, in UTC unless it says otherwise.
        now: The present.

    Raises:
        JobError: It is neither, or longer ago than dates go.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip())
    try:
        if found:
            ago = datetime.timedelta(seconds=float(found[1]) * _SECONDS[found[2]])
            begin = (now or datetime.datetime.now(datetime.UTC)) - ago
        else:
            begin = datetime.datetime.fromisoformat(text.strip())
            begin = begin if begin.tzinfo else begin.replace(tzinfo=datetime.UTC)
        begin = begin.astimezone(datetime.UTC)
    except (ValueError, OverflowError) as error:
        raise JobError(
            f"since takes how long ago (7d, 12h, 30m, 2w) or a date (2026-01-31), not {text!r}"
        ) from error
    return begin.isoformat(timespec="milliseconds").replace("+00:00", "Z")
