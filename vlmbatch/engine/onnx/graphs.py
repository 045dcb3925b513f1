"""Run the three graphs. What a published graph lacks or has in addition is settled here: masks,
positions, four or five dimensions of pixels, float16 inputs, merged or not.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch.engine.onnx.files import GraphFiles
from vlmbatch.engine.onnx.providers import LIBRARIES, Provider
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.errors import DeviceError, ModelLoadError, OutOfMemoryError

Array = npt.NDArray[Any]
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
"""numpy's type by ONNX Runtime's name."""
OUT_OF_MEMORY = re.compile("failed to allocate|bad_alloc|out of memory|bad allocation", re.I)
ERRORS_ONLY = 3
"""Severity of ONNX Runtime's messages that are shown."""


class Graph:
    """One graph in a session."""

    def __init__(self, path: Path, provider: Provider, threads: int) -> None:
        """Load it.

        Raises:
            ModelLoadError: It is broken.
            DeviceError: The provider does not work here.
            OutOfMemoryError: It does not fit.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = threads
        # Three sessions take turns, and readers want the cores: idle threads sleep.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Keys and values grow by a token a step; an arena would keep a block for each length.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        try:
            session = onnxruntime.InferenceSession(path, options, providers=[*provider.chain])
        except Exception as error:  # ONNX Runtime has an error class for each status
            text = " ".join(str(error).split())[:300]
            if OUT_OF_MEMORY.search(text):
                raise OutOfMemoryError(f"{path.name} did not fit: {text}") from error
            raise ModelLoadError(f"{path} cannot be opened by ONNX Runtime: {text}") from error
        first = provider.chain[0][0] if isinstance(provider.chain[0], tuple) else provider.chain[0]
        if first not in session.get_providers():
            raise DeviceError(
                f"ONNX Runtime's provider {provider.name} does not start here, as its libraries or "
                f"the device are missing: {LIBRARIES[provider.name]}; or use --device cpu"
            )
        self.path, self._session, self._provider = path, session, provider
        self.inputs = {each.name: TYPES.get(each.type, np.float32) for each in session.get_inputs()}
        self.ranks = {each.name: len(each.shape) for each in session.get_inputs()}
        self.outputs = [each.name for each in session.get_outputs()]

    def run(
        self, feeds: dict[str, Array], cache: dict[str, Any] | None = None
    ) -> dict[str, onnxruntime.OrtValue]:
        """Run it; outputs beside the cache come to the CPU, and no array is copied on one.

        Args:
            feeds: Inputs on the CPU; those that the graph lacks are left out.
            cache: Keys and values, which stay where the provider has them.

        Raises:
            MemoryError: Memory ran out.
        """
        binding = self._session.io_binding()
        held: list[Array] = []  # the binding refers to the memory
        for name, kind in self.inputs.items():
            if cache and name in cache:
                binding.bind_ortvalue_input(name, cache[name])
            elif name in feeds:
                held.append(np.ascontiguousarray(feeds[name], kind))
                binding.bind_cpu_input(name, held[-1])
        for name in self.outputs:
            is_kept = name.startswith("present")
            place = self._provider.cache_device if is_kept else "cpu"
            binding.bind_output(name, place, self._provider.index if place == "cuda" else 0)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            if OUT_OF_MEMORY.search(str(error)):
                raise MemoryError(" ".join(str(error).split())[:300]) from error
            raise
        return dict(zip(self.outputs, binding.get_outputs(), strict=True))

    def place(self, array: Array) -> onnxruntime.OrtValue:
        """Put keys or values where the provider has them; on a CPU without a copy."""
        place = self._provider.cache_device
        index = self._provider.index if place == "cuda" else 0
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, place, index)


class GraphVision:
    """The vision encoder, called as that of the torch engine."""

    def __init__(self, graph: Graph, shape: ModelShape, scale: Tensor, shift: Tensor) -> None:
        """Take the graph, and the pixel normalization ``x * scale + shift`` by channel."""
        self._graph, self._shape = graph, shape
        self._scale, self._shift = (each.view(1, 3, 1, 1) for each in (scale, shift))

    def __call__(self, tiles: Tensor) -> Tensor:
        """Encode tiles, uint8 (n, 3, E, E), to features (n, tile_tokens, text hidden)."""
        pixels = ((tiles.float() * self._scale).add_(self._shift)).numpy()
        edge = pixels.shape[-1]
        mask = np.ones((len(pixels), edge, edge), np.bool_)
        if self._graph.ranks["pixel_values"] == 5:
            pixels, mask = pixels[np.newaxis], mask[np.newaxis]
        out = self._graph.run({"pixel_values": pixels, "pixel_attention_mask": mask})
        features = out[self._graph.outputs[0]].numpy().astype(np.float32, copy=False)
        shape = len(tiles), self._shape.tile_tokens, self._shape.text.hidden
        return torch.from_numpy(np.array(features.reshape(shape)))


class GraphLanguage:
    """The embeddings and the language model.

    Attributes:
        cache_type: numpy's type of keys and values.
        attend_rows: Attention of the torch engine's cache, which stays empty.
    """

    attend_rows = staticmethod(F.scaled_dot_product_attention)

    def __init__(self, embedding: Graph, decoders: Sequence[Graph], shape: ModelShape) -> None:
        self._embedding, self._decoders, self.shape = embedding, decoders, shape.text
        first, last = decoders[0], decoders[-1]
        self._present = [name for name in first.outputs if name.startswith("present")]
        self._past = [name for name in last.inputs if name.startswith("past_key_values.")]
        if len(self._past) != 2 * shape.text.layers or len(self._present) != len(self._past):
            raise ModelLoadError(
                f"{last.path} has {len(self._past)} inputs of keys and values, config.json says "
                f"{shape.text.layers} layers"
            )
        self._present.sort(key=_layer)
        self._past.sort(key=_layer)
        self.cache_type = last.inputs[self._past[0]]

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings (N, hidden) of token ids (N,)."""
        out = self._embedding.run({"input_ids": ids.numpy()[np.newaxis]})
        embeds = out[self._embedding.outputs[0]].numpy().astype(np.float32, copy=False)
        return torch.from_numpy(np.array(embeds[0]))

    def __call__(
        self, embeds: Array, mask: Array, positions: Array, past: Sequence[Any]
    ) -> tuple[Tensor, list[Any]]:
        """Compute the logits of the last token of each row.

        Args:
            embeds: Float32 (rows, tokens, hidden).
            mask: Int64 (rows, past + tokens), 0 for padding.
            positions: Int64 (rows, tokens).
            past: Keys and values, OrtValues (rows, kv_heads, past, head_dim); none for an empty
                cache.

        Returns:
            Logits, float32 (rows, vocabulary), and the keys and values with the new tokens.
        """
        graph = self._decoders[-1 if past else 0]
        feeds = {
            "inputs_embeds": embeds,
            "attention_mask": mask,
            "position_ids": positions,
            "num_logits_to_keep": np.array(1),
            "use_cache_branch": np.array([bool(past)]),
        }
        if not past and self._past[0] in graph.inputs:
            size = len(embeds), self.shape.kv_heads, 0, self.shape.head_dim
            empty: Array = np.zeros(size, self.cache_type)
            past = [graph.place(empty)] * len(self._past)
        out = graph.run(feeds, dict(zip(self._past, past, strict=True)) if past else None)
        logits = out["logits"].numpy()[:, -1]
        return (
            torch.from_numpy(np.array(logits, np.float32)),
            [out[name] for name in self._present],
        )

    def place(self, array: Array) -> Any:
        """Put keys or values where the provider has them."""
        return self._decoders[-1].place(np.ascontiguousarray(array, self.cache_type))


