"""The server: replies, streams, limits, keys, clients that go away, and its end."""

from __future__ import annotations

import json
import logging
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.serve.conftest import WAIT, Gate, LiveServer, image_part, live, png, request
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import JobError
from vlmbatch.serve.server import AddressError, Server
from vlmbatch.serve.settings import ServeJob

TEXT = {"type": "text", "text": "What?"}


def events(response: httpx2.Response) -> list[Any]:
    """The events of a streamed reply, without the last, which says that it is whole."""
    lines = [line for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def assert_error(response: httpx2.Response, status: int, words: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert words in error["message"]
    return error


def raw_request(server: LiveServer, values: dict[str, Any]) -> socket.socket:
    """Send a chat request on a connection of its own, which the caller closes."""
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), WAIT)
    body = json.dumps(values).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def test_a_reply_is_whole(scripted: LiveServer) -> None:
    found = scripted.chat([image_part(png()), {"type": "text", "text": "one two"}])
    assert found.status_code == 200
    reply = found.json()
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "script"
    (choice,) = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": "one two", "refusal": None}
    assert choice["finish_reason"] == "stop"
    usage = reply["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (1, 2, 3)
    assert reply["processing_time"] > 0
    assert reply["inference_time"] >= 0
    assert reply["timings"].keys() >= {"wait_seconds", "prefill_seconds", "decode_seconds"}
    assert found.headers["x-request-id"].startswith("req_")


def test_a_stream_has_the_pieces_and_a_usage_only_if_asked(scripted: LiveServer) -> None:
    found = scripted.chat("one two three", stream=True)
    assert found.headers["content-type"].startswith("text/event-stream")
    chunks = events(found)
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [each["delta"].get("content") for each in choices[1:]] == ["one", " two", " three", None]
    assert [each["finish_reason"] for each in choices] == [None] * 4 + ["stop"]
    asked = scripted.chat("one", stream=True, stream_options={"include_usage": True})
    *others, last = events(asked)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 1
    assert all(chunk["usage"] is None for chunk in others)


def test_several_answers_are_numbered(scripted: LiveServer) -> None:
    reply = scripted.chat("one two", n=3).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert reply["usage"]["completion_tokens"] == 6
    chunks = events(scripted.chat("one two", n=2, stream=True))
    for number in range(2):
        texts = [
            chunk["choices"][0]["delta"].get("content", "")
            for chunk in chunks
            if chunk["choices"][0]["index"] == number
        ]
        assert "".join(texts) == "one two"


def test_max_tokens_and_stop_end_an_answer(scripted: LiveServer) -> None:
    choice = scripted.chat("one two three", max_tokens=2).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one two", "length")
    choice = scripted.chat("one two three", stop=["three"]).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one two", "stop")


def test_a_bad_request_is_a_400_streamed_or_not(scripted: LiveServer) -> None:
    broken = image_part(b"nothing")
    for rest in ({}, {"stream": True}):
        error = assert_error(scripted.chat([broken, TEXT], **rest), 400, "not a picture")
        assert error["param"] == "messages[0].content[0]"
        assert_error(scripted.chat(temperature=9, **rest), 400, "temperature must be at most 2")
        assert_error(scripted.chat("a\ud800b", **rest), 400, "not valid text")
    for body in (b"{", b"\xff", b"", b'{"model": "\\ud800"}', b"[" * 10**6):
        found = scripted.client.post("/v1/chat/completions", content=body)
        assert_error(found, 400, "")
    assert_error(scripted.chat(model="\ud800"), 404, "script")


def test_unknown_paths_and_methods_have_openai_s_form(scripted: LiveServer) -> None:
    assert_error(scripted.client.get("/v1/nothing"), 404, "no such path")
    assert_error(scripted.client.get("/v1/chat/completions"), 405, "no such method")
    assert_error(scripted.client.get("/v1/models/other"), 404, "not here")


def test_models_status_health_and_description(scripted: LiveServer) -> None:
    assert [each["id"] for each in scripted.client.get("/v1/models").json()["data"]] == ["script"]
    assert scripted.client.get("/v1/models/script").json()["object"] == "model"
    status = scripted.client.get("/").json()
    assert (status["status"], status["engine"], status["waiting"]) == ("ok", "scripted", 0)
    assert scripted.client.get("/health").json() == {"status": "ok"}
    described = scripted.client.get("/openapi.json").json()
    assert "/v1/chat/completions" in described["paths"]


def test_metrics_count_requests_tokens_and_times(scripted: LiveServer) -> None:
    def value(name: str) -> float:
        text = scripted.client.get("/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    names = (
        'vlmbatch_requests_total{path="/v1/chat/completions",status="200"}',
        'vlmbatch_requests_total{path="/v1/chat/completions",status="400"}',
        'vlmbatch_requests_total{path="other",status="404"}',
        "vlmbatch_time_to_first_token_seconds_count",
        "vlmbatch_time_between_tokens_seconds_count",
        "vlmbatch_request_seconds_count",
    )
    before = [value(name) for name in names]
    scripted.chat("one two")
    scripted.chat(n=0)
    scripted.client.get("/made/up")
    assert [value(name) - then for name, then in zip(names, before, strict=True)] == [1] * 6
    text = scripted.client.get("/metrics").text
    for name in (
        "queue_length",
        "sequences_alive",
        "tokens_total",
        "tiles_total",
        "memory_bytes",
        'prompt_tokens_total{source="cache"}',
    ):
        assert f"vlmbatch_{name}" in text


def test_a_full_queue_is_a_429_that_says_when_to_try_again(gate: Gate) -> None:
    with live(ScriptedEngine(gate, batch_size=1), max_queued=2) as server:
        threads = [threading.Thread(target=server.chat, args=(str(n),)) for n in range(3)]
        threads[0].start()
        assert gate.begun.wait(WAIT)
        for thread in threads[1:]:
            thread.start()
        server.wait_until(running=1, waiting=2)
        found = server.chat("one more")
        assert_error(found, 429, "are waiting; try again")
        assert int(found.headers["retry-after"]) >= 1
        assert server.client.get("/health").status_code == 200
        gate.go.set()
        for thread in threads:
            thread.join(WAIT)
        assert server.chat("now").status_code == 200


def test_too_large_a_request_is_refused_before_it_is_read(scripted: LiveServer) -> None:
    with live(ScriptedEngine(), max_body_size="1KiB", max_images=2) as server:
        assert_error(server.chat("x" * 2000), 413, "--max-body-size")
        pieces = (b"x" * 700 for _ in range(3))  # of no stated length
        assert_error(server.client.post("/v1/chat/completions", content=pieces), 413, "bytes")
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), WAIT) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
            connection.sendall(f"{head}Content-Length: 99999999\r\n\r\n".encode())
            assert b" 413 " in connection.recv(1000)  # not a byte of the body was sent
        assert server.chat("small").status_code == 200


