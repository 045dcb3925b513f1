"""GGUF files: what is in them, and what is refused. A real llama.cpp reads them in
tests/engine/llama_server/.
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import write_tiny_checkpoint
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.convert import Converted, ConvertOptions, convert
from vlmbatch.convert.gguf import types, vocabulary
from vlmbatch.convert.gguf.tensors import Weights, interleaved
from vlmbatch.convert.gguf.verification import check_file
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.errors import JobError, MissingDependencyError, ModelLoadError, OutputError
from vlmbatch.gguf_files import CONTROL, NORMAL, UNUSED, open_gguf, read_tokenizer

EMBEDDINGS = "model.text_model.embed_tokens.weight"
TOOL = """#!{python}
import shutil, sys
source, target, kind = sys.argv[1:]
{action}
"""


def to_gguf(model: Path | str, folder: Path, kind: str | None = None, **more: Any) -> Converted:
    return convert(find_checkpoint(str(model)), "gguf", ConvertOptions(folder, kind, **more))


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_outputs_are_where_llama_cpp_rotates_them() -> None:
    heads, size = 3, 8
    weight, x = torch.randn(heads * size, 5), torch.randn(5)
    angles = torch.randn(size // 2)
    cos, sin = angles.cos(), angles.sin()
    first, second = (
        (weight @ x).view(heads, 2, size // 2).unbind(1)
    )  # as checkpoints have it: i with i + size / 2
    rotated = torch.stack((first * cos - second * sin, second * cos + first * sin), 1).flatten(1)
    even, odd = (
        (interleaved(weight, heads) @ x).view(heads, size // 2, 2).unbind(2)
    )  # as llama.cpp: neighbours
    theirs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), 1).flatten(1)
    assert torch.allclose(theirs, rotated, atol=1e-5)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("shards", [False, True])
def test_every_weight_is_in_one_of_the_files(tmp_path: Path, tie: bool, shards: bool) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny", tie=tie, shards=shards)
    shape = ModelShape.from_checkpoint(find_checkpoint(str(folder)))
    text, vision, *_ = to_gguf(folder, tmp_path / "out", "f32").files
    found = tensors(text) | tensors(vision)
    assert sum(tensor.n_elements for tensor in found.values()) == shape.parameters
    assert ("output.weight" in found) is not tie
    assert found["blk.2.attn_k.weight"].data.shape == (16, 48)
    assert found["v.blk.1.attn_out.bias"].data.shape == (32,)
    assert found["mm.model.fc.weight"].data.shape == (48, 32 * 4)


def test_float32_weights_are_those_of_the_checkpoint(tiny: Path, tmp_path: Path) -> None:
    text, vision, *_ = to_gguf(tiny, tmp_path, "f32").files
    own = load_file(tiny / "model.safetensors")
    found = tensors(text) | tensors(vision)
    for ours, theirs in (
        (EMBEDDINGS, "token_embd.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.text_model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.vision_model.embeddings.patch_embedding.weight", "v.patch_embd.weight"),
        ("model.vision_model.encoder.layers.0.mlp.fc2.bias", "v.blk.0.ffn_down.bias"),
    ):
        assert np.array_equal(found[theirs].data, own[ours].numpy()), theirs


def test_the_files_say_what_llama_cpp_has_to_know(tiny: Path, tmp_path: Path) -> None:
    text, vision, *_ = to_gguf(tiny, tmp_path, "q8_0").files
    assert (text.name, vision.name) == ("tiny-Q8_0.gguf", "mmproj-tiny-Q8_0.gguf")
    said = fields(text)
    assert said["general.architecture"] == "llama"
    assert (said["general.type"], said["general.name"]) == ("model", "tiny")
    assert said["general.quantization_version"] == 2
    assert said["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert said["tokenizer.ggml.pre"] == "smollm"
    assert said["tokenizer.chat_template"] == find_checkpoint(str(tiny)).chat_template()
    assert said["llama.rope.freq_base"] == 100_000
    assert said["llama.context_length"] == 2048
    tokens = said["tokenizer.ggml.tokens"]
    assert tokens[said["tokenizer.ggml.eos_token_id"]] == "<end_of_utterance>"
    assert tokens[said["tokenizer.ggml.bos_token_id"]] == "<|im_start|>"
    assert not said["tokenizer.ggml.add_bos_token"]
    seen = fields(vision)
    assert (seen["general.architecture"], seen["general.type"]) == ("clip", "mmproj")
    assert seen["clip.projector_type"] == "idefics3"
    assert seen["clip.vision.image_size"] == 32
    assert seen["clip.vision.preproc_image_size"] == 128
    assert seen["clip.vision.projector.scale_factor"] == 2


@pytest.mark.parametrize(
    ("kind", "matrix", "head", "vision_matrix", "error"),
    [
        ("f32", "F32", "F32", "F32", 0),
        ("f16", "F16", "F16", "F16", 1e-3),
        ("bf16", "BF16", "BF16", "BF16", 1e-2),
        ("q8_0", "Q8_0", "Q8_0", "Q8_0", 1e-2),
        ("q5_0", "Q5_0", "Q8_0", "Q8_0", 0.1),
        ("q4_0", "Q4_0", "Q8_0", "Q8_0", 0.2),
    ],
)
def test_matrices_have_the_type_and_what_is_small_stays_float32(
    tmp_path: Path, kind: str, matrix: str, head: str, vision_matrix: str, error: float
) -> None:
    text, vision, *_ = to_gguf("demo", tmp_path, kind).files
    found, seen = tensors(text), tensors(vision)
    assert found["blk.0.ffn_up.weight"].tensor_type.name == matrix
    assert found["output.weight"].tensor_type.name == head
    assert found["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert seen["v.blk.0.ffn_up.weight"].tensor_type.name == vision_matrix
    for name in ("v.patch_embd.weight", "v.position_embd.weight", "v.blk.0.ffn_up.bias"):
        assert seen[name].tensor_type.name == "F32"
    own = load_file(find_checkpoint("demo").folder / "model.safetensors")
    weight = own["model.text_model.layers.0.mlp.up_proj.weight"].float().numpy()
    up = found["blk.0.ffn_up.weight"]
    read = gguf.quants.dequantize(up.data, up.tensor_type)
    assert np.abs(read - weight).max() <= error * np.abs(weight).max()


def test_rows_that_are_no_multiple_of_a_block_are_float16(tiny: Path, tmp_path: Path) -> None:
    found = tensors(to_gguf(tiny, tmp_path, "q4_0").files[0])
    assert found["blk.0.ffn_up.weight"].tensor_type.name == "F16"  # rows of 48
    assert found["blk.0.ffn_down.weight"].tensor_type.name == "Q4_0"  # rows of 96


@pytest.mark.parametrize("model", ["demo", "tiny"])
def test_the_vocabulary_tokenizes_as_the_checkpoint_does(
    tiny: Path, tmp_path: Path, model: str
) -> None:
    checkpoint = find_checkpoint("demo" if model == "demo" else str(tiny))
    text = to_gguf(checkpoint.name, tmp_path).files[0]
    ids = read_tokenizer(open_gguf(text)).encode("Two shapes: 12 and 7.<end_of_utterance>").ids
    assert checkpoint.end_token_ids() == {ids[-1]}


def test_the_vocabulary_is_as_large_as_it_has_to_be(tiny: Path) -> None:
    checkpoint = find_checkpoint(str(tiny))
    size = ModelShape.from_checkpoint(checkpoint).text.vocabulary
    found = vocabulary.read_vocabulary(checkpoint, size + 2)
    assert found.tokens[-2:] == [f"<unused_{size}>", f"<unused_{size + 1}>"]
    assert found.kinds[-3:] == [CONTROL, UNUSED, UNUSED]
    assert found.tokens[checkpoint.config["image_token_id"]] == "<image>"
    assert len(set(found.tokens)) == size + 2


@pytest.mark.parametrize("name", ["demo", "tiny"])
def test_the_vocabulary_has_what_llama_cpp_puts_before_an_overview(tiny: Path, name: str) -> None:
    """Without that token it cannot read a picture; random weights have the demo's vocabulary."""
    checkpoint = find_checkpoint("demo" if name == "demo" else str(tiny))
    size = ModelShape.from_checkpoint(checkpoint).text.vocabulary
    found = vocabulary.read_vocabulary(checkpoint, size)
    assert found.kinds[found.tokens.index("ĊĊ")] == NORMAL
    assert "Ċ Ċ" in found.merges


