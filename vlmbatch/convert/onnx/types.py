"""Number formats of the graphs, and how each is made of float32."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from vlmbatch.convert.onnx.export import EMBEDDING, INLINE_BYTES, quiet, weight_bytes
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.errors import JobError

Q4_BLOCK = 32
"""Weights that share a scale, as on the hub."""
CACHE = ("past_key_values.", "present.")
"""Prefixes of the inputs and outputs with keys and values."""


@dataclasses.dataclass(frozen=True)
class GraphType:
    """A number format.

    Attributes:
        suffix: Suffix of the files, as on the hub.
        key: Its name in transformers.js.
        matrix_bytes: Bytes of a weight of a matrix, scales included.
        other_bytes: Bytes of an embedding.
        tolerance: Largest error of the outputs beside torch's, as a share of their size; None if
            there is no limit: the user is told.
    """

    suffix: str
    key: str
    matrix_bytes: float
    other_bytes: int
    tolerance: float | None


TYPES = {
    "fp32": GraphType("", "fp32", 4, 4, 1e-3),
    "fp16": GraphType("_fp16", "fp16", 2, 2, 0.1),
    "int8": GraphType("_int8", "int8", 1.1, 2, None),
    "q4": GraphType("_q4", "q4", 0.7, 2, None),
}
"""The formats by ``--type``."""


def find_type(name: str) -> GraphType:
    """Return a format by its name.

    Raises:
        JobError: There is none of this name.
    """
    if name not in TYPES:
        raise JobError(f"type must be one of {', '.join(TYPES)}, not {name!r}")
    return TYPES[name]


def expected_bytes(shape: ModelShape, kind: GraphType) -> int:
    """Estimate the size of the files. A head that is tied to the embeddings is a matrix of its own
    in the graph.
    """
    embeddings = shape.text.vocabulary * shape.text.hidden
    matrices = shape.parameters - embeddings * (0 if shape.tied else 1)
    return int(matrices * kind.matrix_bytes + embeddings * kind.other_bytes)


def converted(graph: onnx.ModelProto, name: str, kind: str) -> onnx.ModelProto:
    """Convert a float32 graph to a number format.

    Args:
        graph: The graph; it is changed.
        name: Its name.
        kind: A key of ``TYPES``.
    """
    if kind == "fp32":
        return graph
    with quiet():
        if kind == "fp16":
            return _to_float16(graph, keep_cache=False)
        if name == EMBEDDING:  # rows that are looked up: half the size, and nearly exact
            return _to_float16(graph, keep_cache=True)
        return _to_int8(graph) if kind == "int8" else _to_four_bits(graph)


def _to_float16(graph: onnx.ModelProto, *, keep_cache: bool) -> onnx.ModelProto:
    """Weights, activations, keys and values in float16; the other inputs and outputs stay float32,
    and so do the sums of squares in the norms, which float16 cannot hold.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    kept = [
        each.name
        for each in (*graph.graph.input, *graph.graph.output)
        if keep_cache or not each.name.startswith(CACHE)
    ]
    done: onnx.ModelProto = convert_float_to_float16(
        graph, keep_io_types=kept, node_block_list=_norm_nodes(graph), disable_shape_infer=True
    )
    OnnxModel(done).topological_sort()  # the casts of inputs were put at the end
    return done


def _norm_nodes(graph: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes of RMS norms, from the square to the division.

    What goes into a norm and comes out of it is declared in the graph: there, and only there, the
    converter puts its casts.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in graph.graph.node:
        if node.op_type == "Pow":
            ends = [node.input[0]]
            found.append(node.name)
            while node.op_type != "Div":
                (node,) = readers[node.output[0]]
                found.append(node.name)
            ends.append(node.output[0])
            graph.graph.value_info.extend(
                helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ends
            )
    return found


def _to_int8(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Matrices as int8 with a scale for each output; activations are quantized as they come.

    The weights have 7 bits: products of 8 times 8 bits overflow on processors without VNNI.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="vlmbatch-") as folder:
        path = Path(folder) / "graph.onnx"
        quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=weight_bytes(graph) > INLINE_BYTES,
        )
        return onnx.load(path)


def _to_four_bits(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Matrices as blocks of 4-bit integers with a scale each."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        graph, bits=4, block_size=Q4_BLOCK, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    done: onnx.ModelProto = quantizer.model.model
    return done
