"""Commands that describe models and the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Command
from tests.engine.torch.fake_device import FakeDevice
from vlmbatch.engine.torch.cpu import int8 as digits


@pytest.mark.parametrize(
    ("exact", "products"),
    [
        (True, "exact, used where they measure faster"),
        (False, "not on this cpu: saves memory, no time"),
    ],
)
def test_models_info_says_what_eight_bits_change(
    vlmbatch: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch, exact: bool, products: str
) -> None:
    monkeypatch.setattr(digits, "can_prepack_int8", lambda: exact)
    info = json.loads(vlmbatch("models", "info", tiny, "--json").stdout)
    assert info["int8_products"] == products
    assert info["weights_int8"].endswith("iB with --quantize int8")
    info = json.loads(vlmbatch("models", "info", "demo", "--json").stdout)
    assert int(info["weights_int8"].split()[0]) < int(info["weights"].split()[0])


def test_models_and_doctor_say_what_is_there(vlmbatch: Command, tiny: Path) -> None:
    assert "HuggingFaceTB/SmolVLM2-500M-Video-Instruct" in vlmbatch("models", "list").stdout
    info = json.loads(vlmbatch("models", "info", tiny, "--json").stdout)
    assert info["kv_bytes_per_token"] == 384
    fetched = vlmbatch("models", "fetch", "no/such-model")
    assert fetched.returncode == 1
    assert "no/such-model cannot be fetched" in fetched.stderr
    assert "vlmbatch models fetch" not in fetched.stderr
    doctor = vlmbatch("doctor")
    assert doctor.returncode == 0, doctor.stderr
    for word in ("engine torch", "engine transformers", "device cpu", "h264", "model demo"):
        assert word in doctor.stdout
    lines = doctor.stdout.splitlines()
    names = [line["name"] for line in json.loads(vlmbatch("doctor", "--json").stdout)]
    assert all(any(line[2:].startswith(f"{name} ") for line in lines) for name in names)
    assert "vlmbatch doctor --selftest" in lines[-1]


def test_doctor_lists_every_extra(vlmbatch: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmbatch.read import extras

    monkeypatch.setattr(extras, "is_there", lambda module: False)
    found = {line["advice"] for line in json.loads(vlmbatch("doctor", "--json").stdout)}
    for extra in ("pdf", "heif", "remote", "constraints", "serve", "metrics", "eval", "finetune"):
        assert f"if you need them: pip install 'vlmbatch[{extra}]'" in found


def test_doctor_says_whether_a_gpu_records_steps_and_fuses_layers(
    vlmbatch: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def findings() -> dict[str, tuple[str, str]]:
        with FakeDevice():
            shown = vlmbatch("doctor", "--json").stdout
        return {line["name"]: (line["found"], line["advice"]) for line in json.loads(shown)}

    assert "cuda graphs" not in [
        line["name"] for line in json.loads(vlmbatch("doctor", "--json").stdout)
    ]
    assert findings()["cuda graphs"] == ("decode steps are recorded", "")
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    found = findings()
    assert "torch 2.11.0+cu130 may not survive" in found["cuda graphs"][0]
    assert found["cuda graphs"][1] == "install torch 2.13 or newer"
    assert found["fused layers"][0] == "torch 2.11.0+cu130 is older than 2.13"
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert findings()["fused layers"][0] == "the package triton is not installed"


def test_doctor_names_a_second_build_of_opencv(
    vlmbatch: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {
        finding["name"]: finding for finding in json.loads(vlmbatch("doctor", "--json").stdout)
    }
    assert before["OpenCV"]["advice"] == ""
    for name in ("opencv-python", "opencv-contrib-python"):
        folder = tmp_path / f"{name.replace('-', '_')}-4.12.0.88.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 4.12.0.88\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    after = {
        finding["name"]: finding for finding in json.loads(vlmbatch("doctor", "--json").stdout)
    }
    assert "opencv-python 4.12.0.88, opencv-contrib-python 4.12.0.88" in after["OpenCV"]["found"]
    assert "they overwrite each other's files: pip uninstall -y" in after["OpenCV"]["advice"]
    assert after["OpenCV"]["advice"].endswith("then pip install opencv-python-headless")
