"""A list of engines behind a server and a file of requests: the first that opens answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.serve.conftest import LiveServer, request
from tests.serve.test_batch import line, texts, write
from vlmbatch.errors import OtherSettingsError, OutOfMemoryError
from vlmbatch.serve.batch.run import Batch
from vlmbatch.serve.server import Server
from vlmbatch.serve.settings import BatchJob, ServeJob

pytest.importorskip("onnxruntime")


def test_a_server_answers_with_the_next_engine(
    broken_graphs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = str(broken_graphs)
    server = LiveServer(
        Server(ServeJob(port=0, drain=5.0, model=model, engine="onnx,torch", device="cpu"))
    )
    try:
        server.wait_until_ready()
        found = server.client.get("/v1/models").json()["data"][0]["id"]
        assert server.chat(model=found, max_tokens=2).status_code == 200
        assert server.client.get("/").json()["engine"] == "torch"
    finally:
        server.end()
    assert "vision_encoder.onnx cannot be opened by ONNX Runtime" in caplog.text
    assert "engine torch answers" in caplog.text


def test_answers_of_a_file_are_those_of_the_engine_that_began_them(
    broken_graphs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = str(broken_graphs)
    body = request(model=model, max_tokens=2)
    path = write(tmp_path, [line("a", body=body)])
    values = {"requests": str(path), "output": str(tmp_path / "out.jsonl"), "model": model}

    def batch(engine: str, **more: str) -> Batch:
        return Batch(BatchJob(**{**values, "engine": engine, "device": "cpu", **more}))

    assert batch("onnx,torch").start() == 0
    assert "engine torch answers" in caplog.text
    journal = Path(f"{values['output']}.journal").read_text().splitlines()[0]
    assert json.loads(journal.partition(" ")[2])["identity"]["engine"] == "torch"
    before = texts(tmp_path)
    write(tmp_path, [line(each, body=body) for each in "ab"])
    caplog.clear()
    assert batch("onnx,torch").start() == 0
    assert "engine onnx: another one began OUTPUT; trying torch" in caplog.text
    assert "cannot be opened" not in caplog.text
    assert texts(tmp_path)["a"] == before["a"]
    assert texts(tmp_path).keys() == {"a", "b"}
    with pytest.raises(OtherSettingsError, match="engine: torch there, onnx here"):
        batch("onnx")
    write(tmp_path, [line(each, body=body) for each in "abc"])
    with pytest.raises(OutOfMemoryError, match="it began OUTPUT, which no other continues"):
        batch("torch,transformers", max_memory="10kB").start()
    assert texts(tmp_path).keys() == {"a", "b"}
