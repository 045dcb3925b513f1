"""Every error that vlmbatch raises on purpose.

```
VlmbatchError                     exit 1
├── JobError(ValueError)          a bad option, pipeline file or question file                 exit
2 ├── MissingDependencyError        an extra that is not installed, named in the message
exit 2 ├── ItemError                     one item; it becomes an error row and the run goes on
 exit 3 at the end │   ├── ReadError                 the bytes cannot be had (missing, not
 permitted, too large)
│   ├── DecodeError               the bytes are not the picture or video they claim to be
│   ├── PrepareError              the pixels or words cannot be made into a request
│   └── GenerateError             the model could not answer this request
├── EngineError                   the run cannot go on; what was finished is committed         exit
1 │   ├── ModelLoadError            the checkpoint is missing, incomplete or of another kind
│   ├── OutOfMemoryError          the model, or a batch of one, does not fit
│   └── DeviceError               the device or dtype that was asked for is not there
├── OutputError                   OUTPUT cannot be written or belongs to other settings        exit
1 │   └── OutputLockedError         another run holds OUTPUT
exit 75 └── TooManyErrors                 `--max-errors` was reached
  exit 4
```

Exceptions of other libraries are translated where they arise, with ``raise … from``.
"""

from __future__ import annotations


class VlmbatchError(Exception):
    """Base of every error that vlmbatch raises on purpose."""

    exit_code = 1


class JobError(VlmbatchError, ValueError):
    """A bad option, pipeline file or question file."""

    exit_code = 2


class MissingDependencyError(VlmbatchError):
    """A feature needs a package that is not installed."""

    exit_code = 2


class ItemError(VlmbatchError):
    """One item could not be answered. The run goes on."""

    exit_code = 3


class ReadError(ItemError):
    """The bytes of an item cannot be had."""


class DecodeError(ItemError):
    """The bytes of an item are not the picture or video they claim to be."""


class PrepareError(ItemError):
    """The pixels or words of an item cannot be made into a request."""


class GenerateError(ItemError):
    """The model could not answer a request."""


class EngineError(VlmbatchError):
    """The run cannot go on."""


class ModelLoadError(EngineError):
    """The checkpoint is missing, incomplete or of another kind."""


class OutOfMemoryError(EngineError):
    """The model, or a batch of one, does not fit into memory."""


class DeviceError(EngineError):
    """The device or dtype that was asked for is not there."""


class OutputError(VlmbatchError):
    """OUTPUT cannot be written, or belongs to other settings."""


class OutputLockedError(OutputError):
    """Another run holds OUTPUT."""

    exit_code = 75


class TooManyErrors(VlmbatchError):
    """The limit of ``--max-errors`` was reached."""

    exit_code = 4


def one_line(error: BaseException) -> str:
    """What an exception says, on one line; an error of the operating system or of ffmpeg without
    number and path.
    """
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()) or type(error).__name__
