"""Decode steps in one native call: ``decode.cpp``, compiled on first use.

The compiler runs in the background while the engine answers without it, once for a processor and a
model's shape. Before the library is used, its steps are compared with those of torch (trial.py).
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlmbatch.engine.torch.cache import Slot
from vlmbatch.engine.torch.cache.pool import Chunk
from vlmbatch.engine.torch.cache.prefixes import Piece
from vlmbatch.engine.torch.cache.slots import piece_views
from vlmbatch.engine.torch.linear import Linear, QuantizedLinear
from vlmbatch.engine.torch.model import LanguageModel, TextLayer
from vlmbatch.native_library import NativeLibrary

SOURCE = Path(__file__).with_name("decode.cpp")
OPTIONS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fopenmp", "-w")
MAX_ROWS = 64
"""Most sequences of a native step: as many as decode together on a CPU, if they are short."""
SPAN_TOKENS = 256
"""``SPAN`` of decode.cpp."""
WIDTH = 16
"""``WIDTH`` of decode.cpp: all sizes must be multiples."""

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Matrix(ctypes.Structure):
    """``Matrix`` of decode.cpp."""

    _fields_ = [("weight", _POINTER), ("scale", _POINTER)]


class _Layer(ctypes.Structure):
    """``Layer`` of decode.cpp."""

    _fields_ = [
        *((name, _POINTER) for name in ("input_norm", "mlp_norm")),
        *((name, _Matrix) for name in ("qkv", "out", "gate_up", "down")),
    ]


class _Model(ctypes.Structure):
    """``Model`` of decode.cpp."""

    _fields_ = [
        *((name, _INT) for name in ("layers", "hidden", "kv_heads", "mlp", "vocabulary")),
        *((name, _FLOAT) for name in ("norm_eps", "query_scale")),
        *((name, _FLOAT) for name in ("embedding_multiplier", "residual_multiplier")),
        ("layer", ctypes.POINTER(_Layer)),
        *((name, _POINTER) for name in ("embedding", "norm", "cos", "sin")),
        ("head", _Matrix),
    ]


class NativeWeights:
    """The matrices of a language model as decode.cpp reads them: rows of numbers in the model's
    dtype, or of int8. Take them before the model's kernels are chosen, which may keep an int8
    matrix in another layout only.
    """

    def __init__(self, language: LanguageModel) -> None:
        self.language = language
        self.layers = [
            {name: getattr(layer, name) for name in ("qkv", "out", "gate_up", "down")}
            for layer in language.layers
        ]
        self.head: Linear = language.head

    def first_layers(self, count: int) -> NativeWeights:
        """Return the weights of a model with the first layers only, and the same head."""
        part = copy.copy(self)
        part.language = copy.copy(self.language)
        part.language.layers = self.language.layers[:count]
        part.language.shape = dataclasses.replace(self.language.shape, layers=count)
        part.layers = self.layers[:count]
        return part

    @property
    def is_int8(self) -> bool:
        """Whether the matrices are int8."""
        return isinstance(self.head, QuantizedLinear)

    @property
    def int8_bytes(self) -> int:
        """Bytes of the int8 matrices."""
        matrices = [self.head, *(matrix for layer in self.layers for matrix in layer.values())]
        return sum(each.weight.nbytes for each in matrices if isinstance(each, QuantizedLinear))


class NativeDecoder:
    """Decode steps of one model by the compiled library.

    Attributes:
        rows: Most sequences of a step.
    """

    rows = MAX_ROWS

    def __init__(self, library: ctypes.CDLL, weights: NativeWeights) -> None:
        """Set up the structures that the library reads. ``can_decode`` must be true."""
        language = weights.language
        shape = language.shape
        layers = (_Layer * shape.layers)(
            *(_layer(*each) for each in zip(language.layers, weights.layers, strict=True))
        )
        tensors = (language.embedding, language.norm, language.cos, language.sin)
        self._model = _Model(
            *(shape.layers, shape.hidden, shape.kv_heads, shape.mlp, shape.vocabulary),
            *(shape.norm_eps, shape.query_multiplier * shape.head_dim**-0.5),
            *(shape.embedding_multiplier, shape.residual_multiplier),
            layers,
            *(tensor.data_ptr() for tensor in tensors),
            _matrix(weights.head),
        )
        self._shape, self._weights = shape, weights
        self._decode, self._scratch_bytes = library.decode, library.scratch_bytes
        self._decode.restype, self._scratch_bytes.restype = None, _INT
        self._decode.argtypes = (
            *(_POINTER, _INT, _POINTER, _POINTER, _INT, _POINTER, _POINTER, _POINTER, _INT),
            _POINTER,
        )
        self._scratch_bytes.argtypes = (_POINTER, _INT, _INT, _INT)
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._addresses: weakref.WeakKeyDictionary[Chunk, list[int]] = weakref.WeakKeyDictionary()

    def logits(self, slots: Sequence[Slot], tokens: Sequence[int]) -> Tensor:
        """Store keys and values of one new token for each of at most ``rows`` sequences, and return
        float32 logits (sequences, vocabulary). The slots' lengths stay as they are.
        """
        chunks: dict[Chunk, int] = {}
        spans: list[tuple[int, ...]] = []
        for row, slot in enumerate(slots):
            first = 0
            for piece in (*slot.shared, Piece(slot.extent, slot.own_length + 1)):
                chunk = chunks.setdefault(piece.extent.chunk, len(chunks))
                for begin in range(0, piece.tokens, SPAN_TOKENS):
                    count = min(SPAN_TOKENS, piece.tokens - begin)
                    spans.append((row, first, count, chunk, *_place(piece, begin)))
                    first += count
        threads = torch.get_num_threads()
        model = ctypes.byref(self._model)
        need = self._scratch_bytes(model, len(slots), len(spans), threads)
        if len(self._scratch) < need:
            self._scratch = torch.empty(need, dtype=torch.uint8)
        ids, positions = torch.tensor(tokens), torch.tensor([slot.length for slot in slots])
        addresses = [address for chunk in chunks for address in self._addresses_of(chunk)]
        places, pointers = torch.tensor(spans), torch.tensor(addresses)
        logits = torch.empty(len(slots), self._shape.vocabulary)
        self._decode(
            *(model, len(slots), ids.data_ptr(), positions.data_ptr()),
            *(len(spans), places.data_ptr(), pointers.data_ptr()),
            *(self._scratch.data_ptr(), threads, logits.data_ptr()),
        )
        return logits

    def _addresses_of(self, chunk: Chunk) -> list[int]:
        """Return where the keys and the values of each layer of a chunk begin."""
        if chunk not in self._addresses:
            stores = zip(chunk.keys, chunk.values, strict=True)
            self._addresses[chunk] = [tensor.data_ptr() for pair in stores for tensor in pair]
        return self._addresses[chunk]


def can_decode(language: LanguageModel) -> bool:
    """True for a model whose sizes and dtype decode.cpp is written for."""
    shape, embedding = language.shape, language.embedding
    sizes = (shape.hidden, shape.mlp, shape.head_dim)
    return (
        embedding.device.type == "cpu"
        and embedding.dtype in (torch.float32, torch.bfloat16)
        and all(size % WIDTH == 0 for size in sizes)
    )


def library_of(weights: NativeWeights, folder: Path, processor: str) -> NativeLibrary:
    """Return the library for a model.

    Args:
        weights: The model's weights.
        folder: Keeps libraries.
        processor: Identifies the processor.
    """
    shape, dtype = weights.language.shape, weights.language.embedding.dtype
    constants = {
        "HEAD_DIM": shape.head_dim,
        "GROUPS": shape.heads // shape.kv_heads,
        "ROWS": MAX_ROWS,
        "BFLOAT16": int(dtype == torch.bfloat16),
        "INT8": int(weights.is_int8),
    }
    defined = (f"-D{name}={value}" for name, value in constants.items())
    return NativeLibrary(SOURCE, folder, "c++", (*OPTIONS, *defined), key=processor)


def _matrix(linear: Linear) -> _Matrix:
    scale = linear.scale.data_ptr() if isinstance(linear, QuantizedLinear) else None
    return _Matrix(linear.weight.data_ptr(), scale)


def _layer(layer: TextLayer, matrices: Mapping[str, Linear]) -> _Layer:
    norms = (layer.input_norm.data_ptr(), layer.mlp_norm.data_ptr())
    return _Layer(*norms, *map(_matrix, matrices.values()))


def _place(piece: Piece, begin: int) -> tuple[int, ...]:
    """Locate the keys and values of a piece's tokens, from one on: the fields of ``Span`` from
    ``keys`` on. The same for all layers.
    """
    keys, values = piece_views(piece, 0)
    key_head, key_token, key_dim = keys.stride()
    value_head, value_token, _ = values.stride()
    return (
        *(int(keys.storage_offset()) + begin * key_token, key_head, key_token, key_dim),
        *(int(values.storage_offset()) + begin * value_token, value_head, value_token),
    )
