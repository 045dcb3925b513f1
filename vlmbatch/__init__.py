"""vlmbatch: captions, text and answers from folders of pictures and hours of video, with SmolVLM2.

    import vlmbatch
    summary = vlmbatch.run(vlmbatch.Job(inputs=("photos/",), task="caption", output="photos.jsonl"))

Importing this package loads neither torch nor pyarrow; the work does, when it begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmbatch.errors import (
    DecodeError,
    DeviceError,
    EngineError,
    GenerateError,
    ItemError,
    JobError,
    MissingDependencyError,
    ModelLoadError,
    OutOfMemoryError,
    OutputError,
    OutputLockedError,
    PrepareError,
    ReadError,
    TooManyErrors,
    VlmbatchError,
)

if TYPE_CHECKING:
    from vlmbatch.core import Record
    from vlmbatch.job import Job
    from vlmbatch.run.pipeline import run

__version__ = "0.1.0"

__all__ = [
    "DecodeError",
    "DeviceError",
    "EngineError",
    "GenerateError",
    "ItemError",
    "Job",
    "JobError",
    "MissingDependencyError",
    "ModelLoadError",
    "OutOfMemoryError",
    "OutputError",
    "OutputLockedError",
    "PrepareError",
    "ReadError",
    "Record",
    "TooManyErrors",
    "VlmbatchError",
    "__version__",
    "run",
]

_LAZY = {"Job": "vlmbatch.job", "Record": "vlmbatch.core", "run": "vlmbatch.run.pipeline"}


def __getattr__(name: str) -> Any:
    """Loads what is used, when it is used."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
