"""Errors of an OUTPUT that cannot be read: whether it is somebody else's file, or one of ours with
a line that an edit has broken.
"""

from __future__ import annotations

from pathlib import Path

from vlmbatch.errors import OutputError
from vlmbatch.write.atomic import beside


class DamagedRowError(OutputError):
    """A row is not a record.

    Args:
        number: Number of its line, from 1; of the last one where it has several.
        why: What is wrong with it.
        unit: What is counted.
    """

    def __init__(self, number: int, why: str, unit: str = "line") -> None:
        super().__init__(f"{unit} {number} is not a record")
        self.why, self.unit = why, unit


def unreadable(path: Path, error: OutputError, num_rows: int, *, of_run: bool) -> OutputError:
    """Return the error for a user.

    Args:
        path: OUTPUT.
        error: What its format says.
        num_rows: Number of rows that were read before.
        of_run: Whether a run goes on with OUTPUT, which may replace it.
    """
    if not num_rows and not beside(path, ".journal").exists():
        whole = f"{path} was not written by vlmbatch ({error})"
        return OutputError(f"{whole}; --overwrite replaces it" if of_run else whole)
    anew = "; --overwrite starts anew, without its answers and corrections" if of_run else ""
    if isinstance(error, DamagedRowError):
        return OutputError(
            f"{path} has a row that was not written by vlmbatch ({error}: {error.why}): repair or "
            f"delete this {error.unit}; what is deleted is asked about again{anew}"
        )
    return OutputError(
        f"{path} was not written by vlmbatch ({error}), but a file that was is described beside "
        f"it, in {path.name}.journal: put that file back in its place{anew}"
    )
