"""llama.cpp's server as an engine: GGUF files, and checkpoints that are converted once.

The prompts and the pixels are ours (``prepare/``), so that the words are those of the checkpoint's
own processor; llama.cpp encodes, decodes and samples.
"""

from __future__ import annotations

from vlmbatch.engine.llama_server.opening import plan_engine

__all__ = ["plan_engine"]