def test_pictures_over_a_limit_are_refused() -> None:
    with live(ScriptedEngine(), max_pixels=100, max_file_size="1KiB", max_images=1) as server:
        assert_error(server.chat([image_part(png(16))]), 400, "--max-pixels")
        assert_error(server.chat([image_part(png(64))]), 400, "--max-file-size")
        assert_error(server.chat([image_part(png(8)), image_part(png(9))]), 400, "--max-images")
        assert server.chat([image_part(png(8))]).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(gate: Gate, stream: bool) -> None:
    with live(ScriptedEngine(gate, batch_size=1)) as server:
        first = raw_request(server, request("first", stream=stream))
        assert gate.begun.wait(WAIT)
        waiting = raw_request(server, request("waiting", stream=stream))
        server.wait_until(running=1, waiting=1)
        waiting.close()
        server.wait_until(running=1, waiting=0)
        first.close()
        server.wait_until(running=0, waiting=0)
        gate.go.set()
        assert server.chat("next").json()["choices"][0]["message"]["content"] == "next"
        assert "vlmbatch_clients_gone_total 2.0" in server.client.get("/metrics").text


def test_a_silent_stream_is_kept_alive(gate: Gate) -> None:
    with (
        live(ScriptedEngine(gate), keep_alive=0.02) as server,
        server.client.stream(
            "POST", "/v1/chat/completions", json=request("one", stream=True)
        ) as response,
    ):
        lines = response.iter_lines()
        assert next(line for line in lines if line.startswith(":")) == ": keep-alive"
        gate.go.set()
        rest = list(lines)
    assert any('"content":"one"' in line for line in rest)
    assert rest[-2:] == ["data: [DONE]", ""] or "data: [DONE]" in rest


