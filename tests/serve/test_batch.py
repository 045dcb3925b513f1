"""A file of requests to a file of answers: in order, each once, through any end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command
from tests.cli.conftest import vlmbatch as vlmbatch
from tests.serve.conftest import WAIT, Gate, image_part, png, request
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import EngineError, JobError, NothingFound, OutputError, OutputLockedError
from vlmbatch.serve.batch.output import BatchOutput
from vlmbatch.serve.batch.run import Batch
from vlmbatch.serve.settings import BatchJob


def line(custom_id: str, content: Any = None, **rest: Any) -> str:
    body = request(content or f"say {custom_id}")
    values = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps({**values, "body": body, **rest})


def write(folder: Path, lines: list[str]) -> Path:
    path = folder / "requests.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def run(path: Path, engine: ScriptedEngine, **options: Any) -> int:
    job = BatchJob(requests=str(path), output=str(path.parent / "out.jsonl"), **options)
    return Batch(job, engine).start()


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "out.jsonl").read_text("utf-8").splitlines()]


def texts(folder: Path) -> dict[str, str]:
    return {
        row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"]
        for row in rows(folder)
    }


def engine(**options: Any) -> ScriptedEngine:
    return ScriptedEngine(lambda key, question: question, **options)


def test_answers_are_in_the_order_of_the_requests(tmp_path: Path) -> None:
    ids = [f"id-{number}" for number in range(600)]
    picture = [image_part(png()), {"type": "text", "text": "say id-7"}]
    path = write(tmp_path, [line(each, picture if each == "id-7" else None) for each in ids])
    assert run(path, engine(batch_size=8)) == 0
    assert [*texts(tmp_path).items()] == [(each, f"say {each}") for each in ids]
    (row, *_) = rows(tmp_path)
    assert row.keys() == {"id", "custom_id", "response", "error"}
    assert row["response"]["status_code"] == 200
    assert row["error"] is None
    assert row["response"]["body"]["usage"]["completion_tokens"] == 2


def test_what_is_wrong_with_a_request_is_its_answer(tmp_path: Path) -> None:
    bad = {
        "nonsense": (None, 400, "not JSON"),
        "[1]": (None, 400, "no custom_id"),
        line("url", url="/v1/embeddings"): ("url", 400, "takes POST /v1/chat/completions"),
        line("get", method="GET"): ("get", 400, "takes POST"),
        line("body", body={"model": "script"}): ("body", 400, "no 'messages'"),
        line("model", body={**request(), "model": "gpt-7"}): ("model", 404, "gpt-7"),
        line("stream", body=request(stream=True)): ("stream", 400, "stream does not go"),
        line("picture", [image_part(b"none")]): ("picture", 400, "not a picture"),
        line("file", [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]): (
            "file", 400, "begins with data:"
        ),
        line("good", "second of its name"): ("good", 400, "is there already"),
    }  # fmt: skip
    path = write(tmp_path, [line("good"), "", *bad])
    assert run(path, engine()) == 3
    first, *others = rows(tmp_path)
    assert first["response"]["status_code"] == 200
    for row, (custom_id, status, words) in zip(others, bad.values(), strict=True):
        assert (row["custom_id"], row["response"]["status_code"]) == (custom_id, status)
        assert words in row["error"]["message"]
        assert row["response"]["body"]["error"]["message"] == row["error"]["message"]


def test_the_same_command_again_asks_only_what_is_new_or_changed(tmp_path: Path) -> None:
    path = write(tmp_path, [line("a"), line("b"), line("broken", [image_part(b"x")])])
    assert run(path, engine()) == 3
    before = rows(tmp_path)
    second = engine()
    assert run(path, second) == 3
    assert second.answered == []
    assert rows(tmp_path) == before
    third = engine()
    path = write(tmp_path, [line("new"), line("b", "changed"), line("a")])
    assert run(path, third) == 0
    assert sorted(question for _, question in third.answered) == ["changed", "say new"]
    found = rows(tmp_path)
    assert [row["custom_id"] for row in found] == ["new", "b", "a", "broken"]
    assert found[2] == before[0]
    fourth = engine()
    path = write(tmp_path, [line("broken", [image_part(b"x")])])
    assert run(path, fourth, retry_errors=True) == 3
    assert len(rows(tmp_path)) == 4
    assert run(path, engine(), overwrite=True) == 3
    assert len(rows(tmp_path)) == 1


def test_other_settings_and_other_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [line("a")])
    assert run(path, engine()) == 0
    with pytest.raises(OutputError, match="max_new_tokens: 512 there, 9 here"):
        run(path, engine(), max_new_tokens=9)
    with pytest.raises(OutputError, match="model: script there, other here"):
        run(path, engine(model="other"))
    (tmp_path / "out.jsonl.journal").unlink()
    (tmp_path / "out.jsonl").write_text('{"some": "other file"}\n')
    with pytest.raises(OutputError, match="no output of `vlmbatch batch` \\(line 1\\)"):
        run(path, engine())
    with pytest.raises(JobError, match="no such file"):
        run(tmp_path / "nothing.jsonl", engine())
    with pytest.raises(JobError, match=r"must end in \.jsonl"):
        BatchJob(requests=str(path), output="out.csv")
    with pytest.raises(JobError, match="OUTPUT is the file of requests"):
        Batch(BatchJob(requests=str(path), output=str(path)), engine())


def test_the_answers_of_a_lost_journal_count(tmp_path: Path) -> None:
    path = write(tmp_path, [line("a"), line("b")])
    assert run(path, engine()) == 0
    (tmp_path / "out.jsonl.journal").unlink()
    again = engine()
    assert run(path, again) == 0
    assert again.answered == []


def test_a_file_without_requests_is_an_error_unless_allowed(tmp_path: Path) -> None:
    path = write(tmp_path, ["", ""])
    with pytest.raises(NothingFound, match="--allow-empty"):
        run(path, engine())
    assert run(path, engine(), allow_empty=True) == 0
    assert not (tmp_path / "out.jsonl").exists()
    assert not (tmp_path / "out.jsonl.journal").exists()


def test_one_run_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path, [line("a")])
    held = BatchOutput(tmp_path / "out.jsonl", {}, overwrite=False)
    with pytest.raises(OutputLockedError):
        run(path, engine())
    held.close()
    assert run(path, engine()) == 0


def test_a_stop_keeps_what_is_finished(tmp_path: Path, gate: Gate) -> None:
    path = write(tmp_path, [line(str(number)) for number in range(5)])

    def answer(key: str, question: str) -> str:
        return question if question != "say 3" else gate(key, question)

    job = BatchJob(requests=str(path), output=str(tmp_path / "out.jsonl"))
    batch = Batch(job, ScriptedEngine(answer, batch_size=1))
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(batch.start()))
    thread.start()
    assert gate.begun.wait(WAIT)
    batch.stop()
    gate.go.set()
    thread.join(WAIT)
    assert codes == [130]
    assert texts(tmp_path).items() >= {(str(n), f"say {n}") for n in range(3)}
    again = engine()
    assert run(path, again) == 0
    assert len(again.answered) <= 2
    assert [row["custom_id"] for row in rows(tmp_path)] == ["0", "1", "2", "3", "4"]


def test_the_death_of_the_engine_keeps_what_is_finished(tmp_path: Path) -> None:
    path = write(tmp_path, [line(str(number)) for number in range(5)])
    with pytest.raises(EngineError):
        run(path, engine(die_after=3, batch_size=1))
    again = engine()
    assert run(path, again) == 0
    assert len(again.answered) == 5 - 3
    assert [*texts(tmp_path)] == ["0", "1", "2", "3", "4"]


def test_a_kill_loses_nothing_that_was_committed_and_doubles_nothing(tmp_path: Path) -> None:
    """A kill between publishing and the short journal, and one before publishing."""
    identity = {"engine": "scripted", "model": "script", "revision": ""}
    output = tmp_path / "out.jsonl"
    first = BatchOutput(output, identity, overwrite=False)
    row = {"id": "1", "custom_id": "a", "response": {"status_code": 200}, "error": None}
    first.write("a", "line a", 0, row)
    first.commit()
    first.write("b", "line b", 1, {**row, "custom_id": "b"})
    journal = (tmp_path / "out.jsonl.journal").read_bytes()  # as a kill leaves it
    first.close()
    (tmp_path / "out.jsonl.journal").write_bytes(journal + b"torn lin")
    second = BatchOutput(output, identity, overwrite=False)
    assert second.is_done("a", "line a", retry_errors=False)
    assert not second.is_done("a", "another line", retry_errors=False)
    assert second.is_done("b", "line b", retry_errors=False)  # it stands in OUTPUT
    second.keep("b", "line b", 0)
    second.keep("a", "line a", 1)
    second.close()
    assert [entry["custom_id"] for entry in rows(tmp_path)] == ["b", "a"]
    output.unlink()
    (tmp_path / "out.jsonl.journal").write_bytes(journal)
    third = BatchOutput(output, identity, overwrite=False)
    assert third.is_done("a", "line a", retry_errors=False)
    assert not third.is_done("b", "line b", retry_errors=False)
    third.close()
    assert [entry["custom_id"] for entry in rows(tmp_path)] == ["a"]


def test_the_command(tmp_path: Path, vlmbatch: Command) -> None:
    body = {**request([image_part(png()), {"type": "text", "text": "What?"}], max_tokens=3)}
    path = write(tmp_path, [line(each, body={**body, "model": "demo"}) for each in "ab"])
    arguments = ("batch", path, "-o", "out.jsonl", "--model", "demo")
    done = vlmbatch(*arguments)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        0,
        "2 answered, 0 errors: out.jsonl",
    )
    done = vlmbatch(*arguments)
    assert done.stderr.splitlines()[-1] == "0 answered, 0 errors, 2 kept: out.jsonl"
    assert vlmbatch(*arguments, "--detail", "low").returncode == 1
    assert vlmbatch("batch", path, "--model", "demo").returncode == 2


def test_the_reasons_of_the_first_errors_of_a_kind_are_said(
    tmp_path: Path, vlmbatch: Command
) -> None:
    wrong = [line(str(number), body=request(model="gpt-7")) for number in range(4)]
    write(tmp_path, ["nonsense", *wrong])
    arguments = ("batch", "requests.jsonl", "-o", "out.jsonl", "--model", "demo")
    done = vlmbatch(*arguments)
    assert done.returncode == 3
    first, *others = done.stderr.splitlines()[-7:]
    assert first == "0 answered, 5 errors: out.jsonl"
    kind, nonsense, model, *named = (text.strip() for text in others)
    assert (kind, model) == ("1 x invalid_request", "4 x model_not_found")
    assert nonsense.startswith("line 1: the body is not JSON")
    assert named == [f"{n}: the model 'gpt-7' is not here; there is demo" for n in range(3)]

    write(tmp_path, wrong)
    again = vlmbatch(*arguments).stderr.splitlines()[-1]
    assert again == "0 answered, 0 errors, 4 kept (4 errors; --retry-errors asks again): out.jsonl"

    lines = vlmbatch(*arguments, "--retry-errors", "--log-format", "json").stderr.splitlines()
    *errors, last = [json.loads(text) for text in lines][-5:]
    assert {entry["event"] for entry in errors} == {"request_error"}
    assert (errors[0]["id"], errors[0]["status"]) == ("0", 404)
    assert (last["event"], last["exit_code"], last["errors"]) == ("batch_finished", 3, 4)


def test_a_signal_ends_the_command_with_130(tmp_path: Path) -> None:
    lines = [
        line(str(n), body={**request(f"Count to {n}", max_tokens=2000), "model": "demo"})
        for n in range(300)
    ]
    path = write(tmp_path, lines)
    command = [sys.executable, "-m", "vlmbatch", "batch", str(path), "--model", "demo"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [*command, "-o", str(tmp_path / "out.jsonl")], stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"loading demo\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 130
    assert not (tmp_path / "out.jsonl.lock").exists()
