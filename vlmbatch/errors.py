"""The tree of errors that vlmbatch raises on purpose, each with its exit code.

    VlmbatchError                   1
    ├── JobError(ValueError)        2   a bad option, job file or question file
    ├── MissingDependencyError      2   a package that is not installed; the message names the extra
    ├── ItemError                   3   one item; it becomes an error row and the run goes on
    │   ├── ReadError                   the bytes cannot be read: missing, not permitted, too large
    │   ├── DecodeError                 the bytes are no picture or video, or a broken one
    │   ├── PrepareError                the pixels or words cannot be made into a request
    │   ├── GenerateError               the model could not answer the request
    │   └── IncompleteAnswer            a constrained answer ended before it was whole
    ├── EngineError                 1   the run cannot go on; finished rows are committed
    │   ├── ModelLoadError              the checkpoint is missing, incomplete or of another kind
    │   ├── OutOfMemoryError            the model, or a batch of one, does not fit
    │   └── DeviceError                 the requested device or dtype is not available
    ├── OutputError                 1   OUTPUT cannot be written
    │   ├── OtherSettingsError      1   OUTPUT belongs to other settings
    │   └── OutputLockedError      75   another run holds OUTPUT
    ├── NothingFound               66   there is nothing to ask about, and ``--allow-empty`` is off
    └── TooManyErrors               4   the limit of ``--max-errors`` was reached

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
    """The bytes of an item cannot be read."""


class DecodeError(ItemError):
    """The bytes of an item are no picture or video, or a broken one."""


class PrepareError(ItemError):
    """The pixels or words of an item cannot be made into a request."""


class GenerateError(ItemError):
    """The model could not answer a request."""


class IncompleteAnswer(ItemError):
    """A constrained answer was cut off before it was whole."""


class EngineError(VlmbatchError):
    """The run cannot go on."""


class ModelLoadError(EngineError):
    """The checkpoint is missing, incomplete or of another kind."""


class OutOfMemoryError(EngineError):
    """The model, or a batch of one, does not fit into memory."""


class DeviceError(EngineError):
    """The requested device or dtype is not available."""


class OutputError(VlmbatchError):
    """OUTPUT cannot be written, or belongs to other settings."""


class OtherSettingsError(OutputError):
    """OUTPUT was made with other settings.

    Attributes:
        names: Their names.
    """

    def __init__(self, message: str, names: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.names = names


class OutputLockedError(OutputError):
    """Another run holds OUTPUT."""

    exit_code = 75


class NothingFound(VlmbatchError):
    """There is nothing to ask about: no file, page, frame or question of the job is there."""

    exit_code = 66


class TooManyErrors(VlmbatchError):
    """The limit of ``--max-errors`` was reached."""

    exit_code = 4


def one_line(error: BaseException) -> str:
    """Return the message of an exception on one line.

    Errors of the operating system and of ffmpeg are given without number and path.
    """
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()) or type(error).__name__
