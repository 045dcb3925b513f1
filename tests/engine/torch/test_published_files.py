"""Habits of the published files: what they leave out, where they put things, what they say twice.

Wherever transformers reads a file, it is what we are held against.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file

from tests.checkpoints import CHAT_TEMPLATE, write_tiny_checkpoint
from tests.engine.idefics3 import conversation, write_idefics3, write_pictures
from tests.engine.reference import Reference
from tests.engine.torch.test_idefics3 import assert_equal
from vlmbatch.checkpoint import Checkpoint, find_checkpoint
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.errors import ModelLoadError
from vlmbatch.prepare import Preparer

OTHER_TEMPLATE = CHAT_TEMPLATE.replace("Assistant:", "Answer:")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))[5::8]


def edit(folder: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the object in a JSON file; one that is not there starts empty."""
    path = folder / file
    value = json.loads(path.read_text()) if path.exists() else {}
    change(value)
    path.write_text(json.dumps(value))


def without(*keys: str, part: str = "") -> Callable[[dict[str, Any]], object]:
    """Take keys out of a part of an object."""

    def change(value: dict[str, Any]) -> None:
        for key in keys:
            (value[part] if part else value).pop(key, None)

    return change


def assert_answers(folder: Path, pictures: list[Path]) -> None:
    assert_equal(folder, [[("user", [path, "What is this?"])] for path in pictures])


@pytest.mark.parametrize("kind", ["llama", "granite"])
@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"text_config": {}, "vision_config": {}},
        {"text_config": {"num_key_value_heads": None, "rope_scaling": None, "rope_theta": 130000}},
        {"text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 273768.0}}},
        {"text_config": {"hidden_size": 2048, "head_dim": 64, "embedding_multiplier": 12}},
        {"vision_config": {"hidden_size": 768, "num_attention_heads": 12, "image_size": 512}},
        {"scale_factor": 3, "image_token_id": 49153, "tie_word_embeddings": True},
    ],
    ids=["nothing", "empty parts", "heads", "new rope", "sizes", "encoder", "joint"],
)
def test_what_config_json_leaves_out_is_what_transformers_takes(
    tmp_path: Path, model_type: str, kind: str, config: dict[str, Any]
) -> None:
    written = {"model_type": model_type, **config}
    if "text_config" in written:
        written["text_config"] = {"model_type": kind, **written["text_config"]}
    (tmp_path / "config.json").write_text(json.dumps(written))
    found = ModelShape.from_checkpoint(Checkpoint(tmp_path, "it", ""))
    wanted: Any = transformers.AutoConfig.from_pretrained(tmp_path)
    text, vision = wanted.text_config, wanted.vision_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert (found.scale_factor, found.image_token_id) == (
        wanted.scale_factor,
        wanted.image_token_id,
    )
    assert found.tied == wanted.tie_word_embeddings
    assert found.text.layers == text.num_hidden_layers
    assert (found.text.hidden, found.text.mlp) == (text.hidden_size, text.intermediate_size)
    assert found.text.heads == text.num_attention_heads
    assert (found.text.kv_heads, found.text.head_dim) == (text.num_key_value_heads, head_dim)
    assert (found.text.vocabulary, found.text.norm_eps) == (text.vocab_size, text.rms_norm_eps)
    assert found.text.context == text.max_position_embeddings
    assert found.text.rope_theta == text.rope_parameters["rope_theta"]
    is_granite = text.model_type == "granite"
    assert found.text.embedding_multiplier == (text.embedding_multiplier if is_granite else 1)
    scale = text.attention_multiplier if is_granite else head_dim**-0.5
    assert found.text.query_multiplier * head_dim**-0.5 == pytest.approx(scale)
    assert (found.vision.hidden, found.vision.mlp) == (vision.hidden_size, vision.intermediate_size)
    assert found.vision.layers == vision.num_hidden_layers
    assert found.vision.heads == vision.num_attention_heads
    assert (found.vision.image_size, found.vision.patch_size) == (
        vision.image_size,
        vision.patch_size,
    )
    assert found.vision.norm_eps == vision.layer_norm_eps


