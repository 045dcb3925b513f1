"""Choose among the engines that a job names: the first that opens answers."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
from collections.abc import Callable

from vlmbatch.engine.base import Engine, EnginePlan
from vlmbatch.errors import EngineError, MissingDependencyError, OtherSettingsError, one_line
from vlmbatch.job import EngineOptions

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
NOT_OPEN = (EngineError, MissingDependencyError)
"""Errors after which the next engine is tried. An option that an engine cannot honour is none."""


class EngineChoice:
    """The engines of a job, in order. Each choice and its reason are logged if there are several.

    Attributes:
        plan: The engine at hand: its files were found, nothing is loaded.
    """

    def __init__(self, options: EngineOptions) -> None:
        """Take the first engine whose files are there.

        Raises:
            JobError: An engine cannot honour an option.
            ModelLoadError: There is no such model, or it is of another kind.
            MissingDependencyError: The engine needs a package that is not installed.
        """
        self._options, self._others, self._is_kept = options, list(options.engines), False
        self.plan = self._next()

    @property
    def has_others(self) -> bool:
        """True if there are engines to try after this one."""
        return bool(self._others)

    def settle(self, begin: Callable[[EnginePlan], None]) -> None:
        """Begin or continue OUTPUT with the engine at hand, or with the one of those after it that
        began it.

        Args:
            begin: Opens OUTPUT for an engine; raises OtherSettingsError if it belongs to another.
        """
        while True:
            try:
                begin(self.plan)
                return
            except OtherSettingsError as error:
                if "engine" not in error.names or not self._others:
                    raise
                self._say(self.plan.name, "another one began OUTPUT")
                self.plan = self._next()

    def keep(self) -> None:
        """Take no other engine: the one at hand began OUTPUT."""
        self._others.clear()
        self._is_kept = len(self._options.engines) > 1

    def open(
        self,
        *,
        reuse_prefixes: bool = False,
        continued: bool = False,
        taken: Callable[[EnginePlan], None] = lambda plan: None,
    ) -> Engine:
        """Load the model with the engine at hand, or else with the first after it that opens.

        Args:
            reuse_prefixes: See ``open_engine``.
            continued: See ``EnginePlan.open_for``.
            taken: Is told of each engine that comes after the one at hand, before it is opened.

        Raises:
            EngineError, MissingDependencyError: The last one does not open.
        """
        while True:
            plan = self.plan
            try:
                if reuse_prefixes and plan.open_reusing:
                    engine = plan.open_reusing()
                else:
                    engine = plan.open_for(continued=continued)
            except NOT_OPEN as error:
                if self._is_kept:
                    raise type(error)(
                        f"engine {plan.name}: {error}; it began OUTPUT, which no other continues: "
                        "--overwrite starts it anew"
                    ) from error
                if not self._others:
                    raise
                self._say(plan.name, one_line(error))
                self.plan = self._next()
                taken(self.plan)
            else:
                if len(self._options.engines) > 1:
                    logger.warning("engine %s answers", plan.name)
                return engine

    def _next(self) -> EnginePlan:
        """Plan the next engine that can be planned."""
        while True:
            name = self._others.pop(0)
            try:
                plan: EnginePlan = importlib.import_module(ENGINES[name]).plan_engine(self._options)
                return plan
            except NOT_OPEN as error:
                if not self._others:
                    raise
                self._say(name, one_line(error))

    def _say(self, name: str, reason: str) -> None:
        logger.warning("engine %s: %s; trying %s", name, reason, self._others[0])


def plan_engine(options: EngineOptions) -> EnginePlan:
    """Find the model of an engine, without loading it.

    Of several engines, the plan is that of the first whose files are there; opening it opens the
    first that can be opened, which may be another one.

    Args:
        options: The groups of a job that an engine is opened from.

    Raises:
        JobError: The engine cannot honour an option.
        ModelLoadError: There is no such model, or it is of another kind.
        MissingDependencyError: The engine needs a package that is not installed.
    """
    choice = EngineChoice(options)
    if len(options.engines) == 1:
        return choice.plan
    return dataclasses.replace(
        choice.plan,
        open=choice.open,
        open_reusing=functools.partial(choice.open, reuse_prefixes=True),
        open_again=None,
    )


def open_engine(options: EngineOptions, *, reuse_prefixes: bool = False) -> Engine:
    """Open an engine: find the model's files and load them. Of several, the first that opens.

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
    return EngineChoice(options).open(reuse_prefixes=reuse_prefixes)
