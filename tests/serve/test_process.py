"""The command: its lines on stderr, its job file, and its end by signals."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx2
import pytest

from tests.cli.conftest import Command
from tests.cli.conftest import vlmbatch as vlmbatch
from tests.serve.conftest import WAIT, image_part, png

ROOT = Path(__file__).parents[2]


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "vlmbatch", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            yield process, process.stderr
        finally:
            process.kill()


def test_a_job_file_serves_logs_json_and_ends_at_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures, prompts and keys of clients are not logged."""
    monkeypatch.setenv("TEST_SERVER_KEY", "secret-key")
    settings = ("--set", "port=0", "--set", "api_key_env=TEST_SERVER_KEY")
    with started("run", str(ROOT / "pipelines" / "server.yaml"), *settings) as (process, stderr):
        first, second = json.loads(stderr.readline()), json.loads(stderr.readline())
        url = re.search(r"http://127\.0\.0\.1:\d+", first["message"])
        assert url is not None
        assert second["message"].startswith("ready: demo on ")
        messages = [
            {"role": "user", "content": [image_part(png()), {"type": "text", "text": "private"}]}
        ]
        body = {"model": "demo", "messages": messages, "max_tokens": 3}
        headers = {"authorization": "Bearer secret-key", "x-request-id": "mine-1"}
        path = f"{url[0]}/v1/chat/completions"
        for content in ([image_part(b"private")], [{"type": "image_url", "image_url": "private"}]):
            wrong = {**body, "messages": [{"role": "user", "content": content}]}
            refused = httpx2.post(path, json=wrong, headers=headers, timeout=WAIT)
            assert refused.status_code == 400
        keyless = httpx2.get(f"{url[0]}/v1/models", headers={"authorization": "Bearer private"})
        assert keyless.status_code == 401
        found = httpx2.post(path, json=body, headers=headers, timeout=WAIT)
        assert found.status_code == 200
        assert found.headers["x-request-id"] == "mine-1"
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0
        rest = stderr.read()
    lines = [json.loads(line) for line in rest.splitlines()]
    assert (first["event"], second["event"]) == ("listening", "ready")
    assert [line["event"] for line in lines] == ["request"] * 4 + ["stopping", "ended"]
    picture, value, key, line = lines[:4]
    assert "error" not in line
    assert "not a picture" in picture["error"]
    assert picture["param"] == "messages[0].content[0]"
    assert value["error"] == "messages[0].content[0].image_url must be object, not …"
    assert value["message"].endswith(value["error"])
    assert key["error"].startswith("no valid key")
    assert (line["status"], line["path"], line["pictures"]) == (200, "/v1/chat/completions", 1)
    assert line["completion_tokens"] == found.json()["usage"]["completion_tokens"]
    for secret in ("private", "secret-key", "base64"):
        assert secret not in rest


def test_the_image_of_the_docs_starts_and_is_found_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last lines, as they stand: the command, and the check of its health."""
    monkeypatch.setenv("VLMBATCH_KEY", "secret-key")
    page = (ROOT / "docs" / "server.md").read_text("utf-8")
    lines = page.split("```dockerfile\n")[1].split("```")[0].splitlines()
    found = dict(line.split(" ", 1) for line in lines if line[:1].isupper())
    extra = re.search(r"\.\[(\w+)\]", page)
    assert extra is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert extra[1] in project["optional-dependencies"]
    command = [*json.loads(found["ENTRYPOINT"]), *json.loads(found["CMD"])]
    assert command[0] in project["scripts"]
    with started(*command[1:], "--model", "demo", "--port", "0") as (process, stderr):
        port = re.search(r"listening on http://[0-9.]+:(\d+)", stderr.readline())
        assert port is not None
        assert "ready: " in stderr.readline()
        program = shlex.split(found["HEALTHCHECK"])[1:]
        assert program[:2] == ["python", "-c"]
        check = program[2].replace(f":{found['EXPOSE']}/", f":{port[1]}/")
        assert port[1] in check
        subprocess.run([sys.executable, "-c", check], check=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0


def test_the_clients_of_the_docs_get_the_answer_that_stands_there() -> None:
    """By curl and by openai-python, as they stand, but for the port."""
    page = (ROOT / "docs" / "server.md").read_text("utf-8")
    curl = page.split("```console\n$ ")[1].split("```")[0]
    session = page.split("```pycon\n")[1].split("```")[0]
    with started("serve", "--model", "demo", "--port", "0") as (_, stderr):
        port = re.search(r"listening on http://[0-9.]+:(\d+)", stderr.readline())
        assert port is not None
        assert "ready: " in stderr.readline()
        curl, session = (text.replace(":8000/", f":{port[1]}/") for text in (curl, session))
        if shutil.which("curl") is not None:
            done = subprocess.run(
                ["bash", "-c", curl], cwd=ROOT, capture_output=True, text=True, check=True
            )
            message = json.loads(done.stdout)["choices"][0]["message"]
            assert f"{message['content']!r}\n" == session.splitlines(keepends=True)[-1]
        program = "import doctest, sys; sys.exit(doctest.testfile(sys.argv[1], False).failed)"
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(session)
            file.flush()
            subprocess.run([sys.executable, "-c", program, file.name], cwd=ROOT, check=True)


def test_options_are_printed_as_a_job_file(vlmbatch: Command, tmp_path: Path) -> None:
    done = vlmbatch("serve", "--model", "demo", "--port", "9000", "--dry-run")
    assert done.returncode == 0
    file = tmp_path / "serve.yaml"
    file.write_text(done.stdout)
    again = vlmbatch("run", file, "--dry-run")
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_help_names_the_engines_that_serve(vlmbatch: Command) -> None:
    for command, has_endpoint in (("serve", False), ("batch", True)):
        text = " ".join(vlmbatch(command, "--help").stdout.split())
        assert "onnx: ONNX Runtime." in text
        assert ("openai: a server, see --endpoint." in text) == has_endpoint


def test_bad_options_are_usage_errors(vlmbatch: Command, tmp_path: Path) -> None:
    for arguments, words in (
        (("serve", "--host", "0.0.0.0"), "--api-key-env or --api-key-file"),
        (("serve", "--port", "70000"), "port must be at most"),
        (("serve", "--model", "demo", "--api-key-env", "NOT_THERE_7"), "the variable is not set"),
        (("serve", "--timeout", "0"), "timeout must be above 0"),
    ):
        done = vlmbatch(*arguments)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
    file = tmp_path / "serve.yaml"
    for text, words in (
        ("serve: {prot: 1}", "did you mean 'port'?"),
        ("serve: 8000", "serve holds keys"),
        ("model: demo\nserve: {model: demo}", "under serve and beside it"),
        ("serve: {inputs: a}", "a server has no inputs"),
    ):
        file.write_text(text)
        done = vlmbatch("run", file)
        assert done.returncode == 2
        assert words in done.stderr


def test_a_model_that_is_not_there_is_one_line(vlmbatch: Command, tmp_path: Path) -> None:
    done = vlmbatch("serve", "--port", "0", "--model", tmp_path / "nothing")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
