"""Progress of a run: a bar on a terminal or in a notebook, a log line every 30 seconds elsewhere.

Both show what moves before the first answer, too: tiles, items in work, tokens a second. The time
left is shown once an item was answered, as nothing tells the length of answers before.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from vlmbatch.run.reporter import Activity

LINE_SECONDS = 30.0
TICK_SECONDS = 1.0

report = logging.getLogger("vlmbatch.report")


class ProgressReporter:
    """Count items, errors and tokens, and show them. A context manager."""

    def __init__(self, *, bar: bool, lines: bool) -> None:
        """Show a bar, log lines, or nothing."""
        self._lines = lines and not bar
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._began = self._said = time.monotonic()
        self._done = self._kept = self._errors = 0
        self._total: int | None = None
        self._activity: Callable[[], Activity] | None = None
        self._bar: Any = None
        if bar:
            self._bar = _bar_class()(
                unit="item",
                dynamic_ncols=True,
                bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
                "[{elapsed}{postfix}]",
            )

    def loading(self, model: str) -> None:
        """Show that the model is being loaded."""
        with self._guard:
            if self._bar is not None:
                self._bar.set_description_str(f"loading {model} ")

    def started(self, activity: Callable[[], Activity]) -> None:
        """Show the work of the engine from now on."""
        with self._guard:
            self._activity = activity
            self._began = time.monotonic()
            if self._bar is not None:
                self._bar.set_description_str("")
        if self._bar is not None or self._lines:
            threading.Thread(target=self._tick, name="progress", daemon=True).start()

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
            if self._bar is not None:
                self._bar.update(1)

    def _tick(self) -> None:
        """Show what moves, once a second; log lines come every 30 seconds."""
        while not self._ended.wait(TICK_SECONDS):
            with self._guard:
                now = time.monotonic()
                if self._bar is not None:
                    self._bar.set_postfix_str(self._work(now))
                elif now - self._said >= LINE_SECONDS:
                    self._said = now
                    total = "?" if self._total is None else self._total
                    report.info("%s/%s items, %s", self._done, total, self._work(now))

    def _work(self, now: float) -> str:
        """One line: rates, items in work, errors and the time left."""
        assert self._activity is not None  # it is there before the first tick
        activity = self._activity()
        seconds = max(1e-9, now - self._began)
        parts = [
            *([f"{activity.tiles:,} tiles"] if activity.tiles else []),
            f"{activity.tokens / seconds:.0f} tokens/s",
            f"{activity.in_work} in work",
            f"{self._errors} errors",
        ]
        left = time_left(activity, self._done - self._kept, self._open_items(), seconds)
        return ", ".join([*parts, "time left ?" if left is None else f"{clock(left)} left"])

    def _open_items(self) -> int | None:
        return None if self._total is None else self._total - self._done

    def __enter__(self) -> Self:
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


def time_left(activity: Activity, done: int, left: int | None, seconds: float) -> float | None:
    """Seconds until a run ends; None while that is not known.

    An item counts as done by the share of its work that is: its encoded tiles for the share that
    encoding takes of the time, its answer for the rest.

    Args:
        activity: The work so far.
        done: Items that this run has answered.
        left: Items that are not done.
        seconds: Time since the engine began.
    """
    if not done or left is None:
        return None
    encoded = float(done)
    if activity.tiles_prepared:
        mean_tiles = activity.tiles_prepared / activity.items_prepared
        encoded = max(encoded, min(done + activity.in_work, activity.tiles / mean_tiles))
    worked = activity.vision_share * encoded + (1 - activity.vision_share) * done
    return max(0.0, done + left - worked) * seconds / worked


def clock(seconds: float) -> str:
    """Seconds as a person says them: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
