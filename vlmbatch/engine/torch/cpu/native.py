"""Decode steps of few sequences in one native call: ``decode.cpp``, compiled on first use.

The compiler runs in the background while the engine answers without it, once for a processor and a
model's shape. Before the library is used, a step of it is compared with one of torch.
"""

from __future__ import annotations

import ctypes
import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlmbatch.engine.torch.attention import attend_prompt
from vlmbatch.engine.torch.cache import Cache, DecodeAttention, Piece, PrefillAttention, Segment
from vlmbatch.engine.torch.cache.pool import Chunk
from vlmbatch.engine.torch.cache.slots import Slot
from vlmbatch.engine.torch.linear import Linear, QuantizedLinear
from vlmbatch.engine.torch.model import LanguageModel, TextLayer
from vlmbatch.native_library import NativeLibrary

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("decode.cpp")
OPTIONS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fopenmp", "-w")
MAX_ROWS = 4
"""Most sequences of a native step. With more, products of packed matrices are as fast: their
weights are read once for all sequences, too, and computing takes the time.
"""
SPAN_TOKENS = 256
"""``SPAN`` of decode.cpp."""
WIDTH = 16
"""``WIDTH`` of decode.cpp: all sizes must be multiples."""
MAX_DIFFERENCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest difference from torch's logits, as a share of the largest logit, for the library to be
trusted. Sums in another order differ by 1e-6 in float32 and by 0.02 in bfloat16.
"""
CHECKED_LENGTHS = (SPAN_TOKENS - 1, 20)
"""Tokens of the sequences of the comparison; with the new one, the first fill a span."""

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

    @property
    def int8_bytes(self) -> int:
        """Bytes of the int8 matrices."""
        matrices = [self.head, *(matrix for layer in self.layers for matrix in layer.values())]
        return sum(each.weight.nbytes for each in matrices if each.weight.dtype == torch.int8)


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

    def logits(self, slots: Sequence[Slot], tokens: Sequence[int]) -> Tensor:
        """Store keys and values of one new token for each of at most ``rows`` sequences, and return
        float32 logits (sequences, vocabulary). The slots' lengths stay as they are.
        """
        chunks: dict[int, int] = {}
        addresses: list[int] = []
        spans: list[tuple[int, ...]] = []
        for row, slot in enumerate(slots):
            first = 0
            for piece in (*slot.shared, Piece(slot.extent, slot.own_length + 1)):
                chunk = piece.extent.chunk
                if chunk.serial not in chunks:
                    chunks[chunk.serial] = len(chunks)
                    addresses += _addresses(chunk)
                for begin in range(0, piece.tokens, SPAN_TOKENS):
                    count = min(SPAN_TOKENS, piece.tokens - begin)
                    place = chunk.layout.strides(self._shape, piece.extent, begin)
                    spans.append((row, first, count, chunks[chunk.serial], *place))
                    first += count
        threads = torch.get_num_threads()
        model = ctypes.byref(self._model)
        need = self._scratch_bytes(model, len(slots), len(spans), threads)
        if len(self._scratch) < need:
            self._scratch = torch.empty(need, dtype=torch.uint8)
        ids, positions = torch.tensor(tokens), torch.tensor([slot.length for slot in slots])
        places, pointers = torch.tensor(spans), torch.tensor(addresses)
        logits = torch.empty(len(slots), self._shape.vocabulary)
        self._decode(
            *(model, len(slots), ids.data_ptr(), positions.data_ptr()),
            *(len(spans), places.data_ptr(), pointers.data_ptr()),
            *(self._scratch.data_ptr(), threads, logits.data_ptr()),
        )
        return logits
