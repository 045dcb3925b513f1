"""ONNX Runtime as an engine: the three graphs of a folder of the hub, or of a checkpoint that is
converted once.

Scheduling, budget, sampling and text are the torch engine's; keys and values lie in padded batches
(cache.py), as the graphs want them.
"""

from __future__ import annotations

from vlmbatch.engine.onnx.opening import plan_engine

__all__ = ["plan_engine"]
