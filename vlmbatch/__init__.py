"""vlmbatch: captions, text and answers from folders of pictures and hours of video, with SmolVLM2.

    import vlmbatch
    summary = vlmbatch.run(vlmbatch.Job(inputs=["photos/"], task="caption", output="photos.jsonl"))
    table = vlmbatch.read("photos.jsonl")

    with vlmbatch.Model("demo") as model:
        for record in model.ask("photos/", "What is this?"):
            print(record.id, record.text)

Importing this package loads neither torch nor transformers nor pyarrow; the work does, when it
begins.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

from vlmbatch.errors import (
    DecodeError,
    DeviceError,
    EngineError,
    GenerateError,
    IncompleteAnswer,
    ItemError,
    JobError,
    MissingDependencyError,
    ModelLoadError,
    NothingFound,
    OtherSettingsError,
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
    from vlmbatch.model import Model, Reply, ReplyStream
    from vlmbatch.run.from_python import run
    from vlmbatch.write.records import read

__version__ = "0.1.0"

__all__ = [
    "DecodeError",
    "DeviceError",
    "EngineError",
    "GenerateError",
    "IncompleteAnswer",
    "ItemError",
    "Job",
    "JobError",
    "MissingDependencyError",
    "Model",
    "ModelLoadError",
    "OutOfMemoryError",
    "OtherSettingsError",
    "OutputError",
    "OutputLockedError",
    "PrepareError",
    "ReadError",
    "Record",
    "Reply",
    "ReplyStream",
    "NothingFound",
    "TooManyErrors",
    "VlmbatchError",
    "__version__",
    "read",
    "run",
]

_LAZY = {
    "Job": "vlmbatch.job",
    "Model": "vlmbatch.model",
    "Record": "vlmbatch.core",
    "Reply": "vlmbatch.model",
    "ReplyStream": "vlmbatch.model",
    "read": "vlmbatch.write.records",
    "run": "vlmbatch.run.from_python",
}


def __getattr__(name: str) -> Any:
    """Loads what is used, when it is used."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """The package, in which ``run`` and ``read`` stay functions: an import of the packages of these
    names would put those in their place.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _LAZY and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
