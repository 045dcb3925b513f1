"""A bounded, closable queue between threads. Ends are closes, not sentinels in the data; a stop
wakes everybody.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from vlmbatch.core import Request

T = TypeVar("T")


class Channel(Generic[T]):
    """Many threads put, many threads get.

    ``close`` says that nothing more will come: those who get drain what is left. ``stop`` drops
    what is left.
    """

    def __init__(
        self, capacity: int, *, weight: Callable[[T], int] | None = None, most_weight: int = 0
    ) -> None:
        """Bounds the queue.

        Args:
            capacity: Entries that it holds.
            weight: Weight of an entry, such as its bytes.
            most_weight: Weight that it holds; one entry is always let in.
        """
        self._capacity, self._weigh, self._most_weight = capacity, weight, most_weight
        self._entries: collections.deque[T] = collections.deque()
        self._weight = 0
        self._changed = threading.Condition()
        self._closed = False
        self._stopped = False

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def stopped(self) -> bool:
        """Whether it was stopped."""
        return self._stopped

    def put(self, entry: T) -> bool:
        """Appends an entry, waiting for room. False when the channel was stopped meanwhile."""
        weight = self._weigh(entry) if self._weigh else 0
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_room(weight))
            if self._stopped:
                return False
            self._entries.append(entry)
            self._weight += weight
            self._changed.notify_all()
            return True

    def get(self, *, wait: bool = True, timeout: float | None = None) -> T | None:
        """The oldest entry; None when there is none in time, or there will never be one."""
        with self._changed:
            if wait:
                self._changed.wait_for(
                    lambda: self._entries or self._closed or self._stopped, timeout
                )
            if not self._entries or self._stopped:
                return None
            entry = self._entries.popleft()
            if self._weigh:
                self._weight -= self._weigh(entry)
            self._changed.notify_all()
            return entry

    def __iter__(self) -> Iterator[T]:
        """Entries until the channel is closed and empty, or stopped."""
        while (entry := self.get()) is not None:
            yield entry

    def wait(self) -> bool:
        """Waits for the first entry. False when there will never be one."""
        with self._changed:
            self._changed.wait_for(lambda: self._entries or self._closed or self._stopped)
            return bool(self._entries) and not self._stopped

    @property
    def ended(self) -> bool:
        """Whether nothing will ever come out again."""
        return self._stopped or (self._closed and not self._entries)

    def close(self) -> None:
        """Says that nothing more will be put."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Drops what is left and wakes everybody."""
        with self._changed:
            self._stopped = True
            self._entries.clear()
            self._changed.notify_all()

    def _has_room(self, weight: int) -> bool:
        if not self._entries:
            return True
        return len(self._entries) < self._capacity and (
            not self._weigh or self._weight + weight <= self._most_weight
        )


class RequestQueue(Channel[Request]):
    """The queue that feeds an engine, bounded by number and by the bytes of the payloads."""

    def __init__(self, capacity: int, most_bytes: int = 1 << 28) -> None:
        """Bound the queue to ``capacity`` requests and ``most_bytes`` of payloads."""
        super().__init__(
            capacity, weight=lambda request: request.payload_bytes, most_weight=most_bytes
        )

    def put(self, request: Request) -> bool:
        """See ``Channel``; notes the time."""
        request.queued_at = time.perf_counter()
        return super().put(request)
