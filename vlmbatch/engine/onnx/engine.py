"""The ONNX engine: the torch engine's loop, with its steps computed by graphs."""

from __future__ import annotations

import dataclasses
from typing import Any

from vlmbatch.engine.onnx.cache import RowCache
from vlmbatch.engine.onnx.graphs import GraphModel
from vlmbatch.engine.onnx.steps import PaddedSteps
from vlmbatch.engine.torch.budget import MemoryBudget
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.engine.torch.recovery import Cleaner, Recovery
from vlmbatch.prepare import Preparer


@dataclasses.dataclass
class GraphBudget(MemoryBudget):
    """The memory budget of graphs.

    Attributes:
        file_bytes: Bytes of the graphs' files, as their weights are held.
    """

    file_bytes: int = 0

    @property
    def weight_bytes(self) -> int:
        """See ``MemoryBudget``."""
        return self.file_bytes

    @property
    def cache_bytes(self) -> int:
        """See ``MemoryBudget``: half, as a step writes keys and values anew beside the old ones."""
        return super().cache_bytes // 2


class OnnxEngine(TorchEngine):
    """Answer requests with loaded graphs. See ``Engine`` for the contract; one thread runs it."""

    name = "onnx"

    def __init__(
        self,
        model: GraphModel,
        budget: GraphBudget,
        preparer: Preparer,
        *,
        device: str,
        dtype: str,
        **options: Any,
    ) -> None:
        """Set up an engine around loaded graphs.

        Args:
            model: The graphs.
            budget: The memory budget.
            preparer: Makes requests of conversations, and text of tokens.
            device, dtype: See ``Engine``.
            options: The model's name, its revision, the tokens that end an answer and the batch
                size; see ``TorchEngine``.
        """
        network: Any = model
        super().__init__(network, budget, preparer, **options)
        self.device, self.dtype = device, dtype
        # Keys and values lie in padded batches; what has to do with them is replaced.
        token_bytes = model.shape.kv_bytes(model.dtype.itemsize)
        rows = RowCache(token_bytes, model.language.place, lambda: budget.cache_bytes)
        cache: Any = rows
        self.cache = cache
        decoders = preparer.decode, self.constraints
        self._steps = PaddedSteps(model, rows, self.stats, self._clock, *decoders)
        self._cleaner = Cleaner(cache, self.stats)
        self._recovery = Recovery(self.scheduler, cache, self.stats, self._cleaner)
