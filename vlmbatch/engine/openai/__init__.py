"""A server with OpenAI's chat API as an engine: vLLM, Ollama, LM Studio, or ``vlmbatch serve``."""

from __future__ import annotations

from vlmbatch.engine.openai.opening import plan_engine

__all__ = ["plan_engine"]
