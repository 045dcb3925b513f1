"""Servers on loopback, in this process: started and ended by the test that asks for one."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from vlmbatch.engine import Engine, open_engine
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.job import EngineOptions
from vlmbatch.serve.server import Server
from vlmbatch.serve.settings import ServeJob

WAIT = 60


class LiveServer:
    """A server that answers.

    Attributes:
        url: Its URL.
        server: The server.
        client: An HTTP client of it.
    """

    def __init__(self, server: Server) -> None:
        self.server, self.url = server, server.url
        self.client = httpx2.Client(base_url=self.url, timeout=WAIT)
        self.thread = threading.Thread(target=self._run)
        self.error: BaseException | None = None
        self.thread.start()

    def _run(self) -> None:
        try:
            self.server.run()
        except BaseException as error:
            self.error = error

    def wait_for(self, path: str, is_there: Callable[[httpx2.Response], bool]) -> httpx2.Response:
        """Ask until an answer is there."""
        end = time.monotonic() + WAIT
        while not is_there(found := self.client.get(path)):
            assert time.monotonic() < end, found.text
        return found

    def wait_until_ready(self) -> None:
        self.wait_for("/health", lambda found: found.status_code == 200)

    def wait_until(self, **counts: int) -> None:
        """Wait until ``GET /`` states these counts."""
        self.wait_for("/", lambda found: counts.items() <= found.json().items())

    def chat(self, content: Any = "What?", **rest: Any) -> httpx2.Response:
        """Ask a question of one turn."""
        body = json.dumps(request(content, **rest))  # ASCII: half a surrogate pair can be sent
        return self.client.post("/v1/chat/completions", content=body)

    def end(self) -> None:
        self.server.stop()
        self.thread.join(WAIT)
        assert not self.thread.is_alive()
        self.client.close()


def request(content: Any = "What?", **rest: Any) -> dict[str, Any]:
    """The JSON of a chat request."""
    return {"model": "script", "messages": [{"role": "user", "content": content}], **rest}


def image_part(data: bytes, **rest: Any) -> dict[str, Any]:
    """A picture of a message, from its file."""
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": url, **rest}}


def png(size: int = 16, seed: int = 0) -> bytes:
    """A small picture's file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@contextlib.contextmanager
def live(engine: Engine, **options: Any) -> Iterator[LiveServer]:
    """A server on a free port, ready to answer."""
    job = ServeJob(**{"port": 0, "drain": 5.0, **options})
    server = LiveServer(Server(job, engine))
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.end()


class Gate:
    """An answer of the scripted engine that waits until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, key: str, question: str) -> str:
        self.begun.set()
        assert self.go.wait(WAIT)
        return question


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go.set()


@pytest.fixture(scope="module")
def scripted() -> Iterator[LiveServer]:
    """A server that repeats the question."""
    with live(ScriptedEngine(lambda key, question: question)) as server:
        yield server


@pytest.fixture(scope="module")
def demo() -> Iterator[LiveServer]:
    """A server with the demo model."""
    engine = open_engine(EngineOptions(model="demo", device="cpu"), reuse_prefixes=True)
    with live(engine, allow_private_urls=True) as server:
        yield server
