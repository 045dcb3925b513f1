"""Engines: requests in, completions out. ``ENGINES`` has one row each; an engine's libraries are
imported when it is planned or opened.
"""

from __future__ import annotations

from vlmbatch.engine.base import Engine, EnginePlan, EngineStats
from vlmbatch.engine.choice import ENGINES, EngineChoice, open_engine, plan_engine
from vlmbatch.engine.queue import RequestQueue

__all__ = [
    "ENGINES",
    "Engine",
    "EngineChoice",
    "EnginePlan",
    "EngineStats",
    "RequestQueue",
    "open_engine",
    "plan_engine",
]