def test_a_config_without_layers_and_heads(tmp_path: Path, pictures: list[Path]) -> None:
    folder = write_idefics3(
        tmp_path / "model",
        text={"hidden_size": 64, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"num_key_value_heads": 32, "head_dim": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e4},
        vision={"num_hidden_layers": 12, "num_attention_heads": 16, "intermediate_size": 3072},
    )
    text = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    more = ("rms_norm_eps", "rope_theta", "max_position_embeddings", "hidden_act", "model_type")
    edit(folder, "config.json", without(*text, *more, part="text_config"))
    vision = ("num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    edit(folder, "config.json", without(*vision, "layer_norm_eps", part="vision_config"))
    edit(folder, "config.json", without("scale_factor", "tie_word_embeddings", "architectures"))
    assert_answers(folder, pictures[:2])


def test_a_processor_without_sizes_cuts_tiles_of_364_pixels(
    tmp_path: Path, pictures: list[Path]
) -> None:
    folder = write_idefics3(tmp_path / "model", tile=364, patch=14, longest_edge=1456, context=8192)
    edit(folder, "preprocessor_config.json", without("size", "max_image_size", "resample"))
    edit(folder, "processor_config.json", without("image_seq_len"))
    preparer = Preparer.from_checkpoint(find_checkpoint(str(folder)))
    assert (preparer.seq_len, preparer.num_tiles(400, 100)) == (169, 5)
    assert_answers(folder, pictures[:1])


def test_old_and_new_processor_files(tmp_path: Path, pictures: list[Path]) -> None:
    """transformers takes the part of the new file where both are there."""
    folder = write_idefics3(tmp_path / "model", longest_edge=64)
    old = json.loads((folder / "preprocessor_config.json").read_text())
    assert_answers(folder, pictures)
    edit(
        folder,
        "processor_config.json",
        lambda value: value.update(image_processor=old | {"size": {"longest_edge": 96}}),
    )
    assert Preparer.from_checkpoint(find_checkpoint(str(folder))).num_tiles(99, 99) == 10
    assert_answers(folder, pictures)
    (folder / "preprocessor_config.json").unlink()
    assert_answers(folder, pictures)


def test_a_processor_saved_by_a_fast_class(tmp_path: Path, pictures: list[Path]) -> None:
    """Its file has settings that say nothing, and some that only that class knows."""
    folder = write_idefics3(tmp_path / "model", longest_edge=64)
    nothing = ("crop_size", "device", "disable_grouping", "input_data_format", "return_tensors")
    fast = {"image_processor_type": "Idefics3ImageProcessorFast", "data_format": "channels_first"}
    edit(
        folder,
        "preprocessor_config.json",
        lambda value: value.update(fast | dict.fromkeys(nothing) | {"default_to_square": True}),
    )
    assert_answers(folder, pictures)
    assert not Reference(folder).engine.prepare(*conversation([("user", ["Hi?"])])).tiles


def test_where_the_settings_of_clips_stand(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model", tile=32)
    checkpoint = find_checkpoint(str(folder))
    old = checkpoint.video_processor()
    assert old["video_sampling"]["video_size"] == {"longest_edge": 32}
    edit(folder, "video_preprocessor_config.json", lambda value: value.update(old, fps=2))
    assert checkpoint.video_processor()["fps"] == 2
    new = {"video_processor": old | {"fps": 3}}
    edit(folder, "processor_config.json", lambda value: value.update(new))
    assert checkpoint.video_processor()["fps"] == 3


@pytest.mark.parametrize(
    "where",
    ["chat_template.json", "chat_template.jinja", "tokenizer_config.json", "a list", "two files"],
)
def test_where_the_chat_template_stands(tmp_path: Path, pictures: list[Path], where: str) -> None:
    folder = write_idefics3(tmp_path / "model", template=CHAT_TEMPLATE)
    if where != "two files":
        (folder / "chat_template.json").unlink()
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": OTHER_TEMPLATE}]
    template = named if where == "a list" else OTHER_TEMPLATE
    if where in ("chat_template.jinja", "two files"):
        (folder / "chat_template.jinja").write_text(OTHER_TEMPLATE)
    else:
        file = "tokenizer_config.json" if where == "a list" else where
        edit(folder, file, lambda value: value.update(chat_template=template))
    prepared = Preparer.from_checkpoint(find_checkpoint(str(folder)))
    answers = prepared.writer.tokenizer.decode(prepared.writer.image_question("?"))
    assert answers.endswith("Assistant:" if where == "two files" else "Answer:")
    if where != "a list":  # transformers' processor takes one template
        assert_answers(folder, pictures[:1])


def test_weights_in_16_bits_and_shards_with_an_index(tmp_path: Path, pictures: list[Path]) -> None:
    for dtype in ("bfloat16", "float16"):
        folder = write_idefics3(tmp_path / dtype, dtype=dtype, shards=True)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert len(set(index["weight_map"].values())) > 1
        edit(folder, "config.json", lambda value: value.update(torch_dtype="float32", dtype=None))
        assert_answers(folder, pictures[:2])
        (folder / max(index["weight_map"].values())).unlink()
        with pytest.raises(ModelLoadError, match="is missing"):
            find_checkpoint(str(folder)).weight_files()


def test_a_padding_token_outside_the_vocabulary(tmp_path: Path, pictures: list[Path]) -> None:
    folder = write_idefics3(tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] == 128_002
    edit(folder, "config.json", lambda value: value["text_config"].pop("pad_token_id"))
    edit(folder, "tokenizer_config.json", without("pad_token"))
    assert_answers(folder, pictures[:2])


@pytest.mark.parametrize(
    ("generation", "joint", "text", "wanted"),
    [
        ([5, 6, 300], 7, 8, {5, 6, 300}),
        (5, 7, 8, {5}),
        (None, [7, 9], 8, {7, 9}),
        (None, None, [8], {8}),
    ],
)
def test_where_the_ends_of_answers_stand(
    tmp_path: Path, generation: object, joint: object, text: object, wanted: set[int]
) -> None:
    folder = write_idefics3(tmp_path / "model")
    edit(folder, "config.json", lambda value: value["text_config"].update(eos_token_id=text))
    edit(folder, "config.json", lambda value: value.update(eos_token_id=joint))
    if generation is None:
        (folder / "generation_config.json").unlink()
    else:
        edit(folder, "generation_config.json", lambda value: value.update(eos_token_id=generation))
    assert find_checkpoint(str(folder)).end_token_ids() == wanted
    model: Any = transformers.Idefics3ForConditionalGeneration.from_pretrained(folder)
    found = model.generation_config.eos_token_id
    assert {found} | wanted == wanted if isinstance(found, int) else set(found) == wanted


@pytest.mark.parametrize(
    "names",
    ["without model.", "head under model.", "tied but apart", "tied and twice", "head only"],
)
def test_names_of_tensors_and_two_heads(tmp_path: Path, pictures: list[Path], names: str) -> None:
    folder = write_idefics3(tmp_path / "model", tie="tied" in names or names == "head only")
    path, embedding = folder / "model.safetensors", "model.text_model.embed_tokens.weight"
    tensors = load_file(path)
    if names == "without model.":
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    elif names == "head under model.":
        tensors["model.lm_head.weight"] = tensors.pop("lm_head.weight")
    elif names == "head only":
        tensors["lm_head.weight"] = tensors.pop(embedding)
    else:
        factor = -1 if names == "tied but apart" else 1
        tensors["lm_head.weight"] = tensors[embedding] * factor
    save_file(tensors, path, metadata={"format": "pt"})
    assert_answers(folder, pictures[:3])


@pytest.mark.parametrize("tied", [False, True])
def test_eight_bits_keep_a_head_that_is_apart(tmp_path: Path, tied: bool) -> None:
    from tests.engine.torch.test_idefics3 import open_torch

    folder = write_idefics3(tmp_path / "model", tie=True)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    embedding = tensors["model.text_model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.clone() if tied else embedding.flip(0)
    save_file(tensors, path, metadata={"format": "pt"})
    network: Any = open_torch(folder, quantize="int8").network  # type: ignore[attr-defined]
    assert network.shape.tied is tied
    head = network.language.head
    kept = head.weight.float() * head.scale[:, None]
    assert (kept - tensors["lm_head.weight"]).abs().max() < 0.01 * embedding.abs().max()
