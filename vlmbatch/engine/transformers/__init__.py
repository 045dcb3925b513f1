"""transformers as an engine: any image-text-to-text model that needs no torchvision, and the
reference for the other engines.

Pixels, words and tokens are transformers' own work from end to end: its image processors, its chat
templates, its ``generate``. Nothing of ``prepare/`` is used, so that equal answers mean something.
"""

from __future__ import annotations

from vlmbatch.engine.transformers.opening import plan_engine

__all__ = ["plan_engine"]
