"""The engine that answers, and the OUTPUT that takes its answers.

An OUTPUT belongs to one engine, so neither is chosen without the other. Of several engines, the
first that opens begins an OUTPUT, and that one continues it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TextIO

from vlmbatch.engine import Engine, EngineChoice, EnginePlan
from vlmbatch.errors import JobError
from vlmbatch.job import Job
from vlmbatch.write import Writer, open_output, open_sidecars
from vlmbatch.write.sidecars.sidecar import Sidecars


class EngineAndOutput:
    """An engine and its OUTPUT.

    Attributes:
        plan: The engine.
        engine: It, once it is open.
        identity: The settings that OUTPUT belongs to.
        writer: OUTPUT.
        sidecars: Files beside the videos, if the job asks for them.
    """

    identity: dict[str, Any]
    writer: Writer
    sidecars: Sidecars | None

    def __init__(
        self, job: Job, engine: Engine | None, *, stdout: TextIO | None, run_id: str
    ) -> None:
        """Find the engine, and open OUTPUT for it. No model is loaded.

        Args:
            job: The job.
            engine: An open engine, in place of those that the job names.
            stdout: Target of the OUTPUT ``-``.
            run_id: Id of the run.

        Raises:
            JobError: The engine cannot honour an option.
            ModelLoadError: The checkpoint is missing.
            OutputError: OUTPUT cannot be written, or was made with other settings.
        """
        self._job, self._stdout, self._run_id, self.engine = job, stdout, run_id, engine
        self._choice = None if engine else EngineChoice(job)
        if self._choice is None:
            assert engine is not None
            self._take(EnginePlan.of(engine))
            return
        self._choice.settle(self._take)
        if self._has_rows and not job.redo:
            self._choice.keep()

    @property
    def is_undecided(self) -> bool:
        """True if OUTPUT takes whichever of several engines opens first."""
        return self._choice is not None and self._choice.has_others

    def open(self, changed: Callable[[], None] = lambda: None) -> Engine:
        """Return the engine, opened if it is not yet.

        Args:
            changed: Is told when plan, identity, writer and sidecars are those of another engine.

        Raises:
            EngineError, MissingDependencyError: It does not open; of several, none does.
            JobError: The one that is left cannot honour an option.
        """

        def take(plan: EnginePlan) -> None:
            self.writer.close(finished=False)
            self._take(plan)
            changed()

        if self.engine is None:
            assert self._choice is not None
            self.engine = self._choice.open(continued=self._has_rows, taken=take)
        return self.engine

    @property
    def _has_rows(self) -> bool:
        return any(self.writer.totals().values())

    def _take(self, plan: EnginePlan) -> None:
        """Open OUTPUT for the answers of an engine."""
        job = self._job
        _check_plan(job, plan)
        self.plan = plan
        self.identity = {
            "engine": plan.name,
            **job.identity(),
            "model": plan.model,
            "revision": plan.revision,
        }
        self.writer = open_output(job, self.identity, stream=self._stdout, run_id=self._run_id)
        self.sidecars = open_sidecars(job, self.writer.path)


def _check_plan(job: Job, plan: EnginePlan) -> None:
    """Refuse options that the engine or its model cannot honour."""
    if job.per == "tile" and not plan.can_cut:
        raise JobError(f"the engine {plan.name} does not cut pictures: leave out --per tile")
    if job.constraint_option is not None and not plan.takes_constraints:
        raise JobError(
            f"the engine {plan.name} has no --{job.constraint_option}; the torch engine has"
        )
    if job.is_clip and not plan.takes_clips:
        raise JobError(
            f"{plan.model} takes pictures, no video: leave out --per {job.per} to ask about single "
            "frames, or take a SmolVLM2 model"
        )