def test_a_request_that_takes_too_long_is_given_up_and_the_log_says_why(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vlmbatch.report")
    with live(ScriptedEngine(gate), timeout=0.2) as server:
        found = server.chat("whole")
        assert_error(found, 504, "--timeout")
        assert found.headers["x-should-retry"] == "false"
        streamed = server.chat("streamed", stream=True).text
        assert '"code":"timeout"' in streamed
        assert "[DONE]" not in streamed
        server.wait_until(running=0, waiting=0)
        gate.go.set()
    lines = [record.getMessage() for record in caplog.records]
    whole, late = (line for line in lines if line.startswith("POST"))
    assert " 504 " in whole
    assert " 200 " in late  # the status was sent before
    assert all(
        "in time (--timeout)" in line or "0.2 s (--timeout)" in line for line in (whole, late)
    )
    assert "stopping" in lines[-2]
    assert lines[-1] == "ended"


def test_what_one_request_does_wrong_hurts_no_other() -> None:
    with live(ScriptedEngine(fail=lambda key: False, batch_size=8)) as server:
        found: dict[int, int] = {}

        def ask(number: int) -> None:
            bad = number % 4 == 0
            content = [image_part(b"" if bad else png(seed=number)), TEXT]
            found[number] = server.chat(content).status_code

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert found == {number: 400 if number % 4 == 0 else 200 for number in range(32)}


def test_a_draining_server_takes_no_more_and_finishes_what_it_has(gate: Gate) -> None:
    found: list[httpx2.Response] = []
    with live(ScriptedEngine(gate), drain=WAIT) as server:
        thread = threading.Thread(target=lambda: found.append(server.chat("last")))
        thread.start()
        assert gate.begun.wait(WAIT)
        server.server.stop()
        health = server.wait_for("/health", lambda answer: answer.status_code == 503)
        assert health.json() == {"status": "draining"}
        late = server.chat("late")
        assert_error(late, 503, "about to end")
        assert late.headers["retry-after"]
        gate.go.set()
        thread.join(WAIT)
        server.thread.join(WAIT)
        assert server.error is None
    assert found[0].json()["choices"][0]["message"]["content"] == "last"


def test_after_the_time_to_drain_what_is_left_is_told(gate: Gate) -> None:
    found: list[httpx2.Response] = []
    with live(ScriptedEngine(gate), drain=0.0) as server:
        asking = [
            threading.Thread(target=lambda rest=rest: found.append(server.chat("x", **rest)))
            for rest in ({}, {"stream": True})
        ]
        for thread in asking:
            thread.start()
        server.wait_for(
            "/", lambda answer: answer.json()["running"] + answer.json()["waiting"] == 2
        )
        server.server.stop()
        for thread in asking:
            thread.join(WAIT)
        gate.go.set()
    texts = sorted(answer.text for answer in found)
    assert len(texts) == 2
    assert all('"code":"draining"' in text for text in texts)


def test_the_death_of_the_engine_ends_the_server_with_an_error() -> None:
    engine = ScriptedEngine(die_after=0)
    with live(engine) as server:
        assert_error(server.chat(), 503, "the engine has ended: the scripted engine died")
        server.thread.join(WAIT)
        assert "the scripted engine died" in str(server.error)


def test_while_the_model_is_loaded_the_server_says_so(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlmbatch.engine import EnginePlan

    def open_slowly() -> ScriptedEngine:
        assert gate.go.wait(WAIT)
        return ScriptedEngine()

    plan = EnginePlan("scripted", "script", "", open_slowly)
    monkeypatch.setattr("vlmbatch.serve.server.plan_engine", lambda options: plan)
    server = LiveServer(Server(ServeJob(port=0)))
    try:
        health = server.wait_for("/health", lambda found: True)
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        found = server.chat()
        assert_error(found, 503, "being loaded")
        assert found.headers["retry-after"]
        assert_error(server.client.get("/v1/models"), 503, "being loaded")
        gate.go.set()
        server.wait_until_ready()
        assert server.chat().status_code == 200
    finally:
        gate.go.set()
        server.end()


def test_with_a_key_only_status_and_health_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst\n\nsecond\n")
    monkeypatch.setenv("SERVER_KEY", "third")
    with live(ScriptedEngine(), api_key_file=str(file), api_key_env="SERVER_KEY") as server:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/nothing"):
            found = server.client.get(path)
            assert_error(found, 401, "Authorization: Bearer KEY")
        assert server.client.get("/").status_code == 200
        for key, status in (("first", 200), ("second", 200), ("third", 200), ("# ours", 401)):
            headers = {"authorization": f"Bearer {key}"}
            assert server.client.get("/v1/models", headers=headers).status_code == status
        assert_error(server.chat(), 401, "no valid key")
        headers = {"authorization": "Basic first"}
        assert server.client.get("/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example:80"}, 403),
        ({"host": "localhost:1"}, 200),
        ({"host": "10.1.2.3"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "[::1"}, 403),
        ({"host": "proxy.example"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, 200),
    ],
)
def test_without_a_key_host_and_origin_are_checked(
    own_host: LiveServer, headers: dict[str, str], status: int
) -> None:
    assert own_host.client.get("/v1/models", headers=headers).status_code == status


@pytest.fixture(scope="module")
def own_host() -> Any:
    with live(ScriptedEngine(), allow_host=("proxy.example",)) as server:
        yield server


def test_another_address_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JobError, match="--api-key-env or --api-key-file"):
        ServeJob(host="0.0.0.0")
    ServeJob(host="0.0.0.0", no_auth=True)
    ServeJob(host="::1")
    monkeypatch.delenv("NO_KEY_HERE", raising=False)
    job = ServeJob(host="0.0.0.0", port=0, api_key_env="NO_KEY_HERE")
    with pytest.raises(JobError, match="NO_KEY_HERE: the variable is not set"):
        Server(job, ScriptedEngine())


def test_an_address_that_is_taken_is_named(scripted: LiveServer) -> None:
    port = int(scripted.url.rpartition(":")[2])
    with pytest.raises(AddressError, match=f"port {port}: Address already in use"):
        Server(ServeJob(port=port), ScriptedEngine())