def test_a_tokenizer_that_llama_cpp_lacks_is_refused_or_named(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "other")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"use_regex": true', '"use_regex": false'))
    with pytest.raises(ModelLoadError, match="no pre-tokenizer like"):
        to_gguf(folder, tmp_path / "out")
    assert vocabulary.INEXACT_NOTE in to_gguf("demo", tmp_path / "out").notes
    assert vocabulary.INEXACT_NOTE not in to_gguf(tiny, tmp_path / "out").notes


def test_a_tokenizer_with_a_step_that_gguf_lacks_is_refused_before_weights_are_read(
    tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "other")
    path = folder / "tokenizer.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ModelLoadError, match="would split texts into other tokens"):
        to_gguf(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_unfinished_stays_behind(tiny: Path, tmp_path: Path) -> None:
    to_gguf(tiny, tmp_path, "f32")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = shutil.copytree(tiny, tmp_path.parent / "tiny")
    weights = load_file(broken / "model.safetensors")
    weights[EMBEDDINGS] = weights[EMBEDDINGS] * 1e6
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(ModelLoadError, match="float16 cannot hold: use --type bf16"):
        to_gguf(broken, tmp_path, "f16")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_granite_keeps_its_multipliers(tmp_path: Path) -> None:
    granite = {"embedding_multiplier": 12.0, "attention_multiplier": 0.5}
    folder = write_tiny_checkpoint(tmp_path / "model", model_type="idefics3", granite=granite)
    said = fields(to_gguf(folder, tmp_path / "gguf").files[0])
    assert said["general.architecture"] == "granite"
    assert said["granite.embedding_scale"] == 12
    assert said["granite.residual_scale"] == 1
    assert said["granite.attention.scale"] == 0.5
    assert said["granite.logit_scale"] == 1
    folder = write_tiny_checkpoint(
        tmp_path / "plain", model_type="idefics3", granite={"attention_multiplier": 8**-0.5}
    )
    said = fields(to_gguf(folder, tmp_path / "gguf").files[0])
    assert said["general.architecture"] == "llama"


def test_a_damaged_file_is_noticed(tiny: Path, tmp_path: Path) -> None:
    from vlmbatch.convert.gguf.files import vision_file

    checkpoint = find_checkpoint(str(tiny))
    shape = ModelShape.from_checkpoint(checkpoint)
    file = vision_file("eyes.gguf", checkpoint, shape, Weights(checkpoint, shape), "f32")
    path = tmp_path / "eyes.gguf"
    file.write(path)
    check_file(path, file)
    reader = gguf.GGUFReader(path, "r+")
    smallest = min((t for t in reader.tensors if t.data.ndim > 1), key=lambda t: t.n_elements)
    smallest.data[0, 0] += 1
    reader.data.flush()
    with pytest.raises(OutputError, match="read back differ"):
        check_file(path, file)


@pytest.mark.usefixtures("full_disk")
def test_space_is_checked_before_anything_is_written(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"0\.00 GB free, the files take 0\.02 GB: make room"):
        to_gguf(tiny, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_cannot_be_written_is_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write to .*file"):
        to_gguf(tiny, tmp_path / "file" / "out")


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_that_do_not_match_are_refused(tiny: Path, tmp_path: Path, change: str) -> None:
    folder = shutil.copytree(tiny, tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    weight = weights.pop(EMBEDDINGS)
    if change == "shape":
        weights[EMBEDDINGS] = weight[:-1].clone()
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match="embed_tokens"):
        to_gguf(folder, tmp_path / "out")


def test_k_quants_need_the_tool_and_say_what_rows_they_want(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"--llama-quantize.*rows of 48 are not a multiple of 256"):
        to_gguf(tiny, tmp_path, "q4_k_m")
    with pytest.raises(JobError, match="q8_0 needs no tool"):
        to_gguf(tiny, tmp_path, "q8_0", llama_quantize="llama-quantize")
    with pytest.raises(JobError, match="type must be one of f32, f16"):
        to_gguf(tiny, tmp_path, "int3")
    assert "960" in types.k_note(960)


def write_tool(path: Path, action: str) -> str:
    path.write_text(TOOL.format(python=sys.executable, action=action))
    path.chmod(0o755)
    return str(path)


def test_the_tool_is_given_float16_and_its_file_is_published(tiny: Path, tmp_path: Path) -> None:
    tool = write_tool(
        tmp_path / "tool", "shutil.copy(source, target); open(target, 'ab').write(kind.encode())"
    )
    done = to_gguf(tiny, tmp_path / "out", "q4_k_m", llama_quantize=tool)
    text, vision, *_ = done.files
    assert (text.name, vision.name) == ("tiny-Q4_K_M.gguf", "mmproj-tiny-Q8_0.gguf")
    assert text.read_bytes().endswith(b"Q4_K_M")
    assert fields(text)["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert types.k_note(48) in done.notes


def test_a_tool_that_fails_is_named(tiny: Path, tmp_path: Path) -> None:
    tool = write_tool(tmp_path / "tool", "print('no such type'); sys.exit(3)")
    with pytest.raises(OutputError, match="exit code 3: no such type"):
        to_gguf(tiny, tmp_path / "out", "q5_k_m", llama_quantize=tool)
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(JobError, match="cannot be run"):
        to_gguf(tiny, tmp_path / "out", "q5_k_m", llama_quantize=str(tmp_path / "nothing"))


def test_a_missing_package_is_named(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vlmbatch\[llama\]'"):
        to_gguf(tiny, tmp_path)


def test_a_full_disk_is_an_output_error(tiny: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    from vlmbatch.convert.gguf.files import vision_file

    checkpoint = find_checkpoint(str(tiny))
    shape = ModelShape.from_checkpoint(checkpoint)
    file = vision_file("eyes.gguf", checkpoint, shape, Weights(checkpoint, shape), "f32")
    with pytest.raises(OSError) as caught:
        file.write(Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC
