"""Progress of a run: a bar on a terminal, a log line every 30 seconds elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Any, Self

LINE_SECONDS = 30.0

report = logging.getLogger("vlmbatch.report")


class ProgressReporter:
    """Counts items, errors and tokens, and shows them. A context manager."""

    def __init__(self, *, bar: bool, lines: bool) -> None:
        """Show a bar, log lines, or nothing."""
        self._lines = lines and not bar
        self._guard = threading.Lock()
        self._began = time.monotonic()
        self._said = self._began
        self._done = self._kept = self._errors = self._tokens = 0
        self._total: int | None = None
        self._bar: Any = None
        if bar:
            from tqdm import tqdm

            self._bar = tqdm(
                unit="item",
                dynamic_ncols=True,
                smoothing=0.1,
                bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
                "[{elapsed}<{remaining}, {rate_fmt}{postfix}]",
            )

    def loading(self, model: str) -> None:
        """Show that the model is being loaded."""
        with self._guard:
            if self._bar is not None:
                self._bar.set_description_str(f"loading {model} ")

    def total(self, items: int | None) -> None:
        """Take the number of items, once it is known."""
        with self._guard:
            self._total = items
            if self._bar is not None and items is not None:
                self._bar.total = items
                self._bar.refresh()

    def item(self, *, error: bool, kept: bool, new_tokens: int) -> None:
        """Count an item that is done."""
        with self._guard:
            self._done += 1
            self._kept += kept
            self._errors += error
            self._tokens += new_tokens
            now = time.monotonic()
            if self._bar is not None:
                if kept:
                    self._bar.initial += 1
                else:
                    self._bar.set_description_str("")
                rate = self._tokens / max(1e-9, now - self._began)
                self._bar.set_postfix_str(
                    f"{rate:.0f} tokens/s, {self._errors} errors", refresh=False
                )
                self._bar.update(1)
            elif self._lines and now - self._said >= LINE_SECONDS:
                self._said = now
                report.info("%s", self._line(now))

    def _line(self, now: float) -> str:
        seconds = now - self._began
        rate = (self._done - self._kept) / seconds
        total = "?" if self._total is None else str(self._total)
        left = (
            ""
            if self._total is None or not rate
            else f", {(self._total - self._done) / rate:.0f} s left"
        )
        return (
            f"{self._done}/{total} items, {rate:.2f} items/s, "
            f"{self._tokens / seconds:.0f} tokens/s, {self._errors} errors{left}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
