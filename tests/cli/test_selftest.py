"""``doctor --selftest`` on real engines, from the command line."""

from __future__ import annotations

import getpass
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.engine.torch.fake_device import FakeDevice
from tests.serve.conftest import live
from vlmbatch.engine import open_engine
from vlmbatch.job import EngineOptions

CHECKS = {
    *("answers", "known answers", "reference", "the same again", "one and many"),
    *("many questions", "bad pictures", "seeds", "stop strings", "log-probabilities"),
    *("constraints", "speed", "speed of reference", "memory"),
}


@pytest.mark.parametrize(
    "options",
    [
        ["--dtype", "float32"],
        ["--dtype", "bfloat16"],
        ["--engine", "transformers"],
        ["--engine", "llama-server"],
    ],
    ids=" ".join,
)
def test_an_engine_on_this_machine_is_well(
    vlmbatch: Command, tmp_path: Path, options: list[str]
) -> None:
    if "llama-server" in options:
        pytest.importorskip("xllamacpp")
        pytest.importorskip("gguf")
    words = ["doctor", "--selftest", *options, "--device", "cpu", "--json"]
    done = vlmbatch(*words, "--cache-dir", tmp_path / "cache")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert set(checks) >= CHECKS
    assert {check["status"] for check in report["checks"]} <= {"pass", "skip"}
    assert report["is_well"]
    assert report["agreement"]["reference"]["share_equal"] == 1
    assert report["engine"]["model"] == "demo"
    assert report["packages"]["torch"]
    assert str(tmp_path) not in done.stdout
    assert f"/{getpass.getuser()}/" not in done.stdout
    assert "selftest: opening" in done.stderr


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_simulated_gpu_is_well(vlmbatch: Command, kind: str) -> None:
    with FakeDevice(limit_bytes=1 << 30, kind=kind):
        done = vlmbatch("doctor", "--selftest", "--device", kind, "--json")
    assert done.returncode == 0, done.stdout
    checks = {check["name"]: check["status"] for check in json.loads(done.stdout)["checks"]}
    assert set(checks) >= CHECKS
    assert set(checks.values()) == {"pass"}
    assert ("kernels" in checks) is (kind == "cuda")


def test_a_server_is_tested_by_its_address_alone(vlmbatch: Command) -> None:
    with live(open_engine(EngineOptions(model="demo", device="cpu"))) as server:
        done = vlmbatch("doctor", "--selftest", "--endpoint", server.url)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].startswith("openai, demo, on http://127.0.0.1:")
    assert "15 of 15 answers are equal" in next(line for line in lines if " reference" in line)
    assert lines[-1] == "all is well"


def test_a_server_with_another_model_is_found(vlmbatch: Command, tiny: Path) -> None:
    """The demo model is what it says that it has; random weights are what answers."""
    engine = open_engine(EngineOptions(model=str(tiny), device="cpu"))
    engine.model = "demo"
    with live(engine) as server:
        done = vlmbatch("doctor", "--selftest", "--endpoint", server.url)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("broken: known answers, reference")


def test_what_is_not_there_is_one_line(vlmbatch: Command) -> None:
    for words, code, said in (
        (["--device", "cuda:7"], 1, "vlmbatch: no device cuda:7 here; there is "),
        (["--endpoint", "http://127.0.0.1:9/v1"], 1, "http://127.0.0.1:9/v1"),
        (["--engine", "tflite"], 2, "engine must be one of"),
        (["--engine", "openai"], 2, "--endpoint URL"),
    ):
        done = vlmbatch("doctor", "--selftest", *words)
        assert (done.returncode, done.stdout) == (code, "")
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    alone = vlmbatch("doctor", "--engine", "torch")
    assert alone.returncode == 2
    assert "--engine goes with --selftest" in alone.stderr
