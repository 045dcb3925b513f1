"""An endpoint in a process of its own, to be killed. It answers with the question and a digest of
the picture, and writes a line to a log for each request.

    python -m tests.engine.openai.endpoint PORT LOG
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.engine.openai.server import Handler, Server, reply

ROOT = Path(__file__).parents[3]


def echo(handler: Handler) -> None:
    """Answer with the question and a digest of the picture."""
    picture, question = handler.body["messages"][-1]["content"]
    digest = hashlib.sha256(picture["image_url"]["url"].encode()).hexdigest()[:8]
    handler.send(200, reply(f"{question['text']} {digest}"))


def main() -> None:
    """Serve until it is killed."""
    port, log = int(sys.argv[1]), Path(sys.argv[2])
    with open(log, "ab", buffering=0) as lines:

        def noted(handler: Handler) -> None:
            lines.write(b".\n")
            echo(handler)

        with Server([], noted, port) as server:
            print(server.server_port, flush=True)
            server.serve_forever(poll_interval=0.02)


class Endpoint:
    """The process, which can be killed and started again at its address."""

    def __init__(self, log: Path) -> None:
        self._log, self.port = log, 0
        log.touch()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def requests(self) -> int:
        """Requests so far, also those of killed processes."""
        return self._log.stat().st_size // 2

    def start(self) -> None:
        line = [sys.executable, "-m", "tests.engine.openai.endpoint", str(self.port), self._log]
        self._process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def endpoint(log: Path) -> Iterator[Endpoint]:
    found = Endpoint(log)
    try:
        yield found
    finally:
        found.kill()


if __name__ == "__main__":
    main()
