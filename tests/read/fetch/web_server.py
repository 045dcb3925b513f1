"""A web server on this machine that answers what a test tells it to."""

from __future__ import annotations

import dataclasses
import http.server
from collections.abc import Iterator
from contextlib import contextmanager

from tests.servers import serving_on_a_thread


@dataclasses.dataclass
class Answer:
    """What a path is answered with; ``stated`` is the Content-Length when it is not that of the
    body.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    stated: int | None = None


class WebServer(http.server.ThreadingHTTPServer):
    """Answers of a path are given one after the other, the last one again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []

    def url(self, path: str, *answers: Answer | bytes, host: str = "127.0.0.1") -> str:
        """Says what a path is answered with; gives its URL."""
        self.answers[path.split("?")[0]] = [
            answer if isinstance(answer, Answer) else Answer(answer) for answer in answers
        ]
        return f"http://{host}:{self.server_port}{path}"

    def count(self, path: str, method: str = "GET") -> int:
        """How often a path was asked for."""
        return sum((method, path) == request[:2] for request in self.requests)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: WebServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path, dict(self.headers)))
        answers = self.server.answers.get(self.path.split("?")[0], [Answer(status=404)])
        answer = answers.pop(0) if len(answers) > 1 and self.command == "GET" else answers[0]
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.stated != -1:
            self.send_header(
                "Content-Length", str(len(answer.body) if answer.stated is None else answer.stated)
            )
        else:
            self.close_connection = True
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(answer.body)
            if answer.stated not in (None, -1):
                self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, format: str, *values: object) -> None:
        """Nothing."""


@contextmanager
def serving() -> Iterator[WebServer]:
    """A server while the block runs."""
    server = WebServer()
    with serving_on_a_thread(server):
        yield server
