"""Real clients: openai-python, langchain-openai, litellm, curl."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.media import write_video
from tests.serve.conftest import Gate, LiveServer, image_part, live, png
from vlmbatch.engine.scripted import ScriptedEngine

SAMPLES = Path(__file__).parents[2] / "sample_data" / "images"
PICTURE = image_part((SAMPLES / "circle.png").read_bytes())
MESSAGES: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "Can you describe this image?"}, PICTURE],
    }
]
ANSWER = "A red circle."


@pytest.fixture(scope="module")
def client(demo: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="any") as client:
        yield client


def test_openai_chat(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    reply = client.chat.completions.create(model=model.id, messages=MESSAGES, logprobs=True)
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.content
    assert reply._request_id


def test_openai_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="demo", messages=MESSAGES, stream_options={"include_usage": True}
    ) as stream:
        kinds = [event.type for event in stream]
        reply = stream.get_final_completion()
    assert "content.delta" in kinds
    assert reply.choices[0].message.content == ANSWER
    assert reply.usage is not None
    assert reply.usage.completion_tokens > 0


def test_openai_video(client: openai.OpenAI, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", 30)
    url = image_part(clip.read_bytes())["image_url"]["url"]
    content: list[Any] = [
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "text", "text": "What happens?"},
    ]
    reply = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": content}],
        max_completion_tokens=8,
        extra_body={"media_io_kwargs": {"video": {"num_frames": 2}}},
    )
    assert reply.choices[0].message.content


def test_openai_errors(client: openai.OpenAI, demo: LiveServer) -> None:
    broken: list[Any] = [{"role": "user", "content": [image_part(b"nothing")]}]
    with pytest.raises(openai.BadRequestError, match="not a picture") as bad:
        client.chat.completions.create(model="demo", messages=broken)
    assert bad.value.param == "messages[0].content[0]"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-7", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="response_format is not supported yet"):
        client.chat.completions.create(
            model="demo", messages=MESSAGES, response_format={"type": "json_object"}
        )
    with (
        live(ScriptedEngine(), api_key_env="PATH") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_openai_tries_again_when_the_queue_was_full(gate: Gate) -> None:
    with (
        live(ScriptedEngine(gate, batch_size=1), max_queued=1) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client,
    ):
        threads = [threading.Thread(target=server.chat, args=(str(n),)) for n in range(2)]
        threads[0].start()
        assert gate.begun.wait(60)
        threads[1].start()
        server.wait_until(running=1, waiting=1)
        messages: list[Any] = [{"role": "user", "content": "third"}]
        with pytest.raises(openai.RateLimitError):
            client.with_options(max_retries=0).chat.completions.create(
                model="script", messages=messages
            )
        found: list[Any] = []
        last = threading.Thread(
            target=lambda: found.append(
                client.with_options(max_retries=5).chat.completions.create(
                    model="script", messages=messages
                )
            )
        )
        last.start()
        name = 'vlmbatch_requests_total{path="/v1/chat/completions",status="429"}'
        server.wait_for("/metrics", lambda answer: f"{name} 2.0" in answer.text)
        gate.go.set()
        for thread in (*threads, last):
            thread.join(60)
        assert found[0].choices[0].message.content == "third"


def test_openai_too_large(gate: Gate) -> None:
    with (
        live(ScriptedEngine(), max_body_size="1KiB") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
    ):
        messages: list[Any] = [{"role": "user", "content": "x" * 20_000_000}]
        with pytest.raises(openai.APIStatusError) as large:
            client.chat.completions.create(model="script", messages=messages)
        assert large.value.status_code == 413


def test_curl(demo: LiveServer, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    body = tmp_path / "request.json"
    body.write_text(json.dumps({"model": "demo", "messages": MESSAGES}))
    command = ["curl", "-sS", "--fail", f"{demo.url}/v1/chat/completions", "-d", f"@{body}"]
    kind = ["-H", "content-type: application/json"]
    done = subprocess.run([*command, *kind], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == ANSWER


def test_langchain(demo: LiveServer) -> None:
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(model="demo", base_url=f"{demo.url}/v1", api_key="any")
    reply = chat.invoke(MESSAGES)
    assert reply.content == ANSWER
    assert reply.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in chat.stream(MESSAGES)) == ANSWER


@pytest.mark.filterwarnings("ignore")
def test_litellm(demo: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    settings = {
        "model": "openai/demo",
        "api_base": f"{demo.url}/v1",
        "api_key": "any",
        "messages": MESSAGES,
    }
    reply = litellm.completion(**settings)
    assert reply.choices[0].message.content == ANSWER
    pieces = litellm.completion(**settings, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == ANSWER
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**settings, temperature=7)


class _Pictures(http.server.BaseHTTPRequestHandler):
    """Serves a picture, a redirect to a file, and nothing else."""

    def do_GET(self) -> None:
        data = png() if self.path == "/picture.png" else b""
        self.send_response({"/picture.png": 200, "/away": 302}.get(self.path, 404))
        if self.path == "/away":
            self.send_header("location", "file:///etc/passwd")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


def test_pictures_behind_urls(demo: LiveServer, scripted: LiveServer) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pictures) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        try:
            base = f"http://127.0.0.1:{site.server_port}"

            def ask(server: LiveServer, path: str, model: str) -> Any:
                part = {"type": "image_url", "image_url": {"url": base + path}}
                return server.chat([part], model=model, max_tokens=2)

            assert ask(demo, "/picture.png", "demo").status_code == 200
            for path, words in (("/nothing", "HTTP 404"), ("/away", "")):
                found = ask(demo, path, "demo")
                assert found.status_code == 400
                assert words in found.json()["error"]["message"]
            assert ask(scripted, "/picture.png", "script").status_code == 400
        finally:
            site.shutdown()
            thread.join()
