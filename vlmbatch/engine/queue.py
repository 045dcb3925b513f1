"""A bounded queue between threads that can be closed (no sentinels) or stopped."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from vlmbatch.core import Request

T = TypeVar("T")


class Channel(Generic[T]):
    """A bounded queue for many producers and many consumers.

    After ``close``, consumers drain the remaining entries. ``stop`` drops them.
    """

    def __init__(
        self, capacity: int, *, weight: Callable[[T], int] | None = None, max_weight: int = 0
    ) -> None:
        """Bound the queue.

        Args:
            capacity: Maximum number of entries.
            weight: Weight of an entry, such as its bytes.
            max_weight: Maximum total weight; a single entry is always accepted.
        """
        self._capacity, self._weigh, self._max_weight = capacity, weight, max_weight
        self._entries: collections.deque[T] = collections.deque()
        self._weight = 0
        self._changed = threading.Condition()
        self._closed = False
        self._stopped = False

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def stopped(self) -> bool:
        """True if it was stopped."""
        return self._stopped

    def put(self, entry: T) -> bool:
        """Append an entry, waiting for capacity. Return False if the channel is stopped."""
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
        """Return the oldest entry; None at a timeout, or if there will never be one."""
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

    def remove(self, entry: T) -> bool:
        """Remove an entry that waits. Return False if it is not there."""
        with self._changed:
            if entry not in self._entries:
                return False
            self._entries.remove(entry)
            if self._weigh:
                self._weight -= self._weigh(entry)
            self._changed.notify_all()
            return True

    def __iter__(self) -> Iterator[T]:
        """Yield entries until the channel is closed and empty, or stopped."""
        while (entry := self.get()) is not None:
            yield entry

    def wait(self) -> bool:
        """Wait for the first entry. Return False if there will never be one."""
        with self._changed:
            self._changed.wait_for(lambda: self._entries or self._closed or self._stopped)
            return bool(self._entries) and not self._stopped

    @property
    def ended(self) -> bool:
        """True if nothing will ever come out again."""
        return self._stopped or (self._closed and not self._entries)

    def close(self) -> None:
        """Accept no more entries."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Drop the remaining entries and wake all waiting threads."""
        with self._changed:
            self._stopped = True
            self._entries.clear()
            self._changed.notify_all()

    def _has_room(self, weight: int) -> bool:
        if not self._entries:
            return True
        return len(self._entries) < self._capacity and (
            not self._weigh or self._weight + weight <= self._max_weight
        )


class RequestQueue(Channel[Request]):
    """The queue that feeds an engine, bounded by number and by payload bytes."""

    def __init__(self, capacity: int, max_bytes: int = 1 << 28) -> None:
        """Bound the queue to ``capacity`` requests and ``max_bytes`` of payloads."""
        super().__init__(
            capacity, weight=lambda request: request.payload_bytes, max_weight=max_bytes
        )

    def put(self, request: Request) -> bool:
        """See ``Channel``; notes the time."""
        request.queued_at = time.perf_counter()
        return super().put(request)
