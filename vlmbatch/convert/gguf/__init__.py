"""GGUF: the two files that llama.cpp reads, the language model and the vision encoder with its
connector (``mmproj``).

Names, order and types are those of llama.cpp's own ``convert_hf_to_gguf.py`` (its classes
``LlamaModel`` and ``SmolVLMModel``); weights go from file to file one tensor at a time.
"""

from __future__ import annotations

from vlmbatch.convert.gguf.conversion import convert

__all__ = ["convert"]
