"""Run the benchmark: from settings to rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from vlmbatch.bench import workloads
from vlmbatch.bench.bench import Bench
from vlmbatch.bench.checkpoint import cached_checkpoint
from vlmbatch.bench.phases import PHASES
from vlmbatch.bench.rows import Measurement
from vlmbatch.bench.sizes import NAMES, QUICK_NAMES, Sizes, choose_sizes
from vlmbatch.bench.subject import Subject
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.engine.torch.device import is_out_of_memory
from vlmbatch.errors import ItemError, JobError, one_line
from vlmbatch.job import EngineOptions


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        job: Model, device, dtype and memory; random weights are used without a model.
        shape: The random weights' shape.
        model: A real checkpoint in place of random weights.
        only: Names to measure; empty for everything.
        quick: Whether to measure less.
        rounds: Repetitions of each piece of work; None for the device's default.
        compare: Whether to measure transformers, too.
    """

    job: EngineOptions
    shape: str = "256m"
    model: str | None = None
    only: Sequence[str] = ()
    quick: bool = False
    compare: Literal["transformers"] | None = None
    rounds: int | None = None

    def names(self) -> list[str]:
        """List the measurements, in the order of the table.

        Raises:
            JobError: A name is unknown.
        """
        unknown = [name for name in self.only if name not in NAMES]
        if unknown:
            raise JobError(
                f"nothing called {unknown[0]!r} is measured; there is {', '.join(NAMES)}"
            )
        chosen = self.only or (QUICK_NAMES if self.quick else NAMES)
        return [name for name in NAMES if name in chosen]


def open_bench(settings: Settings, sizes: Sizes | None = None) -> Bench:
    """Find checkpoint, device and, if asked for, transformers.

    Args:
        settings: The settings.
        sizes: Amount of work; by default that of the device.

    Raises:
        EngineError: The model or the device is not available.
        JobError: A name is unknown.
    """
    settings.names()
    model = settings.model or str(cached_checkpoint(settings.shape))
    checkpoint = find_checkpoint(model, settings.job.revision)
    subject = Subject(settings.job, checkpoint, settings.model or settings.shape)
    bench = Bench(
        subject,
        sizes or choose_sizes(subject.device.type, quick=settings.quick, rounds=settings.rounds),
    )
    if settings.compare:
        from vlmbatch.bench.compare import Reference  # transformers takes seconds to import

        # Before the engine is opened, which reserves a share of the free memory.
        bench.reference = Reference(subject)
    return bench


def run(
    bench: Bench, names: Sequence[str], starting: Callable[[str], None] = lambda name: None
) -> Iterator[Measurement]:
    """Measure, and yield each row as soon as it is known. Out of memory becomes a row that says so.

    Args:
        bench: The result of ``open_bench``.
        names: The measurements.
        starting: Called with each name before it is measured.

    Raises:
        EngineError: The engine cannot go on.
    """
    try:
        for name in names:
            starting(name)
            try:
                yield from _measure(bench, name)
            except (ItemError, RuntimeError, MemoryError) as error:
                if not isinstance(error, ItemError) and not is_out_of_memory(error):
                    raise
                yield Measurement(
                    name,
                    "failed",
                    None,
                    "",
                    one_line(error),
                    {"error_type": type(error).__name__},
                    failed=True,
                )
    finally:
        bench.subject.close()


def _measure(bench: Bench, name: str) -> Iterator[Measurement]:
    """Measure a phase or a workload, compared with the reference if there is one."""
    if name in PHASES:
        return PHASES[name](bench)
    work = workloads.make(bench, name)
    if bench.reference is None:
        return workloads.measure(bench, work)
    from vlmbatch.bench.compare import Reference, compare

    assert isinstance(bench.reference, Reference)
    return compare(bench, bench.reference, work)
