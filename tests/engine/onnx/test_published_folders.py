"""Folders of other exporters: what a graph lacks, has in addition, or takes in another form."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.engine.onnx.asking import agreement, options
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.engine import Engine, open_engine
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.engine.torch.weights import load_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper  # noqa: E402

from vlmbatch.convert.onnx import export  # noqa: E402
from vlmbatch.convert.onnx.modules import VisionGraph  # noqa: E402

Change = Callable[[onnx.ModelProto], None]


@pytest.fixture
def folder(graphs: Path, tmp_path: Path) -> Path:
    """A copy of the graphs, to be changed."""
    return shutil.copytree(graphs, tmp_path / "model")


def change(folder: Path, names: list[str], *changes: Change) -> None:
    """Write changed graphs in the place of those there."""
    for name in names:
        path = folder / "onnx" / f"{name}.onnx"
        graph = onnx.load(path)
        for each in changes:
            each(graph)
        onnx.checker.check_model(graph)
        onnx.save(graph, path)


def without_input(name: str) -> Change:
    """Take an input out, whose value is then always 0."""

    def apply(model: onnx.ModelProto) -> None:
        (found,) = (each for each in model.graph.input if each.name == name)
        model.graph.input.remove(found)
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [], [0]))

    return apply


def with_own_positions(model: onnx.ModelProto) -> None:
    """Let the language model count positions by the mask, as graphs without ``position_ids`` do."""
    graph = model.graph
    (found,) = (each for each in graph.input if each.name == "position_ids")
    graph.input.remove(found)
    for name, dims, value in (("one", [], 1), ("none", [], 0), ("last", [1], (1 << 63) - 1)):
        graph.initializer.append(
            helper.make_tensor(name, TensorProto.INT64, dims, [value] * max(1, len(dims)))
        )
    graph.initializer.append(helper.make_tensor("axis", TensorProto.INT64, [1], [1]))
    nodes = [
        helper.make_node("CumSum", ["attention_mask", "one"], ["counted"]),
        helper.make_node("Sub", ["counted", "one"], ["from_zero"]),
        helper.make_node("Max", ["from_zero", "none"], ["all_positions"]),
        helper.make_node("Shape", ["inputs_embeds"], ["tokens"], start=1, end=2),
        helper.make_node("Neg", ["tokens"], ["first"]),
        helper.make_node("Slice", ["all_positions", "first", "last", "axis"], ["position_ids"]),
    ]
    for node in reversed(nodes):
        graph.node.insert(0, node)


def with_half_precision(model: onnx.ModelProto) -> None:
    """Let a graph take and give float16 only, and masks as int64."""
    graph = model.graph
    kinds = {TensorProto.FLOAT: TensorProto.FLOAT16, TensorProto.BOOL: TensorProto.INT64}
    begin, end = [], []
    for each in (*graph.input, *graph.output):
        own = each.type.tensor_type.elem_type
        if own not in kinds:
            continue
        is_input = each in graph.input
        inner = f"{each.name}/inner"
        for node in graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == each.name:
                        names[place] = inner
        each.type.tensor_type.elem_type = kinds[own]
        cast = (each.name, inner, own) if is_input else (inner, each.name, kinds[own])
        (begin if is_input else end).append(
            helper.make_node("Cast", [cast[0]], [cast[1]], to=cast[2])
        )
    for node in begin:
        graph.node.insert(0, node)
    graph.node.extend(end)


class OldVision(torch.nn.Module):
    """An encoder as some folders have it: four dimensions of pixels, with or without a mask."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        checkpoint = find_checkpoint(str(folder))
        shape = ModelShape.from_checkpoint(checkpoint)
        model = load_model(checkpoint, shape, torch.device("cpu"), torch.float32)
        self.encoder = VisionGraph(model.vision)

    def forward(
        self, pixel_values: torch.Tensor, pixel_attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        mask = pixel_attention_mask
        if mask is None:
            mask = torch.ones_like(pixel_values[:, 0], dtype=torch.bool)
        return self.encoder(pixel_values[None], mask[None])


@pytest.mark.parametrize("masks", [False, True], ids=["no mask", "mask"])
def test_pixels_may_have_four_dimensions(
    folder: Path, tiny: Path, reference: Engine, masks: bool
) -> None:
    pixels, mask = torch.rand(2, 3, 32, 32), torch.ones(2, 32, 32, dtype=torch.bool)
    names = ["pixel_values", *(["pixel_attention_mask"] if masks else [])]
    with export.quiet():
        torch.onnx.export(
            OldVision(tiny).eval(),
            (pixels, mask) if masks else (pixels,),
            folder / "onnx" / "vision_encoder.onnx",
            input_names=names,
            output_names=["features"],
            dynamic_shapes={name: {0: "tiles"} for name in names},
        )
    assert agreement(open_engine(options(folder)), reference) >= 0.99


def test_the_mask_of_five_dimensions_may_be_missing(folder: Path, reference: Engine) -> None:
    def without_mask(model: onnx.ModelProto) -> None:
        graph = model.graph
        (found,) = (each for each in graph.input if each.name == "pixel_attention_mask")
        graph.input.remove(found)
        kind = helper.make_tensor("seen", TensorProto.BOOL, [1], [True])
        graph.node.insert(
            0, helper.make_node("ConstantOfShape", ["size"], [found.name], value=kind)
        )
        graph.initializer.append(helper.make_tensor("dims", TensorProto.INT64, [4], [0, 1, 3, 4]))
        graph.node.insert(0, helper.make_node("Gather", ["whole", "dims"], ["size"]))
        graph.node.insert(0, helper.make_node("Shape", ["pixel_values"], ["whole"]))

    change(folder, ["vision_encoder"], without_mask)
    assert agreement(open_engine(options(folder)), reference) >= 0.99


@pytest.mark.parametrize(
    "lacks",
    [without_input("num_logits_to_keep"), with_own_positions],
    ids=["num_logits_to_keep", "position_ids"],
)
def test_inputs_of_the_language_model_may_be_missing(
    folder: Path, reference: Engine, lacks: Change
) -> None:
    change(folder, ["decoder_model_merged"], lacks)
    assert agreement(open_engine(options(folder)), reference) >= 0.99


def test_inputs_and_outputs_may_be_float16(folder: Path, reference: Engine) -> None:
    names = ["vision_encoder", "embed_tokens", "decoder_model_merged"]
    change(folder, names, with_half_precision)
    assert agreement(open_engine(options(folder)), reference) > 0.8


def test_the_language_model_may_be_two_graphs_beside_their_weights(
    folder: Path, reference: Engine
) -> None:
    place = folder / "onnx"
    merged = place / "decoder_model_merged.onnx"
    graph = onnx.load(merged)
    merged.unlink()
    export.save_graph(graph, place / "decoder_model.onnx")
    export.save_graph(graph, place / "decoder_with_past_model.onnx", inline_bytes=1000)
    for path in place.iterdir():  # beside the small files, not in a folder of their own
        path.rename(folder / path.name)
    place.rmdir()
    assert agreement(open_engine(options(folder)), reference) >= 0.99


def test_weights_of_every_graph_may_lie_beside_it(folder: Path, reference: Engine) -> None:
    inline = sum(path.stat().st_size for path in (folder / "onnx").iterdir())
    for path in sorted((folder / "onnx").iterdir()):
        graph = onnx.load(path)
        path.unlink()
        export.save_graph(graph, path, inline_bytes=1000)
    names = {path.name for path in (folder / "onnx").iterdir()}
    assert "decoder_model_merged.onnx_data" in names
    opened = open_engine(options(folder))
    counted = opened.budget.weight_bytes  # type: ignore[attr-defined]
    assert counted >= 0.9 * inline  # the files beside the graphs are counted
    assert agreement(opened, reference) >= 0.99
