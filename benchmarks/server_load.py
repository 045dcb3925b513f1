"""Load a server from a process of its own, and hold its answers against `vlmbatch vqa`.

    python -m benchmarks.server_load
    python -m benchmarks.server_load --rounds 1 --seconds 600 --away 0.1 --json
    python -m benchmarks.server_load --rounds 1 --pictures 11000 --seconds 0

Each round has pictures of its own. A server, warmed up with others, is asked about each of them
once, by many clients at once; then `vlmbatch vqa` answers the same folder, beside a process that
takes as much of the processor as the clients did. That gives the throughput of both, and the
processor time of an answer, which other programs hardly disturb.

Then, for ``--seconds``, clients go on asking about any of them, a share of the requests broken and
a share of the clients going away in the middle. Half of the requests are streamed. Every answer
must be the one that vqa gave, every broken request a 400, and the memory of the server flat.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageDraw

from benchmarks.server_clients import (
    QUESTION,
    Client,
    MemoryWatch,
    Tally,
    ask_each_once,
    chat_body,
    with_clients,
)

SUFFIXES = (".png", ".jpg", ".webp", ".bmp")
COLOURS = ("red", "green", "blue", "black", "orange")
WARM_UP = 64
FIRST_OF_WARM_UP = 10_000_000


def make_pictures(folder: Path, count: int, first: int) -> None:
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
        image.save(folder / f"{number:08d}{SUFFIXES[number % len(SUFFIXES)]}")


class Vqa:
    """Runs of `vlmbatch vqa`, without their start: that of a run over one picture is taken off."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._start = (0.0, 0.0)

    def measure_start(self, pictures: Path) -> None:
        """Measure a run over one picture."""
        _, *self._start = self._run(pictures, 1)  # type: ignore[assignment]

    def answer(self, pictures: Path) -> tuple[dict[str, str], float, float]:
        """Answers by file name, wall seconds, and seconds of processor time."""
        answers, wall, cpu = self._run(pictures, 1_000_000)
        return answers, wall - self._start[0], cpu - self._start[1]

    def _run(self, pictures: Path, limit: int) -> tuple[dict[str, str], float, float]:
        options, output = self._options, self._folder / "vqa.jsonl"
        command = [sys.executable, "-m", "vlmbatch", "vqa", str(pictures), "-q", QUESTION]
        command += ["--max-new-tokens", str(options.max_tokens), "--limit", str(limit), "--quiet"]
        command += ["--overwrite", "--model", options.model, "-o", str(output), *options.extra]
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"vqa ended with {process.returncode}")
        summary = json.loads(Path(f"{output}.summary.json").read_text("utf-8"))
        rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
        answers = {row["id"]: row["text"] for row in rows}
        return answers, summary["wall_seconds"], usage.ru_utime + usage.ru_stime


class Burner:
    """A process that takes a share of one core, as the clients did."""

    CODE = """if True:
        import sys, time
        share, begun = float(sys.argv[1]), time.perf_counter()
        while True:
            if time.process_time() < share * (time.perf_counter() - begun):
                sum(range(2000))
            else:
                time.sleep(0.002)
    """

    def __init__(self, share: float) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", self.CODE, str(share)])

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


class Server:
    """A server on a free port, ready to answer."""

    def __init__(self, options: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "vlmbatch", "serve", "--model", options.model]
        command += ["--port", "0", "--max-queued", "1000", "--max-new-tokens", "64"]
        log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([*command, *options.extra], stderr=log, text=True)
        while True:
            log.seek(0)
            text = log.read()
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", text)
            if found and "ready: " in text:
                self.port = int(found[1])
                return
            if self.process.poll() is not None:
                raise SystemExit(text)
            time.sleep(0.1)

    def cpu_seconds(self) -> float:
        """Processor time that it took so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def stop(self) -> None:
        """End it; a failure is the benchmark's."""
        self.process.terminate()
        if code := self.process.wait(120):
            raise SystemExit(f"the server ended with {code}")


