"""Decode steps of few sequences in one native call: ``decode.cpp``, compiled on first use.

The compiler runs in the background while the engine answers without it, once for a processor and a
model's shape. Before the library is used, a step of it is compared with one of torch.
"""

from __future__ import annotations

import ctypes
import logging
import math
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlmbatch.engine.torch.attention import attend_prompt
from vlmbatch.engine.torch.cache import Cache, DecodeAttention, PrefillAttention, Segment, Slot
from vlmbatch.engine.torch.cache.pool import Chunk
from vlmbatch.engine.torch.cache.prefixes import Piece
from vlmbatch.engine.torch.cache.slots import piece_views
from vlmbatch.engine.torch.linear import Linear, QuantizedLinear
from vlmbatch.engine.torch.model import LanguageModel, TextLayer
from vlmbatch.native_library import NativeLibrary

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("decode.cpp")
OPTIONS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fopenmp", "-w")
MAX_ROWS = 64
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
        and embedding.dtype in MAX_DIFFERENCE
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


class BackgroundDecoder:
    """The native decoder of a model, as soon as there is one."""

    def __init__(self, weights: NativeWeights, library: NativeLibrary) -> None:
        """Load the library, or start to compile it."""
        self._weights, self._library = weights, library
        self._compiler: subprocess.Popen[bytes] | None = None
        self._decoder = self._load()
        if self._decoder is None:
            self._compiler = library.compile()

    def get(self, rows: int) -> NativeDecoder | None:
        """Return the decoder for a step of so many sequences; None if torch should do it."""
        if rows > MAX_ROWS:
            return None
        if self._compiler is not None and self._compiler.poll() is not None:
            self._compiler = None
            self._decoder = self._load()
        return self._decoder

    def wait(self) -> bool:
        """Wait for the compiler, for measurements and tests. Return whether there is a decoder."""
        if self._compiler is not None:
            self._compiler.wait()
        return self.get(1) is not None

    def _load(self) -> NativeDecoder | None:
        library = self._library.load()
        if library is None:
            return None
        decoder = NativeDecoder(library, self._weights)
        language = self._weights.language
        difference = difference_from_torch(decoder, language)
        if difference <= MAX_DIFFERENCE[language.embedding.dtype]:
            return decoder
        logger.warning(
            "the compiled decode step is not used: its logits differ by %.2g of the largest",
            difference,
        )
        return None


@torch.inference_mode()
def difference_from_torch(decoder: NativeDecoder, language: LanguageModel) -> float:
    """Decode a token of two sequences natively and by torch. Return the largest difference of the
    logits, as a share of the largest one; infinity if a number is not finite.
    """
    shape, embedding = language.shape, language.embedding
    cache = Cache(shape, embedding.device, embedding.dtype, language.attend_rows)
    slots: list[Slot] = []
    for tokens in CHECKED_LENGTHS:
        slot = cache.take(tokens + 1)
        assert slot is not None  # the cache has no limit
        ids = torch.arange(tokens) * 7919 % shape.vocabulary
        attend = PrefillAttention([Segment(slot, tokens)], attend_prompt)
        language(language.embed(ids), torch.arange(tokens), attend)
        attend.finish()
        slots.append(slot)
    ids = torch.arange(len(slots))
    native = decoder.logits(slots, ids.tolist())
    step = DecodeAttention(cache, slots)
    order = torch.tensor([slots.index(slot) for slot in step.slots])
    positions = torch.tensor([slot.length for slot in step.slots])
    expected = language.logits(language(language.embed(ids[order]), positions, step))
    share = ((native[order] - expected).abs().max() / expected.abs().max()).item()
    return share if math.isfinite(share) else math.inf


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
