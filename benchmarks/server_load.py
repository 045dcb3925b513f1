"""Load a server from a process of its own, and hold its answers against `vlmbatch vqa`.

    python -m benchmarks.server_load
    python -m benchmarks.server_load --seconds 600 --away 0.1 --json

First `vlmbatch vqa` answers a folder of different pictures. Then a server is started, warmed up
with others, and asked the same by many clients at once, each picture once: that is the throughput.
Then, for ``--seconds``, clients go on asking about any of them, a share of the requests broken and
a share of the clients going away in the middle. Half of the requests are streamed. Every answer
must be the one that vqa gave, every broken request a 400, and the memory of the server flat.
"""

from __future__ import annotations

import argparse
import base64
import collections
import http.client
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageDraw

QUESTION = "How many shapes are there?"
SUFFIXES = (".png", ".jpg", ".webp", ".bmp")
COLOURS = ("red", "green", "blue", "black", "orange")


def make_pictures(folder: Path, count: int, first: int = 0) -> None:
    """Draw different pictures of many sizes and formats, numbered from ``first`` on."""
    folder.mkdir()
    for number in range(first, first + count):
        rng = random.Random(number)
        size = rng.randrange(96, 640), rng.randrange(96, 480)
        image = Image.new("RGB", size, (255 - number % 30, 250, 250 - number // 30 % 30))
        draw = ImageDraw.Draw(image)
        for _ in range(rng.randrange(1, 4)):
            left, top = rng.randrange(size[0] // 2), rng.randrange(size[1] // 2)
            edge = rng.randrange(20, 60)
            shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
            shape((left, top, left + edge, top + edge), fill=rng.choice(COLOURS))
        image.save(folder / f"{number:05d}{SUFFIXES[number % len(SUFFIXES)]}")


def ask_vqa(
    folder: Path, output: Path, model: str, max_tokens: int
) -> tuple[dict[str, str], float]:
    """Answers of a run by file name, and its wall seconds without the start: those of a run over
    one picture are taken off.
    """
    seconds = []
    for limit in ("1", "1000000"):
        command = [sys.executable, "-m", "vlmbatch", "vqa", str(folder), "-q", QUESTION, "--quiet"]
        options = ["--max-new-tokens", str(max_tokens), "--limit", limit, "--overwrite"]
        subprocess.run([*command, *options, "--model", model, "-o", str(output)], check=True)
        summary = json.loads(Path(f"{output}.summary.json").read_text("utf-8"))
        seconds.append(summary["wall_seconds"])
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    return {row["id"]: row["text"] for row in rows}, seconds[1] - seconds[0]


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


class Client:
    """One client with a connection of its own."""

    def __init__(self, port: int, bodies: dict[str, bytes], answers: dict[str, str], tally: Tally):
        self._port, self._bodies, self._answers, self._tally = port, bodies, answers, tally
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, name: str, *, stream: bool) -> None:
        """Ask about a picture and compare the answer."""
        begun = time.perf_counter()
        head = b'{"stream":true,' if stream else b"{"
        response = self._post(head + self._bodies[name])
        if response.status != 200:
            response.read()
            self._tally.add(f"status {response.status}")
            return
        first, text = None, ""
        if stream:
            for line in response:
                if line.startswith(b"data: {"):
                    delta = json.loads(line[6:])["choices"][0]["delta"]
                    if delta.get("content"):
                        first = first or time.perf_counter() - begun
                        text += delta["content"]
        else:
            text = json.loads(response.read())["choices"][0]["message"]["content"]
        is_same = " ".join(text.split()) == self._answers[name]
        self._tally.add("answered" if is_same else "another answer", first)

    def ask_broken(self, number: int) -> None:
        """Send a broken request; it must be a 400."""
        bodies = (b"{", b'"model":"demo"}', b"\xff\xfe", _body(b"no picture"), _body(b""))
        response = self._post(b"{" + bodies[number % len(bodies)])
        response.read()
        self._tally.add("refused" if response.status == 400 else f"bad: {response.status}")

    def go_away(self, name: str, *, stream: bool, seconds: float) -> None:
        """Send a request and go away in the middle."""
        head = b'{"stream":true,' if stream else b"{"
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        connection.request("POST", "/v1/chat/completions", head + self._bodies[name])
        time.sleep(seconds)
        connection.close()
        self._tally.add("went away")

    def warm_up(self, number: int) -> None:
        """Ask about the pictures from this number on, whatever is answered."""
        for name in [*self._bodies][number::16]:
            self._post(b"{" + self._bodies[name]).read()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _post(self, body: bytes) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        self._connection.request("POST", "/v1/chat/completions", body)
        return self._connection.getresponse()


def _body(data: bytes, max_tokens: int = 16, model: str = "demo") -> bytes:
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


def start_server(model: str) -> tuple[subprocess.Popen[str], int]:
    """A server on a free port, ready to answer."""
    command = [sys.executable, "-m", "vlmbatch", "serve", "--model", model, "--port", "0"]
    options = ["--max-queued", "1000", "--max-new-tokens", "64"]
    log = tempfile.TemporaryFile("w+")
    process = subprocess.Popen([*command, *options], stderr=log, text=True)
    while True:
        log.seek(0)
        text = log.read()
        found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", text)
        if found and "ready: " in text:
            return process, int(found[1])
        if process.poll() is not None:
            raise SystemExit(text)
        time.sleep(0.1)


class MemoryWatch:
    """Resident memory of a process, once a second."""

    def __init__(self, pid: int) -> None:
        self._process, self.samples = psutil.Process(pid), []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(1.0):
            self.samples.append(self._process.memory_info().rss)

    def stop(self) -> list[int]:
        """End; return the samples in bytes."""
        self._end.set()
        self._thread.join()
        return self.samples


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all of it."""
    make_pictures(folder / "pictures", options.pictures)
    answers, vqa_seconds = ask_vqa(
        folder / "pictures", folder / "vqa.jsonl", options.model, options.max_tokens
    )
    bodies = {
        name: _body((folder / "pictures" / name).read_bytes(), options.max_tokens, options.model)
        for name in answers
    }
    make_pictures(folder / "warm", 64, options.pictures)
    warm = {
        path.name: _body(path.read_bytes(), options.max_tokens, options.model)
        for path in (folder / "warm").iterdir()
    }
    names = [*answers]
    server, port = start_server(options.model)
    try:
        once, mixed = Tally(), Tally()
        with_clients(16, lambda: Client(port, warm, {}, Tally()), Client.warm_up)
        todo = iter(names)
        guard = threading.Lock()

        def take() -> str | None:
            with guard:
                return next(todo, None)

        def ask_once(client: Client, number: int) -> None:
            while (name := take()) is not None:
                client.ask(name, stream=number % 2 == 0)

        begun = time.perf_counter()
        own = time.process_time()
        with_clients(options.clients, lambda: Client(port, bodies, answers, once), ask_once)
        seconds, own = time.perf_counter() - begun, time.process_time() - own
        memory = MemoryWatch(server.pid)
        end = time.monotonic() + options.seconds

        def ask_mixed(client: Client, number: int) -> None:
            rng = random.Random(number)
            while time.monotonic() < end:
                draw, name, stream = rng.random(), rng.choice(names), rng.random() < 0.5
                if draw < options.bad:
                    client.ask_broken(rng.randrange(100))
                elif draw < options.bad + options.away:
                    client.go_away(name, stream=stream, seconds=rng.random())
                else:
                    client.ask(name, stream=stream)

        with_clients(options.clients, lambda: Client(port, bodies, answers, mixed), ask_mixed)
        samples = memory.stop()
        return report(options, vqa_seconds, seconds, own, once, mixed, samples)
    finally:
        server.terminate()
        code = server.wait(120)
        if code:
            raise SystemExit(f"the server ended with {code}")


def report(
    options: argparse.Namespace,
    vqa_seconds: float,
    seconds: float,
    own: float,
    once: Tally,
    mixed: Tally,
    samples: list[int],
) -> dict[str, Any]:
    """Figures of the measurement."""
    cut = statistics.quantiles(once.first_token, n=100)
    later = samples[len(samples) // 3 :] or [0]
    return {
        "clients": options.clients,
        "pictures": options.pictures,
        "vqa_seconds": round(vqa_seconds, 2),
        "server_seconds": round(seconds, 2),
        "share_of_vqa": round(vqa_seconds / seconds, 3),
        "generator_cpu_seconds": round(own, 2),
        "first_token_p50_seconds": round(cut[49], 3),
        "first_token_p99_seconds": round(cut[98], 3),
        "once": dict(once.counts),
        "mixed_seconds": options.seconds,
        "mixed": dict(mixed.counts),
        "memory_after_a_third_mib": later[0] >> 20,
        "memory_at_the_end_mib": later[-1] >> 20,
        "memory_most_mib": max(later) >> 20,
    }


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--bad", type=float, default=0.05)
    parser.add_argument("--away", type=float, default=0.1)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    print(json.dumps(found) if options.json else "\n".join(f"{k}: {v}" for k, v in found.items()))
    outcomes = {*found["once"], *found["mixed"]} - {"answered", "refused", "went away"}
    if outcomes:
        raise SystemExit(f"not as it should be: {', '.join(sorted(outcomes))}")


if __name__ == "__main__":
    main()
