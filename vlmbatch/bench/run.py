"""The benchmark from its settings to its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from vlmbatch.bench import workloads
from vlmbatch.bench.bench import Bench
from vlmbatch.bench.checkpoint import open_checkpoint
from vlmbatch.bench.phases import PHASES
from vlmbatch.bench.rows import Row
from vlmbatch.bench.sizes import NAMES, QUICK_NAMES, Sizes, choose_sizes
from vlmbatch.bench.subject import Subject
from vlmbatch.engine.torch.device import is_out_of_memory
from vlmbatch.errors import ItemError, JobError
from vlmbatch.job import EngineOptions


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        job: Model, device, number format and memory; without a model there are random weights.
        shape: The random weights' shape.
        model: A real checkpoint instead.
        only: What is measured; everything when empty.
        quick: Little of it.
        rounds: How often each side does a piece of work; None leaves it to the device.
        compare: Whether transformers reads, decodes and does the workloads, too.
    """

    job: EngineOptions
    shape: str = "256m"
    model: str | None = None
    only: Sequence[str] = ()
    quick: bool = False
    compare: Literal["transformers"] | None = None
    rounds: int | None = None

    def names(self) -> list[str]:
        """What is measured, in the order of the table.

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
    """Finds checkpoint, device and, where it is asked for, transformers.

    Args:
        settings: What to measure.
        sizes: How much of it; follows from the device, unless it is given.

    Raises:
        EngineError: The model or the device is not there.
        JobError: A name is unknown.
    """
    settings.names()
    checkpoint = open_checkpoint(settings.shape, settings.model, settings.job.revision)
    subject = Subject(settings.job, checkpoint, settings.model or settings.shape)
    bench = Bench(
        subject,
        sizes or choose_sizes(subject.device.type, quick=settings.quick, rounds=settings.rounds),
    )
    if settings.compare:
        from vlmbatch.bench.compare import Reference  # transformers takes seconds to import

        # Before the engine is opened, which takes its share of what memory is free then.
        bench.reference = Reference(subject)
    return bench


def run(
    bench: Bench, names: Sequence[str], starting: Callable[[str], None] = lambda name: None
) -> Iterator[Row]:
    """Measures, and gives each row as soon as it is known. What memory has no room for is a row
    that says so.

    Args:
        bench: From ``open_bench``.
        names: What to measure.
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
                yield Row(
                    name,
                    "failed",
                    None,
                    "",
                    " ".join(str(error).split()),
                    {"error_type": type(error).__name__},
                    failed=True,
                )
    finally:
        bench.subject.close()


def _measure(bench: Bench, name: str) -> Iterator[Row]:
    """A phase or a workload, compared where there is a reference."""
    if name in PHASES:
        return PHASES[name](bench)
    work = workloads.make(bench, name)
    if bench.reference is None:
        return workloads.measure(bench, work)
    from vlmbatch.bench.compare import Reference, compare

    assert isinstance(bench.reference, Reference)
    return compare(bench, bench.reference, work)
