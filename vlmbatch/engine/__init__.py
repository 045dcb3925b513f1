"""Engines: requests in, completions out. ``ENGINES`` has one row each; an engine's libraries are
imported when it is planned or opened.
"""

from __future__ import annotations

import importlib
import logging

from vlmbatch.engine.base import Engine, EnginePlan, EngineStats
from vlmbatch.engine.queue import RequestQueue
from vlmbatch.errors import MissingDependencyError, ModelLoadError
from vlmbatch.job import EngineOptions

__all__ = [
    "ENGINES",
    "Engine",
    "EnginePlan",
    "EngineStats",
    "RequestQueue",
    "open_engine",
    "plan_engine",
]

logger = logging.getLogger(__name__)

ENGINES = {
    "torch": "vlmbatch.engine.torch.opening",
    "transformers": "vlmbatch.engine.transformers",
    "onnx": "vlmbatch.engine.onnx",
    "llama-server": "vlmbatch.engine.llama_server",
    "openai": "vlmbatch.engine.openai",
}
"""The module of each engine by name; its ``plan_engine(options) -> EnginePlan`` finds the model's
files.
"""


def plan_engine(options: EngineOptions) -> EnginePlan:
    """Find the model of an engine, without loading it.

    Of several engines, take the first that the model and this machine support, and log the choice
    and its reason.

    Args:
        options: The groups of a job that an engine is opened from.

    Raises:
        JobError: The engine cannot honour an option.
        ModelLoadError: There is no such model, or it is of another kind.
        MissingDependencyError: The engine needs a package that is not installed.
    """
    *others, last = options.engines
    for name in others:
        try:
            plan = _plan(name, options)
        except (ModelLoadError, MissingDependencyError) as error:
            logger.warning("engine %s: %s; trying the next one", name, error)
            continue
        logger.warning("engine %s answers", name)
        return plan
    plan = _plan(last, options)
    if others:
        logger.warning("engine %s answers", last)
    return plan


def open_engine(options: EngineOptions, *, reuse_prefixes: bool = False) -> Engine:
    """Open an engine: find the model's files and load them.

    Args:
        options: The groups of a job that an engine is opened from.
        reuse_prefixes: Whether a prompt that begins as an earlier one did, its answer included,
            continues it, where the engine can: for chats and servers. It then keeps what it has
            computed, within its memory budget.

    Raises:
        JobError: The engine cannot honour an option.
        ModelLoadError: The checkpoint is missing, broken or of another kind.
        MissingDependencyError: The engine needs a package that is not installed.
        DeviceError: The device or dtype is not available.
        OutOfMemoryError: The model does not fit; nothing was loaded.
    """
    plan = plan_engine(options)
    return plan.open_reusing() if reuse_prefixes and plan.open_reusing else plan.open()


def _plan(name: str, options: EngineOptions) -> EnginePlan:
    plan: EnginePlan = importlib.import_module(ENGINES[name]).plan_engine(options)
    return plan
