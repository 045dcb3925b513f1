"""State shared by the measurements: the subject, the sizes, and shared figures."""

from __future__ import annotations

import dataclasses
import functools
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

import vlmbatch
from vlmbatch.bench.ceilings import Ceiling, copy_ceiling, gemm_ceiling
from vlmbatch.bench.pictures import photo
from vlmbatch.bench.sizes import Sizes
from vlmbatch.bench.subject import Subject
from vlmbatch.core import Request
from vlmbatch.engine.torch.cpu.choices import KernelChoices
from vlmbatch.engine.torch.device import device_memory
from vlmbatch.errors import JobError
from vlmbatch.processor import processor_share

PROMPT = "Describe this image in one sentence."


class Comparison(Protocol):
    """Another implementation to compare phases with.

    Attributes:
        version: Its version.
    """

    version: str

    def prepare(self, path: Path) -> int:
        """Read a picture file and prepare it at full detail; return the number of tiles."""
        ...

    def decode_rate(self, sequences: int, prompt_tokens: int, new_tokens: int) -> float:
        """Decode alone; return tokens a second."""
        ...


@dataclasses.dataclass
class Bench:
    """One run of the benchmark.

    Attributes:
        subject: The model and device to measure.
        sizes: Amount of work.
        reference: Implementation to compare with, or None.
    """

    subject: Subject
    sizes: Sizes
    reference: Comparison | None = None
    _warm: bool = False

    @functools.cached_property
    def gemm(self) -> Ceiling:
        """The compute ceiling."""
        return gemm_ceiling(self.subject.shape, self.subject.device, self.subject.dtype, self.sizes)

    @functools.cached_property
    def copy(self) -> Ceiling:
        """The memory bandwidth ceiling."""
        return copy_ceiling(self.subject.device, self.sizes)

    def warm(self, requests: list[Request], max_new_tokens: int) -> None:
        """Warm up: allocation, compilation and tuning at first use. A GPU does the whole work once,
        a CPU one small request.
        """
        if self.subject.device.type != "cpu":
            self.subject.run(requests, max_new_tokens)
        elif not self._warm:
            self.subject.run(self.subject.requests([photo(0, 64, 64)], [PROMPT], "low"), 2)
            self._warm = True

    def choose_kernels_again(self) -> dict[str, Any]:
        """Forget the kernels that were chosen for this machine, open the engine, and return the
        state of the machine while it chose: ``EngineStats.kernel_choice``.

        Raises:
            EngineError: The engine cannot be opened.
            JobError: There is no choice on this device, or for so small a model.
        """
        KernelChoices(self.subject.options.cache_folder).forget()
        found = self.subject.engine.stats.kernel_choice
        if not found:
            raise JobError(
                "--retune chooses kernels of a CPU for models of the published sizes: leave it out"
            )
        return found

    def describe(self) -> dict[str, Any]:
        """Describe machine, versions and model, for the head of the table and for JSON."""
        subject, device = self.subject, self.subject.device
        share = processor_share()
        return {
            "vlmbatch": vlmbatch.__version__,
            "model": subject.name,
            "revision": subject.checkpoint.revision,
            "parameters": subject.shape.parameters,
            "device": str(device),
            "device_name": device_name(device),
            "memory_bytes": device_memory(device).total,
            "dtype": str(subject.dtype).removeprefix("torch."),
            "quantize": subject.quantize,
            "torch": str(torch.__version__),
            "threads": self.subject.threads,
            "cores": share.cores,
            "quota": share.quota,
            "share": share.describe(),
            "python": platform.python_version(),
            "transformers": self.reference.version if self.reference else None,
        }


def device_name(device: torch.device) -> str:
    """Vendor's name of the GPU or processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if sys.platform == "linux":
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def timed(call: Callable[[], object]) -> float:
    """Measure the wall seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
