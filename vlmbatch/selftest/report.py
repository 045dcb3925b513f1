"""The report: checks and figures as lines, and as JSON that names no folder, host or user."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import vlmbatch
from vlmbatch.bench.bench import device_name
from vlmbatch.engine import Engine
from vlmbatch.engine.torch.device import device_memory
from vlmbatch.job import EngineOptions
from vlmbatch.processor import processor_share
from vlmbatch.selftest.checks import Check

FORMAT = 1
PACKAGES = (
    *("torch", "transformers", "onnxruntime", "onnxruntime-gpu", "xllamacpp", "numpy"),
    *("pillow", "av", "tokenizers", "safetensors"),
)
_URL = re.compile(r"\b(https?)://[^\s/'\"]+")
_PATH = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\":;,()]+){2,}")


@dataclasses.dataclass
class Report:
    """Checks and figures of one self-test.

    Attributes:
        checks: The checks, in order.
        engine: The engine and its device.
        agreement: Figures of agreement, by check.
        speed: Rates, of the engine and of the reference.
        memory: Bytes seen, predicted and allowed.
    """

    checks: list[Check] = dataclasses.field(default_factory=list)
    engine: dict[str, Any] = dataclasses.field(default_factory=dict)
    agreement: dict[str, Any] = dataclasses.field(default_factory=dict)
    speed: dict[str, Any] = dataclasses.field(default_factory=dict)
    memory: dict[str, Any] = dataclasses.field(default_factory=dict)

    def add(self, check: Check) -> None:
        """Add a check."""
        self.checks.append(check)

    @property
    def is_well(self) -> bool:
        """True if no check failed."""
        return not any(check.status == "fail" for check in self.checks)

    def describe_engine(self, engine: Engine, options: EngineOptions) -> None:
        """Note an engine that is open."""
        kind = engine.device.partition(":")[0]
        is_torch_device = kind in ("cpu", "cuda", "mps")
        device = torch.device(engine.device) if is_torch_device else torch.device("cpu")
        self.engine = {
            "name": engine.name,
            "model": Path(engine.model).name if Path(engine.model).exists() else engine.model,
            "revision": engine.revision,
            "device": engine.device,
            "device_name": device_name(device) if is_torch_device else "",
            "device_memory_bytes": device_memory(device).total if is_torch_device else None,
            "dtype": engine.dtype,
            "quantize": options.quantize,
            "kernels": engine.stats.kernels,
            "threads": engine.stats.threads,
        }

    def lines(self) -> Iterator[str]:
        """Write a line for each check, and one that sums up."""
        what = self.engine
        name = f" ({what['device_name']})" if what["device_name"] else ""
        dtype = f" in {what['dtype']}" if what["dtype"] else ""
        yield f"{what['name']}, {what['model']}, on {what['device'] or 'its device'}{name}{dtype}"
        for check in self.checks:
            yield f"{check.status}  {check.name:<20}{check.found}"
            if check.advice and check.status in ("warn", "fail"):
                yield f"      {'':<20}-> {check.advice}"
        failed = [check.name for check in self.checks if check.status == "fail"]
        warned = [check.name for check in self.checks if check.status == "warn"]
        last = f"broken: {', '.join(failed)}" if failed else "all is well"
        yield f"{last}; to know: {', '.join(warned)}" if warned else last

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        share = processor_share()
        found: dict[str, Any] = {
            "format": FORMAT,
            "is_well": self.is_well,
            "vlmbatch": vlmbatch.__version__,
            "python": platform.python_version(),
            "system": platform.system(),
            "machine": platform.machine(),
            "processor": device_name(torch.device("cpu")),
            "cores": share.cores,
            "quota": share.quota,
            "memory_bytes": device_memory(torch.device("cpu")).total,
            "cuda": torch.version.cuda,
            "packages": dict(_versions()),
            "engine": self.engine,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "agreement": self.agreement,
            "speed": self.speed,
            "memory": self.memory,
        }
        return {key: _without_names(value) for key, value in found.items()}


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _without_names(value: Any) -> Any:
    """Remove hosts, and folders of paths, from all texts."""
    if isinstance(value, dict):
        return {key: _without_names(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_names(each) for each in value]
    return without_names(value) if isinstance(value, str) else value


def without_names(text: str) -> str:
    """Remove hosts of URLs, and folders of paths, from a text: they may tell who somebody is."""
    text = _URL.sub(r"\1://HOST", text)
    return _PATH.sub(lambda found: ".../" + re.split(r"[/\\]", found[0])[-1], text)
