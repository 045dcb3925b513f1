"""A limit for the number of requests in flight."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class ConcurrencyLimit:
    """Limits the number of requests in flight: half as many when the endpoint is busy, and slowly
    more again (additive increase, multiplicative decrease). Used inside one event loop.

    Attributes:
        limit: The present limit; it grows by one once that many requests were answered.
    """

    def __init__(self, most: int) -> None:
        """Allow ``most`` at a time."""
        self._most, self.limit = most, float(most)
        self._in_flight = 0
        self._halved_at = self._opens_at = float("-inf")
        self._waiting: list[asyncio.Future[None]] = []

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it."""
        loop = asyncio.get_running_loop()
        while True:
            if (left := self._opens_at - loop.time()) > 0:
                await asyncio.sleep(left)
            elif self._in_flight >= int(self.limit):
                turn: asyncio.Future[None] = loop.create_future()
                self._waiting.append(turn)
                await turn
            else:
                break
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            self._wake()

    def halve(self, since: float) -> None:
        """Halve the limit: the endpoint is busy.

        Args:
            since: Time of the loop when the request was sent. Requests that were sent before the
                last halving do not halve again.
        """
        if since >= self._halved_at:
            self._halved_at = asyncio.get_running_loop().time()
            self.limit = max(1.0, int(self.limit) / 2)

    def pause(self, seconds: float) -> None:
        """Start no more requests for a time."""
        self._opens_at = max(self._opens_at, asyncio.get_running_loop().time() + seconds)

    def grow(self) -> None:
        """Raise the limit a little: a request was answered."""
        self.limit = min(self._most, self.limit + 1 / self.limit)
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
