"""The three graphs: what they are called, what they compute, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import write_tiny_checkpoint
from tests.engine.idefics3 import MULTIPLIERS
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.convert import Converted, ConvertOptions, convert
from vlmbatch.engine.torch.device import Memory
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.engine.torch.weights import Model, load_model
from vlmbatch.errors import JobError, MissingDependencyError, OutputError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from vlmbatch.convert.onnx import conversion, export, types, verification  # noqa: E402
from vlmbatch.convert.onnx.modules import DecoderGraph  # noqa: E402

GRAPHS = ("vision_encoder", "embed_tokens", "decoder_model_merged")


def to_onnx(model: Path | str, folder: Path, kind: str | None = None) -> Converted:
    return convert(find_checkpoint(str(model)), "onnx", ConvertOptions(folder, kind))


def load(folder: Path) -> Model:
    checkpoint = find_checkpoint(str(folder))
    shape = ModelShape.from_checkpoint(checkpoint)
    return load_model(checkpoint, shape, torch.device("cpu"), torch.float32)


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint's graphs in float32."""
    output = tmp_path_factory.mktemp("graphs") / "tiny"
    done = to_onnx(tiny, output)
    assert [path.name for path in done.files] == [f"{name}.onnx" for name in GRAPHS]
    return output


def test_names_and_shapes_are_those_of_the_hub(folder: Path) -> None:
    def tell(each: Any) -> tuple[str, list[Any]]:
        return each.type, each.shape

    vision, embed, decoder = (session(folder / "onnx" / f"{name}.onnx") for name in GRAPHS)
    assert {each.name: tell(each) for each in vision.get_inputs()} == {
        "pixel_values": ("tensor(float)", ["batch", "tiles", 3, 32, 32]),
        "pixel_attention_mask": ("tensor(bool)", ["batch", "tiles", 32, 32]),
    }
    assert [each.name for each in vision.get_outputs()] == ["image_features"]
    assert tell(embed.get_inputs()[0]) == ("tensor(int64)", ["batch", "sequence"])
    names = {each.name for each in decoder.get_inputs()}
    cache = {f"past_key_values.{i}.{kind}" for i in range(3) for kind in ("key", "value")}
    others = {"inputs_embeds", "attention_mask", "position_ids", "num_logits_to_keep"}
    assert names == cache | others
    config = json.loads((folder / "config.json").read_text())
    found = {each.name: tell(each) for each in decoder.get_outputs()}
    assert found["present.2.value"] == ("tensor(float)", ["batch", 2, "past + sequence", 8])
    assert found["logits"][1][::2] == ["batch", config["text_config"]["vocab_size"]]


def test_a_tile_of_padding_has_no_features(folder: Path) -> None:
    vision = session(folder / "onnx" / "vision_encoder.onnx")
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 3, 32, 32)).astype(np.float32)
    mask = np.ones((2, 3, 32, 32), bool)
    (whole,) = vision.run(None, {"pixel_values": pixels, "pixel_attention_mask": mask})
    mask[0, 2] = mask[1, 1] = False
    (fewer,) = vision.run(None, {"pixel_values": pixels, "pixel_attention_mask": mask})
    assert whole.shape == (6 * 4, 48)
    kept = whole.reshape(6, 4, 48)[[0, 1, 3, 5]].reshape(16, 48)
    np.testing.assert_allclose(fewer, kept, atol=1e-5)


def test_only_the_logits_that_are_asked_for_are_computed(folder: Path) -> None:
    decoder = session(folder / "onnx" / "decoder_model_merged.onnx")
    feeds = {
        "inputs_embeds": np.random.default_rng(0).normal(size=(2, 5, 48)).astype(np.float32),
        "attention_mask": np.ones((2, 5), np.int64),
        "position_ids": np.arange(5)[None].repeat(2, 0),
    }
    for i in range(3):
        for kind in ("key", "value"):
            feeds[f"past_key_values.{i}.{kind}"] = np.zeros((2, 2, 0, 8), np.float32)
    found = [
        decoder.run(["logits"], feeds | {"num_logits_to_keep": np.array(count)})[0]
        for count in (0, 1, 2)
    ]
    assert [each.shape[1] for each in found] == [5, 1, 2]
    np.testing.assert_allclose(found[0][:, -1:], found[1], atol=1e-5)


@pytest.mark.parametrize("kind", ["fp16", "int8", "q4"])
def test_a_type_is_smaller_and_runs(folder: Path, tiny: Path, tmp_path: Path, kind: str) -> None:
    model, chosen = load(tiny), types.TYPES[kind]
    for name in GRAPHS:
        path = tmp_path / f"{name}{chosen.suffix}.onnx"
        source = folder / "onnx" / f"{name}.onnx"
        export.save_graph(types.converted(onnx.load(source), name, kind), path)
        error = verification.check_graph(path, name, model, chosen)
        assert error < {"fp16": 0.02, "int8": 0.2, "q4": 0.6}[kind]
        assert path.stat().st_size < source.stat().st_size
    held = {each.name: each.type for each in session(path).get_inputs()}
    kept = "tensor(float16)" if kind == "fp16" else "tensor(float)"
    assert held["past_key_values.0.key"] == kept
    assert held["inputs_embeds"] == "tensor(float)"