class Load:
    """All phases against one server."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._vqa, self.server = Vqa(options, folder), Server(options)
        self._bodies: dict[str, bytes] = {}
        self._answers: dict[str, str] = {}
        self.found: dict[str, Any] = {"clients": options.clients, "rounds": []}

    def run(self) -> None:
        """Run all of it."""
        options, warm = self._options, self._folder / "warm"
        make_pictures(warm, WARM_UP, FIRST_OF_WARM_UP)
        if options.rounds:
            self._vqa.measure_start(warm)
        bodies = self._read(warm)
        port = self.server.port
        ask_each_once(16, lambda: Client(port, bodies, {}, Tally(), learn=True), bodies)
        for number in range(options.rounds):
            self.found["rounds"].append(self._round(number))
        if options.seconds:
            self.found["mixed"] = self._mixed()

    def _read(self, pictures: Path) -> dict[str, bytes]:
        return {
            path.name: chat_body(path.read_bytes(), self._options.max_tokens, self._options.model)
            for path in sorted(pictures.iterdir())
        }

    def _round(self, number: int) -> dict[str, Any]:
        """Ask the server, then vqa."""
        options, server = self._options, self.server
        pictures = self._folder / f"pictures-{number}"
        make_pictures(pictures, options.pictures, number * options.pictures)
        bodies = self._read(pictures)
        heard: dict[str, str] = {}
        tally = Tally()
        memory = MemoryWatch(server.process.pid, tally)
        begun, cpu, own = time.perf_counter(), server.cpu_seconds(), time.process_time()
        ask_each_once(
            options.clients, lambda: Client(server.port, bodies, heard, tally, learn=True), bodies
        )
        seconds, own = time.perf_counter() - begun, time.process_time() - own
        cpu = server.cpu_seconds() - cpu
        curve = memory.stop()
        burner = Burner(own / seconds)
        try:
            answers, vqa_seconds, vqa_cpu = self._vqa.answer(pictures)
        finally:
            burner.stop()
        different = sum(" ".join(heard.get(name, "").split()) != answers[name] for name in answers)
        if different:
            tally.counts["another answer"] += different
        self._bodies |= bodies
        self._answers |= answers
        return {
            "pictures": len(answers),
            "server_seconds": round(seconds, 2),
            "vqa_seconds": round(vqa_seconds, 2),
            "share_of_vqa": round(vqa_seconds / seconds, 3),
            "server_cpu_ms_a_request": round(1000 * cpu / len(answers), 2),
            "vqa_cpu_ms_a_picture": round(1000 * vqa_cpu / len(answers), 2),
            "clients_cpu_ms_a_request": round(1000 * own / len(answers), 2),
            "cpu_share_of_vqa": round(vqa_cpu / cpu, 3),
            **first_token(tally),
            "outcomes": dict(tally.counts),
            "memory": curve,
        }

    def _mixed(self) -> dict[str, Any]:
        """Ask about any picture, some requests broken, some clients going away."""
        options, names, tally = self._options, [*self._answers], Tally()
        memory = MemoryWatch(self.server.process.pid, tally)
        end = time.monotonic() + options.seconds

        def work(client: Client, number: int) -> None:
            rng = random.Random(number)
            while time.monotonic() < end:
                draw, name, stream = rng.random(), rng.choice(names), rng.random() < 0.5
                if draw < options.bad:
                    client.ask_broken(rng.randrange(100))
                elif draw < options.bad + options.away:
                    client.go_away(name, stream=stream, seconds=rng.random())
                else:
                    client.ask(name, stream=stream)

        port, bodies, answers = self.server.port, self._bodies, self._answers
        with_clients(options.clients, lambda: Client(port, bodies, answers, tally), work)
        return {
            "seconds": options.seconds,
            **first_token(tally),
            "outcomes": dict(tally.counts),
            "memory": memory.stop(),
        }


def first_token(tally: Tally) -> dict[str, float | None]:
    """Seconds to the first token of a stream."""
    times = tally.first_token
    cuts = statistics.quantiles(times, n=100) if len(times) > 1 else None
    return {
        f"first_token_p{rank}_seconds": None if cuts is None else round(cuts[rank - 1], 3)
        for rank in (50, 99)
    }


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=600, help="of a round")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the mixed load")
    parser.add_argument("--bad", type=float, default=0.05, help="share of broken requests")
    parser.add_argument("--away", type=float, default=0.1, help="share of clients that go away")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("extra", nargs="*", help="options of both commands, after --")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        load = Load(options, Path(folder))
        try:
            load.run()
        finally:
            load.server.stop()
    found = load.found
    print(json.dumps(found, indent=None if options.json else 1))
    phases = [*found["rounds"], *([found["mixed"]] if "mixed" in found else [])]
    outcomes = {name for phase in phases for name in phase["outcomes"]}
    if wrong := outcomes - {"answered", "refused", "went away"}:
        raise SystemExit(f"not as it should be: {', '.join(sorted(wrong))}")


if __name__ == "__main__":
    main()
