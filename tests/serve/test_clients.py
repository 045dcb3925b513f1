"""Real clients: openai-python, langchain-openai, litellm, curl."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.media import write_video
from tests.serve.conftest import Gate, LiveServer, image_part, live
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

pytestmark = pytest.mark.filterwarnings("ignore:::litellm", "ignore:::pydantic")


class RefusedError(Exception):
    """An answer that is an error, whatever the client makes of it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """What a client is to ask."""

    url: str
    messages: list[Any]
    model: str = "demo"
    stream: bool = False
    retries: int = 0
    key: str = "any"
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def by_openai(call: Call) -> str:
    with openai.OpenAI(
        base_url=f"{call.url}/v1", api_key=call.key, max_retries=call.retries
    ) as client:
        how: dict[str, Any] = {"model": call.model, "messages": call.messages}
        how["extra_body"] = call.extra
        try:
            if not call.stream:
                reply = client.chat.completions.create(**how)
                return str(reply.choices[0].message.content)
            pieces = client.chat.completions.create(**how, stream=True)
            return "".join(piece.choices[0].delta.content or "" for piece in pieces)
        except openai.APIStatusError as error:
            raise RefusedError(error.status_code, error.message) from error


def by_langchain(call: Call) -> str:
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(
        model=call.model,
        base_url=f"{call.url}/v1",
        api_key=call.key,
        max_retries=call.retries,
        extra_body=dict(call.extra),
    )
    try:
        if call.stream:
            return "".join(chunk.content for chunk in chat.stream(call.messages))
        reply = chat.invoke(call.messages)
    except openai.APIStatusError as error:
        raise RefusedError(error.status_code, error.message) from error
    assert reply.usage_metadata["output_tokens"] > 0
    return str(reply.content)


def by_litellm(call: Call) -> str:
    litellm = pytest.importorskip("litellm")
    try:
        reply = litellm.completion(
            model=f"openai/{call.model}",
            api_base=f"{call.url}/v1",
            api_key=call.key,
            messages=call.messages,
            stream=call.stream,
            max_retries=call.retries,
            extra_body=dict(call.extra),
        )
        if call.stream:
            return "".join(piece.choices[0].delta.content or "" for piece in reply)
    except openai.APIError as error:  # what those of litellm are made of
        raise RefusedError(error.status_code, str(error)) from error  # type: ignore[attr-defined]
    return str(reply.choices[0].message.content)


def by_curl(call: Call) -> str:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    body = {"model": call.model, "messages": call.messages, "stream": call.stream, **call.extra}
    done = subprocess.run(
        [
            *("curl", "-sS", "--no-buffer", "--retry", str(call.retries), "-w", "\n%{http_code}"),
            *("-H", "content-type: application/json", "-H", f"authorization: Bearer {call.key}"),
            *("--data-binary", "@-", f"{call.url}/v1/chat/completions"),
        ],
        input=json.dumps(body),
        capture_output=True,
        text=True,
        check=True,
    )
    text, _, status = done.stdout.rpartition("\n")
    if status != "200":
        raise RefusedError(int(status), json.loads(text)["error"]["message"])
    if not call.stream:
        # Behind the answers of tries that were refused.
        reply = json.loads(text[text.index('{"id"') :])
        return str(reply["choices"][0]["message"]["content"])
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


CLIENTS: dict[str, Callable[[Call], str]] = {
    "openai": by_openai,
    "langchain": by_langchain,
    "litellm": by_litellm,
    "curl": by_curl,
}


@pytest.fixture(params=CLIENTS)
def ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Call], str]:
    """Each of the clients."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    return CLIENTS[request.param]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_picture(ask: Callable[[Call], str], demo: LiveServer, stream: bool) -> None:
    assert ask(Call(url=demo.url, messages=MESSAGES, stream=stream)) == ANSWER


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_chat_of_several_turns(
    ask: Callable[[Call], str], demo: LiveServer, stream: bool
) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        *MESSAGES,
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "Can you describe this image?"},
    ]
    found = ask(Call(url=demo.url, messages=messages, stream=stream, extra={"max_tokens": 8}))
    wanted = demo.client.post(
        "/v1/chat/completions", json={"model": "demo", "messages": messages, "max_tokens": 8}
    ).json()
    assert found == wanted["choices"][0]["message"]["content"]


def test_a_video(ask: Callable[[Call], str], demo: LiveServer, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", 30)
    url = image_part(clip.read_bytes())["image_url"]["url"]
    content = [
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "text", "text": "What happens?"},
    ]
    extra = {"max_tokens": 8, "media_io_kwargs": {"video": {"num_frames": 2}}}
    messages = [{"role": "user", "content": content}]
    wanted = demo.client.post(
        "/v1/chat/completions", json={"model": "demo", "messages": messages, **extra}
    ).json()["choices"][0]["message"]["content"]
    assert wanted
    assert ask(Call(url=demo.url, messages=messages, extra=extra)) == wanted


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_errors(ask: Callable[[Call], str], demo: LiveServer, stream: bool) -> None:
    broken = [{"role": "user", "content": [image_part(b"nothing")]}]
    for change, status, words in (
        ({"messages": broken}, 400, "not a picture"),
        ({"extra": {"temperature": 7}}, 400, "temperature"),
        ({"model": "gpt-7"}, 404, "gpt-7"),
    ):
        call = Call(url=demo.url, messages=MESSAGES, stream=stream)
        with pytest.raises(RefusedError, match=words) as refused:
            ask(dataclasses.replace(call, **change))  # type: ignore[arg-type]
        assert refused.value.status == status


def test_a_wrong_key(ask: Callable[[Call], str]) -> None:
    with live(ScriptedEngine(), api_key_env="PATH") as server:
        call = Call(url=server.url, messages=[{"role": "user", "content": "?"}], model="script")
        with pytest.raises(RefusedError, match="no valid key") as refused:
            ask(call)
        assert refused.value.status == 401


def test_a_full_queue_is_tried_again(ask: Callable[[Call], str], gate: Gate) -> None:
    with live(ScriptedEngine(gate, batch_size=1), max_queued=1) as server:
        threads = [threading.Thread(target=server.chat, args=(str(n),)) for n in range(2)]
        threads[0].start()
        assert gate.begun.wait(60)
        threads[1].start()
        server.wait_until(running=1, waiting=1)
        call = Call(url=server.url, messages=[{"role": "user", "content": "third"}], model="script")
        with pytest.raises(RefusedError) as refused:
            ask(call)
        assert refused.value.status == 429
        found: list[str] = []
        last = threading.Thread(
            target=lambda: found.append(ask(dataclasses.replace(call, retries=9)))
        )
        last.start()
        refusals = re.compile(r'requests_total{path="/v1/chat/completions",status="429"} ([0-9.]+)')

        def is_refused_again(answer: httpx2.Response) -> bool:
            found = refusals.search(answer.text)
            return found is not None and float(found[1]) > 1

        server.wait_for("/metrics", is_refused_again)
        gate.go.set()
        for thread in (*threads, last):
            thread.join(60)
        assert found == ["third"]


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


def test_openai_too_large(gate: Gate) -> None:
    with (
        live(ScriptedEngine(), max_body_size="1KiB") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
    ):
        messages: list[Any] = [{"role": "user", "content": "x" * 20_000_000}]
        with pytest.raises(openai.APIStatusError) as large:
            client.chat.completions.create(model="script", messages=messages)
        assert large.value.status_code == 413