def test_large_weights_lie_in_a_file_beside_the_graph(
    folder: Path, tiny: Path, tmp_path: Path
) -> None:
    name = "decoder_model_merged"
    graph = onnx.load(folder / "onnx" / f"{name}.onnx")
    path, beside = export.save_graph(graph, tmp_path / f"{name}.onnx", inline_bytes=1000)
    assert beside.name == f"{name}.onnx_data"
    assert beside.stat().st_size > 10 * path.stat().st_size
    assert verification.check_graph(path, name, load(tiny), types.TYPES["fp32"]) < 1e-4


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_the_size_of_weights_is_told_without_writing_them(folder: Path, kind: str) -> None:
    name = "decoder_model_merged"
    graph = types.converted(onnx.load(folder / "onnx" / f"{name}.onnx"), name, kind)
    weights = export.weight_bytes(graph)
    assert weights == sum(
        onnx.numpy_helper.to_array(each).nbytes for each in graph.graph.initializer
    )
    assert weights < graph.ByteSize() < 2 * weights


def test_a_folder_with_weights_beside_its_graphs_says_so(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "INLINE_BYTES", 1000)
    done = to_onnx(tiny, tmp_path / "graphs")
    names = {f"{name}.onnx" for name in GRAPHS}
    assert {path.name for path in done.files} == names | {f"{name}_data" for name in names}
    config = json.loads((tmp_path / "graphs" / "config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] == dict.fromkeys(names, 1)
    for path in done.files:
        if path.suffix == ".onnx":
            onnx.checker.check_model(str(path))
            session(path)


def test_a_graph_with_other_weights_is_noticed(folder: Path, tmp_path: Path) -> None:
    other = load(write_tiny_checkpoint(tmp_path / "other", seed=1))
    path = folder / "onnx" / "embed_tokens.onnx"
    with pytest.raises(OutputError, match="gives other numbers than torch"):
        verification.check_graph(path, "embed_tokens", other, types.TYPES["fp32"])


def test_the_folder_says_what_transformers_js_asks(folder: Path, tiny: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    sizes = {"num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 8}
    assert sizes.items() <= config["text_config"].items()
    assert config["transformers.js_config"] == {"kv_cache_dtype": {"fp16": "float16"}}
    assert config["converted_from"] == find_checkpoint(str(tiny)).revision
    for name in ("tokenizer.json", "preprocessor_config.json", "chat_template.json"):
        assert (folder / name).read_bytes() == (tiny / name).read_bytes()
    assert not (folder / "model.safetensors").exists()


def test_granites_multipliers_are_in_the_language_model(tmp_path: Path) -> None:
    granite = {key: value for key, value in MULTIPLIERS.items() if key != "logits_scaling"}
    plain = load(write_tiny_checkpoint(tmp_path / "plain", model_type="idefics3", granite={}))
    model = load(write_tiny_checkpoint(tmp_path / "model", model_type="idefics3", granite=granite))
    embeds, positions = torch.randn(1, 4, 48), torch.arange(4)[None]
    past = export.example_cache(model.shape.text, 1, 0)
    logits = [
        DecoderGraph(each.language)(embeds, torch.ones_like(positions), positions, past)[0]
        for each in (plain, model)
    ]
    assert not torch.allclose(*logits, atol=0.1)


def test_another_model_in_the_folder_is_left_alone(folder: Path, tmp_path: Path) -> None:
    before = (folder / "config.json").read_bytes()
    with pytest.raises(OutputError, match="holds another model: take another -o"):
        to_onnx(write_tiny_checkpoint(tmp_path / "other", seed=1), folder)
    assert (folder / "config.json").read_bytes() == before


def test_values_that_float16_cannot_hold_are_refused(
    folder: Path, tiny: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(tiny, tmp_path / "broken")
    name = "model.text_model.embed_tokens.weight"
    weights = load_file(broken / "model.safetensors")
    weights[name] = weights[name] * 1e6
    save_file(weights, broken / "model.safetensors")
    graph = onnx.load(folder / "onnx" / "embed_tokens.onnx")
    (weight,) = graph.graph.initializer
    weight.CopyFrom(onnx.numpy_helper.from_array(weights[name].numpy(), weight.name))
    path = tmp_path / "embed_tokens_fp16.onnx"
    export.save_graph(types.converted(graph, "embed_tokens", "fp16"), path)
    with pytest.raises(OutputError, match="convert to another --type"):
        verification.check_graph(path, "embed_tokens", load(broken), types.TYPES["fp16"])


def test_an_unknown_type_is_named(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="type must be one of fp32, fp16, int8, q4, not 'q8_0'"):
        to_onnx(tiny, tmp_path, "q8_0")


@pytest.mark.usefixtures("full_disk")
def test_space_is_checked_before_anything_is_written(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"0\.00 GB free, the files take 0\.00 GB: make room"):
        to_onnx(tiny, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.onnx"))


@pytest.mark.usefixtures("full_disk")
def test_memory_that_may_run_out_is_said(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for free, is_said in ((10**12, False), (1000, True)):
        memory = Memory(10**12, free)
        monkeypatch.setattr(conversion, "device_memory", lambda device, memory=memory: memory)
        with pytest.raises(OutputError, match="make room"):
            to_onnx(tiny, tmp_path / "out")
        assert ("GB of memory, and 0.0 GB are free" in caplog.text) is is_said


def test_a_missing_package_is_named(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vlmbatch\[onnx-export\]'"):
        to_onnx(tiny, tmp_path)
