"""Progress of a run: a bar on a terminal or in a notebook, log lines elsewhere.

The first line comes within five seconds, and one every 30 seconds after it, whatever the run does:
listing, loading the model, encoding. They show what moves before the first answer, too: tiles,
items in work, tokens a second. The time left is shown once an item was answered, as nothing tells
the length of answers before.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from vlmbatch.run.events import event, events
from vlmbatch.run.reporter import Activity

FIRST_SECONDS = 3.0
LINE_SECONDS = 30.0
TICK_SECONDS = 1.0

report = logging.getLogger("vlmbatch.report")


class ProgressReporter:
    """Count items, errors and tokens, and show them. A context manager, which calls ``beat`` once a
    second.
    """

    def __init__(
        self, *, bar: bool, lines: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Show a bar, log lines, or nothing.

        Args:
            bar: Whether to show a bar.
            lines: Whether to log lines where there is no bar.
            clock: Seconds, monotonic.
        """
        self._lines, self._clock = lines and not bar, clock
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._began = self._running_since = clock()
        self._line_due = self._began + FIRST_SECONDS
        self._done = self._kept = self._errors = self._tokens = 0
        self._total: int | None = None
        self._stage = "starting"
        self._activity: Callable[[], Activity] | None = None
        self._bar: Any = None
        if bar:
            self._bar = _bar_class()(
                unit="item",
                **_bar_size(),
                bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
                "[{elapsed}{postfix}]",
            )

    def loading(self, model: str) -> None:
        """Show that the model is being loaded."""
        events.info("loading %s", model, extra=event("loading", model=model))
        with self._guard:
            self._stage = f"loading {model}"
            if self._bar is not None:
                self._bar.set_description_str(f"loading {model} ")

    def started(self, activity: Callable[[], Activity]) -> None:
        """Show the work of the engine from now on."""
        with self._guard:
            self._activity = activity
            self._stage = "running"
            self._running_since = self._clock()
            if self._bar is not None:
                self._bar.set_description_str("")

    def total(self, items: int | None) -> None:
        """Take the number of items, once it is known."""
        with self._guard:
            self._total = items
            if self._bar is None or items is None:
                return
            if hasattr(self._bar, "container"):  # a widget takes its length with ``reset`` only
                self._bar.reset(total=items)
                self._bar.update(self._done)
            else:
                self._bar.total = items
                self._bar.refresh()

    def item(self, *, error: bool, kept: bool, new_tokens: int) -> None:
        """Count an item that is done."""
        with self._guard:
            self._done += 1
            self._kept += kept
            self._errors += error
            self._tokens += new_tokens
            if self._bar is not None:
                self._bar.update(1)

    def beat(self) -> None:
        """Show what moves now; log it when a line is due."""
        with self._guard:
            now = self._clock()
            if self._bar is not None:
                self._bar.set_postfix_str(", ".join(self._work(now)[0]))
            elif self._lines and now >= self._line_due:
                self._line_due = now + LINE_SECONDS
                total = "?" if self._total is None else self._total
                parts, fields = self._work(now)
                report.info(
                    "%s/%s items, %s",
                    *(self._done, total, ", ".join(parts)),
                    extra=event("progress", stage=self._stage, **fields),
                )

    def _work(self, now: float) -> tuple[list[str], dict[str, Any]]:
        """Return what is shown of the work: texts, and the same as fields of an event."""
        fields: dict[str, Any] = {
            "seconds": round(now - self._began, 1),
            "items": self._done,
            "total_items": self._total,
            "items_done_before": self._kept,
            "items_with_errors": self._errors,
        }
        failed = [f"{self._errors} with errors"] if self._errors else []
        if self._activity is None:
            return [*failed, self._stage, f"{now - self._began:.0f} s"], fields
        activity, seconds = self._activity(), max(1e-9, now - self._running_since)
        open_items = None if self._total is None else self._total - self._done
        left = time_left(activity, self._done - self._kept, self._tokens, open_items, seconds)
        fields |= {
            "items_in_work": activity.in_work,
            "tiles": activity.tiles,
            "new_tokens": activity.tokens,
            "new_tokens_per_second": round(activity.tokens / seconds, 3),
            "seconds_left": None if left is None else round(left, 1),
        }
        return [
            *failed,
            *([f"{activity.tiles:,} tiles"] if activity.tiles else []),
            f"{activity.tokens / seconds:.0f} tokens/s",
            f"{activity.in_work} in work",
            "time left ?" if left is None else f"{duration(left)} left",
        ], fields

    def _tick(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            self.beat()

    def __enter__(self) -> Self:
        if self._bar is not None or self._lines:
            threading.Thread(target=self._tick, name="progress", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        with self._guard:
            if self._bar is not None:
                self._bar.close()


def is_watched() -> bool:
    """True on a terminal and in a notebook, where somebody looks at a bar."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return is_terminal or "ipykernel.zmqshell" in sys.modules


def _bar_class() -> Any:
    """tqdm's bar: a widget in a notebook that has ipywidgets, a line of text elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a notebook without ipywidgets
        from tqdm.auto import tqdm
    return tqdm


def _bar_size() -> dict[str, Any]:
    """Options of tqdm for the width of the bar: that of the terminal, as it changes. A terminal
    that does not know its size, as some consoles and remote shells, has 0 columns.
    """
    try:
        has_size = os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        has_size = True  # no terminal: tqdm knows what to do
    return {"dynamic_ncols": True} if has_size else {"ncols": 79, "nrows": 24}


def time_left(
    activity: Activity, done: int, tokens: int, left: int | None, seconds: float
) -> float | None:
    """Return the seconds until a run ends; None while that is not known.

    Tiles and tokens are counted apart: those that are missing take as long as those so far, each
    kind at its own pace.

    Args:
        activity: The work so far.
        done: Items that this run has answered.
        tokens: Tokens of their answers.
        left: Items that are not done.
        seconds: Time since the engine began.
    """
    if not done or left is None:
        return None
    items = done + left
    busy = activity.encode_seconds + activity.decode_seconds
    if not busy:
        return left * seconds / done
    tiles = activity.tiles_prepared / max(1, activity.items_prepared) * items
    encode = _seconds_left(activity.encode_seconds, activity.tiles, tiles, left / done)
    decode = _seconds_left(
        activity.decode_seconds, activity.tokens, tokens / done * items, left / done
    )
    return (encode + decode) * seconds / busy


def _seconds_left(seconds: float, done: float, whole: float, ratio: float) -> float:
    """Return the seconds that the rest of a kind of work takes; ``ratio`` is that of open items to
    answered ones, where the work cannot be counted.
    """
    return seconds * (max(0.0, whole - done) / done if done else ratio)


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
