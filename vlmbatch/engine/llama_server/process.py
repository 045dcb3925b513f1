"""The server's process: started, watched and ended.

A thread of its own starts it and waits for its end: on Linux the kernel ends a child with the
thread that started it, so that thread has to live as long.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from vlmbatch.engine.llama_server.client import Client, Json
from vlmbatch.errors import EngineError, ModelLoadError, one_line

LAUNCHER = Path(__file__).with_name("launch.py")
START_SECONDS = 900.0
"""Longest time to load a model, from a slow disk too."""
END_SECONDS = 5.0
"""Time between the request to end and the end by force."""
LOG_LINES = 8
KEPT_LOGS = 20
TRIES = 3
"""Starts with another port: between choosing and taking one, another program may take it."""


@dataclasses.dataclass(frozen=True)
class ServerCommand:
    """Program, files and settings of a server.

    Attributes:
        program: Path of ``llama-server``, or ``xllamacpp`` for that of the package.
        text: The language model.
        vision: The vision encoder.
        slots: Sequences decoded together.
        context: Tokens of each of them.
        threads: Compute threads; None for llama.cpp's choice.
        exact: Whether keys and values are float32, as the weights.
        device: ``auto``, ``cpu``, or llama.cpp's name of a device.
        one_tile: Tokens of a tile for the one-tile layout; None for the grid.
    """

    program: str
    text: Path
    vision: Path
    slots: int
    context: int
    threads: int | None = None
    exact: bool = False
    device: str = "auto"
    one_tile: int | None = None

    def line(self, port: int) -> list[str]:
        """Return the arguments of ``launch.py`` after the parent."""
        if self.program == "xllamacpp":
            return ["xllamacpp", json.dumps(self._settings(port))]
        arguments: list[object] = [
            self.program,
            *("-m", self.text, "--mmproj", self.vision, "--host", "127.0.0.1", "--port", port),
            *("-np", self.slots, "-c", self.slots * self.context, "--cache-ram", 0),
            *("--no-ui", "--no-warmup", "--fit", "off", "--slots", "--no-context-shift"),
        ]
        if self.threads is not None:
            arguments += ["-t", self.threads, "-tb", self.threads]
        if self.exact:
            arguments += ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]
        if self.device == "cpu":
            arguments += ["-ngl", 0, "--no-mmproj-offload", "-dev", "none"]
        elif self.device != "auto":
            arguments += ["-dev", self.device]
        if self.one_tile is not None:
            arguments += ["--image-min-tokens", self.one_tile, "--image-max-tokens", self.one_tile]
        return [str(argument) for argument in arguments]

    def _settings(self, port: int) -> dict[str, object]:
        found: dict[str, object] = {
            "model.path": str(self.text),
            "mmproj.path": str(self.vision),
            "hostnames": ["127.0.0.1"],
            "port": port,
            "n_parallel": self.slots,
            "n_ctx": self.slots * self.context,
            "cache_ram_mib": 0,
            "ui": False,
            "warmup": False,
            "fit_params": False,
        }
        if self.threads is not None:
            for name in ("cpuparams", "cpuparams_batch"):
                found[f"{name}.n_threads"] = self.threads
        if self.exact:
            found |= dict.fromkeys(("cache_type_k", "cache_type_v"), "GGML_TYPE_F32")
            found["flash_attn_type"] = "LLAMA_FLASH_ATTN_TYPE_DISABLED"
        if self.device == "cpu":
            found |= {"n_gpu_layers": 0, "mmproj_use_gpu": False}
        if self.one_tile is not None:
            found |= dict.fromkeys(("image_min_tokens", "image_max_tokens"), self.one_tile)
        return found


class ServerProcess:
    """A server that runs, and that is started once more if it ends too early.

    Attributes:
        client: Asks it; another one after a restart.
        generation: Number of restarts.
        log: Its log.
    """

    def __init__(self, command: ServerCommand, logs: Path, marker: str) -> None:
        """Start it, and wait until the model is loaded.

        Args:
            command: How it is started.
            logs: Folder of the logs.
            marker: Text that stands for a picture in a prompt.

        Raises:
            ModelLoadError: It ended instead; the message has the last lines of its log.
        """
        self._command, self._marker = command, marker
        self.log = _new_log(logs)
        self.generation = 0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self.client = self._start()

    @property
    def pid(self) -> int | None:
        """The process id; None if it has ended."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def recover(self, generation: int) -> None:
        """Start it again after it ended while a request was in hand.

        Args:
            generation: ``generation`` when the request was sent: several may find the end.

        Raises:
            EngineError: It had been started again before.
        """
        with self._lock:
            if self.generation != generation or self._is_closed:
                return
            code = self._end()
            if self.generation:
                raise EngineError(
                    f"llama-server ended twice (exit code {code}); the last lines of {self.log}: "
                    f"{self._last_lines()}"
                )
            self.client = self._start()
            self.generation += 1

    def close(self) -> None:
        """End it."""
        with self._lock:
            self._is_closed = True
            self._end()

    def _start(self) -> Client:
        for attempt in range(TRIES):
            port = _free_port()
            process = self._process = self._spawn(port)
            client = Client(port)
            deadline = time.monotonic() + START_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                if client.is_ready():
                    self._check(client.props())
                    return client
                time.sleep(0.02)
            code = self._end()
            if "couldn't bind" not in self._last_lines() or attempt == TRIES - 1:
                break
        raise ModelLoadError(
            f"llama-server did not start (exit code {code}); the last lines of {self.log}: "
            f"{self._last_lines()}"
        )

    def _check(self, props: Json) -> None:
        """Check that the server takes pictures as they are sent.

        Raises:
            ModelLoadError: It does not.
        """
        if not props.get("modalities", {}).get("vision"):
            fault = f"takes no pictures with {self._command.vision}"
        elif props.get("media_marker") != self._marker:
            fault = "has no marker for pictures that can be set (LLAMA_MEDIA_MARKER)"
        else:
            return
        self._end()
        raise ModelLoadError(f"llama-server {fault}: install a newer llama.cpp")

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        """Start the process on a thread that waits for its end."""
        line = [sys.executable, "-I", str(LAUNCHER), str(os.getpid()), *self._command.line(port)]
        started: list[subprocess.Popen[bytes] | OSError] = []
        is_started = threading.Event()

        def keep() -> None:
            with open(self.log, "ab") as log:
                try:
                    process = subprocess.Popen(
                        line,
                        stdin=subprocess.PIPE,  # held open: its end is the end of the server
                        stdout=log,
                        stderr=log,
                        start_new_session=True,  # Ctrl-C ends the run in order, and the run it
                        env={**os.environ, "LLAMA_MEDIA_MARKER": self._marker},
                    )
                except OSError as error:
                    started.append(error)
                    is_started.set()
                    return
            started.append(process)
            is_started.set()
            process.wait()

        threading.Thread(target=keep, name="llama-server", daemon=True).start()
        is_started.wait()
        (process,) = started
        if isinstance(process, OSError):
            raise ModelLoadError(f"llama-server cannot be run: {one_line(process)}") from process
        return process

    def _end(self) -> int | None:
        """End the process, by force if need be. Return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        return process.returncode

    def _last_lines(self) -> str:
        try:
            lines = self.log.read_text("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return " | ".join(line.strip() for line in lines[-LOG_LINES:] if line.strip())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _new_log(folder: Path) -> Path:
    """Return the path of a new log, and remove the oldest."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now().strftime("%Y%m%dT%H%M%S")
    for old in sorted(folder.glob("llama-server-*.log"))[: -KEPT_LOGS + 1]:
        old.unlink(missing_ok=True)
    return folder / f"llama-server-{now}-{os.getpid()}-{secrets.token_hex(2)}.log"
