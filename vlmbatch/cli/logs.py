"""Log lines on stderr: their format, their level, and their place above a progress bar."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, message, and the ``fields`` of a record."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as a line."""
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return json.dumps(entry, ensure_ascii=False)


class BarHandler(logging.StreamHandler[Any]):
    """Writes log lines above a progress bar, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


def set_up_logging(form: str, *, verbose: int, quiet: bool, bar: bool) -> None:
    """Send the package's log lines to stderr.

    Args:
        form: ``text`` or ``json``.
        verbose: 1 adds details, 2 everything.
        quiet: Errors only.
        bar: Whether there is a progress bar.
    """
    handler: logging.Handler = BarHandler(sys.stderr) if bar else logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter("%(message)s"))
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    root = logging.getLogger("vlmbatch")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(logging.ERROR if quiet else level)
    # Pillow warns about damaged EXIF data; the row says what matters.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers = [handler] if verbose else [logging.NullHandler()]
    logging.getLogger("py.warnings").propagate = False
    # The progress and the closing lines of a run are shown without --verbose.
    logging.getLogger("vlmbatch.report").setLevel(logging.ERROR if quiet else logging.INFO)
