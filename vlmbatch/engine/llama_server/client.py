"""Ask the server over HTTP, on loopback: one connection a request."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
from collections.abc import Callable, Iterator
from typing import Any

from vlmbatch.errors import GenerateError

LOOK_SECONDS = 0.1
"""Time between two looks at whether an answer is still wanted."""
DEAD = (ConnectionError, http.client.HTTPException, TimeoutError)
"""Errors of a server that has ended."""
Json = dict[str, Any]


class NoLongerWanted(Exception):
    """The question was cancelled, or the run stopped, while the server worked on it."""


class Client:
    """One server. Thread-safe."""

    def __init__(self, port: int) -> None:
        """Take the port on loopback; connect to nothing."""
        self.port = port

    def is_ready(self) -> bool:
        """Return whether the model is loaded."""
        try:
            with self._connection(timeout=5) as connection:
                connection.request("GET", "/health")
                response = connection.getresponse()
                response.read()
                return response.status == 200
        except (OSError, http.client.HTTPException):
            return False

    def props(self) -> Json:
        """Return what the server says of itself."""
        with self._connection(timeout=30) as connection:
            connection.request("GET", "/props")
            found: Json = json.loads(connection.getresponse().read())
            return found

    def complete(self, body: Json, is_wanted: Callable[[], bool]) -> Iterator[Json]:
        """Ask for a completion, and yield its events: one, or one a token if ``stream`` is true.

        Args:
            body: The request for ``/completion``.
            is_wanted: Asked from time to time; without it the connection is closed, and the server
                frees the place.

        Raises:
            NoLongerWanted: It is not.
            GenerateError: The server refuses this request.
            ConnectionError, HTTPException: The server has ended.
        """
        with self._connection() as connection:
            data = json.dumps(body).encode()
            connection.request("POST", "/completion", data, {"Content-Type": "application/json"})
            while not select.select([connection.sock], [], [], LOOK_SECONDS)[0]:
                if not is_wanted():
                    raise NoLongerWanted
            response = connection.getresponse()
            if response.status != 200:
                raise GenerateError(_message(response.status, response.read()))
            if not body.get("stream"):
                yield json.loads(response.read())
                return
            is_whole = False
            for line in response:
                if line.startswith(b"error: "):
                    raise GenerateError(_message(500, line.removeprefix(b"error: ")))
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    event = json.loads(line.removeprefix(b"data: "))
                    if "error" in event:
                        raise GenerateError(_message(500, line.removeprefix(b"data: ")))
                    is_whole = bool(event.get("stop"))
                    yield event
            if not is_whole:
                raise ConnectionResetError("the server ended in the middle of an answer")

    def _connection(
        self, timeout: float | None = None
    ) -> contextlib.closing[http.client.HTTPConnection]:
        return contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        )


def _message(status: int, data: bytes) -> str:
    """Return the message of an error, on one line."""
    try:
        found = json.loads(data)
        text = found["error"]["message"] if isinstance(found.get("error"), dict) else str(found)
    except (ValueError, KeyError, AttributeError):
        text = data.decode("utf-8", "replace")
    return f"llama-server answers {status}: {' '.join(str(text).split())[:300]}"
