"""A server of OpenAI's chat API that fails as it is told to: a step for each request."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.servers import serving_on_a_thread

Json = dict[str, Any]
Step = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Takes a request and does the next step."""

    server: Server
    body: Json

    def do_GET(self) -> None:
        self.server.next_step(self, {})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        self.server.next_step(self, json.loads(data))

    def send(self, status: int, value: Any, **headers: str) -> None:
        """Send a whole answer."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.begin(status, len(data), **headers)
        self.wfile.write(data)

    def begin(self, status: int, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content_type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        if length is not None:
            self.send_header("content-length", str(length))
        self.end_headers()

    def reset(self) -> None:
        """End the connection with a reset."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """The server.

    Attributes:
        steps: What to do with the next requests.
        otherwise: What to do with further ones.
        bodies: The requests, in order.
        headers: Their headers.
        most: Largest number of requests at a time.
    """

    daemon_threads = True

    def __init__(self, steps: list[Step], otherwise: Step | None = None, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.steps, self.otherwise = steps, otherwise or answers()
        self.bodies: list[Json] = []
        self.headers: list[dict[str, str]] = []
        self.most = self._open = 0
        self._guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def next_step(self, handler: Handler, body: Json) -> None:
        handler.body = body
        with self._guard:
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            step = self.steps.pop(0) if self.steps else self.otherwise
            self._open += 1
            self.most = max(self.most, self._open)
        try:
            step(handler)
        finally:
            with self._guard:
                self._open -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are part of these tests."""


@contextlib.contextmanager
def serving(*steps: Step) -> Iterator[Server]:
    server = Server(list(steps))
    with serving_on_a_thread(server):
        yield server


def reply(text: str = "yes", **rest: Any) -> Json:
    """A whole answer."""
    choice = {"index": 0, "message": {"content": text}, "finish_reason": "stop", **rest}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}


def answers(text: str = "yes", **rest: Any) -> Step:
    return lambda handler: handler.send(200, reply(text, **rest))


def says(status: int, message: str = "no", **headers: str) -> Step:
    """An error in OpenAI's form."""
    return lambda handler: handler.send(status, {"error": {"message": message}}, **headers)


def sends(data: bytes) -> Step:
    """These bytes, whatever they are, with status 200."""
    return lambda handler: handler.send(200, data)


def breaks_off(handler: Handler) -> None:
    """Half of a body, and a reset."""
    data = json.dumps(reply()).encode()
    handler.begin(200, len(data))
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    handler.reset()


def streams(*pieces: str, ends: bool = True) -> Step:
    """A stream of pieces; without its end, the connection ends in the middle."""

    def step(handler: Handler) -> None:
        handler.begin(200, content_type="text/event-stream")
        for piece in pieces:
            chunk = {"choices": [{"index": 0, "delta": {"content": piece}}]}
            handler.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            handler.wfile.flush()
        if ends:
            last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            handler.wfile.write(b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n")

    return step


def drips(gone: threading.Event) -> Step:
    """A byte now and then, for ever; sets the event once the client has gone away."""

    def step(handler: Handler) -> None:
        handler.begin(200, 1 << 20)
        with contextlib.suppress(OSError):
            while not gone.wait(0.01):
                handler.wfile.write(b" ")
                handler.wfile.flush()
        gone.set()

    return step