def _layer(name: str) -> tuple[int, bool]:
    """Order of keys and values: by layer, keys first."""
    found = re.search(r"\.(\d+)\..*(key|value)", name)
    if found is None:
        raise ModelLoadError(f"{name} is no name of keys or values that is known")
    return int(found[1]), found[2] == "value"


@dataclasses.dataclass(frozen=True)
class GraphModel:
    """A loaded model; see ``Model`` of the torch engine.

    Attributes:
        device: Device of tiles, features and logits: the CPU.
        dtype: Number format of keys and values.
    """

    shape: ModelShape
    vision: GraphVision
    language: GraphLanguage
    device: torch.device
    dtype: torch.dtype
    quantized: bool = False


def load_graphs(
    files: GraphFiles,
    shape: ModelShape,
    normalization: tuple[Tensor, Tensor],
    provider: Provider,
    threads: int,
) -> GraphModel:
    """Load the graphs into sessions.

    Raises:
        ModelLoadError: One is broken.
        DeviceError: The provider does not work here.
        OutOfMemoryError: They do not fit.
    """
    vision, embedding, *decoders = (
        Graph(path, provider, threads) for path in (files.vision, files.embedding, *files.decoders)
    )
    language = GraphLanguage(embedding, decoders, shape)
    dtype = torch.float16 if language.cache_type is np.float16 else torch.float32
    encoder = GraphVision(vision, shape, *normalization)
    return GraphModel(shape, encoder, language, torch.device("cpu"), dtype)
