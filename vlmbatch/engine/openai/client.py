"""Ask an endpoint over HTTP, once: what it answers, and the three ways in which it may fail."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2

from vlmbatch.errors import one_line

Json = dict[str, Any]
CONNECT_SECONDS = 10.0
KEEP_SECONDS = 2.0
"""Idle connections are closed before a server closes them: a request on one that it closes at that
moment would be lost.
"""
MAX_ANSWER_BYTES = 1 << 26
SHOWN = 300
"""Most characters of an endpoint's message."""


class Refused(Exception):
    """The endpoint answered with an error.

    Attributes:
        status: HTTP status; 500 for an error inside a whole answer that names none.
        retry_after: Seconds that it asks to wait; None if it does not say.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"the endpoint answers {status}: {message}")
        self.status, self.retry_after = status, retry_after


class Unreachable(Exception):
    """There was no connection: the request was not sent."""


class Interrupted(Exception):
    """The request was sent, and no whole answer came back: it may have been answered."""


class EndpointClient:
    """One endpoint. Used inside one event loop.

    Attributes:
        url: Base URL.
    """

    def __init__(self, url: str, key: str | None, *, connections: int, timeout: float) -> None:
        """Set up; connect to nothing.

        Args:
            url: Base URL.
            key: The key; None without one.
            connections: Most connections at a time.
            timeout: Longest time of a request, in seconds.
        """
        self.url, self._key, self._timeout = url, key, timeout
        self._http = httpx2.AsyncClient(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(
                max_connections=connections,
                max_keepalive_connections=connections,
                keepalive_expiry=KEEP_SECONDS,
            ),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> list[str]:
        """Return the names of the endpoint's models.

        Raises:
            Refused, Unreachable, Interrupted: See there.
        """
        found: list[Json] = []
        await self._exchange("GET", "/models", None, found.append)
        try:
            return [str(model["id"]) for model in found[0]["data"]]
        except (KeyError, TypeError, IndexError) as error:
            raise Interrupted("/models gives no list of models") from error

    async def complete(self, body: Json, on_event: Callable[[Json], None]) -> None:
        """Ask for an answer.

        Args:
            body: The request.
            on_event: Called with the answer, or with each chunk of it if ``body`` asks for a
                stream.

        Raises:
            Refused, Unreachable, Interrupted: See there.
        """
        await self._exchange("POST", "/chat/completions", body, on_event)

    async def _exchange(
        self, method: str, path: str, body: Json | None, on_event: Callable[[Json], None]
    ) -> None:
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._http.stream(
                    method, self.url + path, content=data, headers=headers
                ) as response,
            ):
                await self._read(response, on_event)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise Unreachable(f"no connection: {self._clean(_reason(error))}") from error
        except TimeoutError as error:
            raise Interrupted(f"no whole answer within {self._timeout:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise Interrupted(f"broken answer: {self._clean(one_line(error))}") from error

    async def _read(self, response: httpx2.Response, on_event: Callable[[Json], None]) -> None:
        if response.status_code != httpx2.codes.OK:
            data = b"".join([line async for line in _lines(response)])
            message = self._message(data) or response.reason_phrase
            raise Refused(response.status_code, message, _retry_after(response))
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            data = b"\n".join([line async for line in _lines(response)])
            on_event(self._event(data))
            return
        async for line in _lines(response):
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                on_event(self._event(data))

    def _event(self, data: bytes) -> Json:
        """Parse an answer or a chunk.

        Raises:
            Refused: It holds an error.
            Interrupted: It is not a JSON object.
        """
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Interrupted("the answer is not JSON") from error
        if not isinstance(found, dict):
            raise Interrupted("the answer is not a JSON object")
        if found.get("error"):
            stated = found["error"] if isinstance(found["error"], dict) else {}
            codes = (stated.get("code"), stated.get("status"))
            status = next((c for c in codes if type(c) is int and 400 <= c < 600), 500)
            raise Refused(status, self._message(data))
        return found

    def _message(self, data: bytes) -> str:
        """Return the message of an error, on one line."""
        text: Any = data.decode("utf-8", "replace")
        try:
            found = json.loads(data)
            text = found.get("error", found)
            text = text.get("message", text) if isinstance(text, dict) else text
        except (ValueError, AttributeError, RecursionError):
            pass
        return self._clean(" ".join(str(text).split())[:SHOWN])

    def _clean(self, text: str) -> str:
        """Return a text without the key, which some servers repeat."""
        return text if self._key is None else text.replace(self._key, "(key)")


async def _lines(response: httpx2.Response) -> AsyncIterator[bytes]:
    """Yield the lines of a body.

    Raises:
        Interrupted: It is too long.
    """
    rest, total = b"", 0
    async for data in response.aiter_bytes():
        total += len(data)
        if total > MAX_ANSWER_BYTES:
            raise Interrupted(f"the answer has more than {MAX_ANSWER_BYTES >> 20} MiB")
        *whole, rest = (rest + data).split(b"\n") if b"\n" in data else (rest + data,)
        for line in whole:
            yield line
    if rest:
        yield rest


def _reason(error: BaseException) -> str:
    """Return why there is no connection: what the system says of it, if it does."""
    root = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    if isinstance(root, BaseExceptionGroup):  # an error for each address of the host
        root = root.exceptions[0]
    number = root.errno if isinstance(root, OSError) else None
    return os.strerror(number) if number is not None and number > 0 else one_line(error)


def _retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds of ``Retry-After``, a number or a date; None without it."""
    text = response.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(text[:9]))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
