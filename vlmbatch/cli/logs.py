"""Log lines on stderr: their format, their level, and their place above a progress bar."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, id of the run, message, and the fields of the
    event. A line that is no event of a run is a ``log``.

    Attributes:
        run_id: Id of the run, once there is one.
    """

    run_id: str | None = None

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as a line."""
        fields = getattr(record, "fields", {})
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": fields.get("event", "log"),
            **({"run_id": self.run_id} if self.run_id else {}),
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


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
    # The progress and the closing lines of a run are shown without --verbose, in JSON all events.
    shown = logging.ERROR if quiet else logging.INFO
    logging.getLogger("vlmbatch.report").setLevel(shown)
    logging.getLogger("vlmbatch.events").setLevel(shown if form == "json" else logging.NOTSET)


def name_run(run_id: str) -> None:
    """Give the lines of JSON the id of the run from now on."""
    for handler in logging.getLogger("vlmbatch").handlers:
        if isinstance(handler.formatter, JsonFormatter):
            handler.formatter.run_id = run_id
