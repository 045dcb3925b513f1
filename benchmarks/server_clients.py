"""Clients of a server under load, and the watch on its memory: see ``server_load``."""

from __future__ import annotations

import base64
import collections
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import psutil

QUESTION = "How many shapes are there?"
TIMEOUT_SECONDS = 300


class Tally:
    """What came of the requests; for any thread."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.first_token: list[float] = []
        self._guard = threading.Lock()

    def add(self, outcome: str, first_token: float | None = None) -> None:
        with self._guard:
            self.counts[outcome] += 1
            if first_token is not None:
                self.first_token.append(first_token)

    @property
    def total(self) -> int:
        return self.counts.total()


class Client:
    """One client with a connection of its own."""

    def __init__(
        self,
        port: int,
        bodies: Mapping[str, bytes],
        answers: dict[str, str],
        tally: Tally,
        *,
        learn: bool = False,
    ) -> None:
        """Take what to ask.

        Args:
            port: The server's.
            bodies: Requests by name, behind their first brace.
            answers: What must be answered; with ``learn`` what is answered goes there.
            tally: Counts.
            learn: Whether any answer is taken as it is.
        """
        self._learn = learn
        self._port, self._bodies, self._answers, self._tally = port, bodies, answers, tally
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, name: str, *, stream: bool) -> None:
        """Ask about a picture and compare the answer."""
        begun = time.perf_counter()
        response = self._post(_opening(stream) + self._bodies[name])
        if response.status != 200:
            response.read()
            self._tally.add(f"status {response.status}")
            return
        first, text, is_whole = None, "", not stream
        if stream:
            for line in response:
                if line.startswith(b"data: {"):
                    delta = json.loads(line[6:])["choices"][0]["delta"]
                    if delta.get("content"):
                        first = first or time.perf_counter() - begun
                        text += delta["content"]
                is_whole = is_whole or line.startswith(b"data: [DONE]")
        else:
            text = json.loads(response.read())["choices"][0]["message"]["content"]
        if self._learn and is_whole:
            self._answers[name] = text
        is_same = is_whole and " ".join(text.split()) == " ".join(self._answers[name].split())
        self._tally.add("answered" if is_same else "another answer", first)

    def ask_broken(self, number: int) -> None:
        """Send a broken request; it must be a 400."""
        bodies = (b"{", b'"model":"demo"}', b"\xff\xfe", chat_body(b"no picture"), chat_body(b""))
        response = self._post(b"{" + bodies[number % len(bodies)])
        response.read()
        self._tally.add("refused" if response.status == 400 else f"bad: {response.status}")

    def go_away(self, name: str, *, stream: bool, seconds: float) -> None:
        """Send a request and go away in the middle."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)
        connection.request("POST", "/v1/chat/completions", _opening(stream) + self._bodies[name])
        time.sleep(seconds)
        connection.close()
        self._tally.add("went away")

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _post(self, body: bytes) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(
                "127.0.0.1", self._port, timeout=TIMEOUT_SECONDS
            )
        self._connection.request("POST", "/v1/chat/completions", body)
        return self._connection.getresponse()


def _opening(stream: bool) -> bytes:
    return b'{"stream":true,' if stream else b"{"


def chat_body(data: bytes, max_tokens: int = 16, model: str = "demo") -> bytes:
    """The JSON of a request behind its first brace."""
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": parts}]
    values = {"model": model, "max_tokens": max_tokens, "messages": messages}
    return json.dumps(values).encode()[1:]


def with_clients(
    count: int, make: Callable[[], Client], work: Callable[[Client, int], None]
) -> None:
    """Run ``work`` for each client on a thread of its own; an error of one is raised."""
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        client = make()
        try:
            work(client, number)
        except BaseException as error:
            failures.append(error)
        finally:
            client.close()

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def ask_each_once(count: int, make: Callable[[], Client], names: Iterable[str]) -> None:
    """Ask about each picture once, by many clients; half of them stream."""
    left, guard = iter(names), threading.Lock()

    def work(client: Client, number: int) -> None:
        while True:
            with guard:
                name = next(left, None)
            if name is None:
                return
            client.ask(name, stream=number % 2 == 0)

    with_clients(count, make, work)


class MemoryWatch:
    """Resident memory of a process, once a second, with the number of requests by then."""

    def __init__(self, pid: int, tally: Tally) -> None:
        self._process, self._tally = psutil.Process(pid), tally
        self._begun = time.monotonic()
        self._samples: list[tuple[float, int, int]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(1.0):
            seconds = time.monotonic() - self._begun
            self._samples.append((seconds, self._tally.total, self._process.memory_info().rss))

    def stop(self) -> dict[str, Any]:
        """End; return the curve in MiB, by seconds and requests, and how much it grew after the
        first minute and after the first thousand requests.
        """
        self._end.set()
        self._thread.join()
        samples = self._samples or [(0.0, 0, self._process.memory_info().rss)]
        after_minute = [rss for seconds, _, rss in samples if seconds >= 60]
        after_thousand = [rss for _, total, rss in samples if total >= 1000]
        return {
            "curve_seconds_requests_mib": [
                (round(seconds), total, rss >> 20)
                for seconds, total, rss in [*samples[:: max(1, len(samples) // 20)], samples[-1]]
            ],
            "grown_after_a_minute_mib": _growth(after_minute),
            "grown_after_1000_requests_mib": _growth(after_thousand),
        }


def _growth(samples: list[int]) -> float | None:
    return round((max(samples) - samples[0]) / (1 << 20), 1) if samples else None
