"""The server's process: it is started once more after its end, and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.contracts.test_engines import about, long, put_all
from tests.engine.llama_server.conftest import Open
from vlmbatch.core import Completion, Question
from vlmbatch.engine.llama_server.engine import LlamaServerEngine
from vlmbatch.engine.llama_server.process import ServerCommand, ServerProcess
from vlmbatch.errors import EngineError, ModelLoadError

WAIT_SECONDS = 30


def kill(engine: LlamaServerEngine) -> None:
    for pid in engine.pids:
        os.kill(pid, signal.SIGKILL)


def run_and_kill(engine: LlamaServerEngine, kills: int) -> Iterator[Completion]:
    """Answers to six requests; the server is killed after each of the first ones."""
    requests = [engine.prepare(about(seed), [long(), long("Why?")]) for seed in range(6)]
    for number, completion in enumerate(engine.run(put_all(*requests))):
        if number < kills:
            kill(engine)
        yield completion


def test_a_killed_server_is_started_again_and_nothing_is_lost(
    tiny: Path, open_server: Open
) -> None:
    engine = open_server(tiny)
    requests = [engine.prepare(about(seed), [long(), long("Why?")]) for seed in range(6)]
    expected = {
        (one.request.conversation.key, one.question): one.text
        for one in engine.run(put_all(*requests))
    }
    before = engine.pids
    found = list(run_and_kill(engine, 1))
    assert len(found) == len(expected) == 12
    assert {(one.request.conversation.key, one.question): one.text for one in found} == expected
    assert all(one.error is None for one in found)
    assert engine.pids != before


def test_what_was_streamed_is_not_streamed_again(tiny: Path, open_server: Open) -> None:
    engine = open_server(tiny)
    (whole,) = engine.run(put_all(engine.prepare(about(3), [long(on_text=lambda piece: None)])))
    pieces: list[str] = []

    def listen(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 2:
            kill(engine)

    (found,) = engine.run(put_all(engine.prepare(about(3), [long(on_text=listen)])))
    assert found.text == whole.text
    assert "".join(pieces).strip() == whole.text


def test_a_server_that_ends_twice_ends_the_run(tiny: Path, open_server: Open) -> None:
    engine = open_server(tiny)
    with pytest.raises(EngineError, match=r"ended twice \(exit code -9\); the last lines of /"):
        for _ in range(3):
            list(run_and_kill(engine, 1))


def test_close_ends_the_server(tiny: Path, open_server: Open) -> None:
    engine = open_server(tiny)
    (process,) = map(psutil.Process, engine.pids)
    engine.close()
    assert not process.is_running()
    assert engine.pids == []
    assert not any("llama" in thread.name for thread in threading.enumerate())


PARENT = """
import os, sys
from vlmbatch.engine import open_engine
from vlmbatch.job import EngineOptions
engine = open_engine(EngineOptions(model=sys.argv[1], engine="llama-server", threads=1,
                                   batch_size=1, cache_dir=sys.argv[2]))
print(*engine.pids, flush=True)
sys.stdin.read()
"""


FAKE = """#!{python}
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{props}')

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def test_the_server_ends_with_a_killed_run(tiny: Path, cache: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tiny), str(cache)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with run:
        assert run.stdout is not None
        server = psutil.Process(int(run.stdout.readline()))
        assert server.is_running()
        run.kill()
    psutil.wait_procs([server], WAIT_SECONDS)
    assert not server.is_running()


def test_a_server_that_does_not_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho error: unknown model architecture\nexit 1\n")
    program.chmod(0o755)
    command = ServerCommand(str(program), tmp_path / "a.gguf", tmp_path / "b.gguf", 1, 512)
    expected = r"did not start \(exit code 1\); the last lines of .*\.log: error: unknown model"
    with pytest.raises(ModelLoadError, match=expected):
        ServerProcess(command, tmp_path / "logs", "<marker>")
    (log,) = (tmp_path / "logs").iterdir()
    assert "unknown model architecture" in log.read_text()


@pytest.mark.parametrize(
    ("props", "message"),
    [
        ('{"modalities": {"vision": false}}', "takes no pictures with"),
        ('{"modalities": {"vision": true}, "media_marker": "<__media__>"}', "no marker for"),
    ],
)
def test_a_server_that_takes_no_pictures_of_ours_is_refused(
    tmp_path: Path, props: str, message: str
) -> None:
    program = tmp_path / "llama-server"
    program.write_text(FAKE.format(python=sys.executable, props=props))
    program.chmod(0o755)
    command = ServerCommand(str(program), tmp_path / "a.gguf", tmp_path / "b.gguf", 1, 512)
    with pytest.raises(ModelLoadError, match=message):
        ServerProcess(command, tmp_path / "logs", "<marker>")


def test_the_command_has_what_matters(tmp_path: Path) -> None:
    files = (tmp_path / "a.gguf", tmp_path / "b.gguf")
    line = ServerCommand("/bin/llama-server", *files, 3, 2048, 2, exact=True, device="cpu").line(80)
    text = " ".join(line)
    assert line[0] == "/bin/llama-server"
    for part in (
        f"-m {files[0]} --mmproj {files[1]} --host 127.0.0.1 --port 80",
        "-np 3 -c 6144 --cache-ram 0",
        "-t 2 -tb 2",
        "-ctk f32 -ctv f32 -fa off",
        "-ngl 0 --no-mmproj-offload -dev none",
    ):
        assert part in text
    one_tile = ServerCommand("/bin/llama-server", *files, 1, 64, device="CUDA1", one_tile=64)
    assert " ".join(one_tile.line(80)).endswith(
        "-dev CUDA1 --image-min-tokens 64 --image-max-tokens 64"
    )


def test_a_question_that_is_cancelled_frees_its_slot(tiny: Path, open_server: Open) -> None:
    engine = open_server(tiny, batch_size=1)
    endless = engine.prepare(about(0), [Question("?", max_new_tokens=1500, ignore_eos=True)])
    second = engine.prepare(about(1), [long()])
    source = put_all(endless, second)
    endless.cancel()
    found = {one.request: one for one in engine.run(source)}
    assert found[endless].finish_reason == "cancelled"
    assert found[second].finish_reason == "length"
