"""A look at an OUTPUT without holding it: which rows a run would make."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from vlmbatch.errors import ItemError, OutputError
from vlmbatch.job import Job
from vlmbatch.urls import is_url, url_name, without_credentials
from vlmbatch.write.atomic import beside
from vlmbatch.write.formats import find_format
from vlmbatch.write.journal import JournalScan
from vlmbatch.write.known.known_rows import KnownRows
from vlmbatch.write.known.row_index import key_digest
from vlmbatch.write.remote.file import RemoteFile
from vlmbatch.write.summary import read_summary

RowPlan: TypeAlias = Literal["new", "changed", "again", "done", "left"]
"""``new``: there is no such row. ``changed``: its file has changed. ``again``: it is asked for
again, by ``--retry-errors`` or ``--redo``. ``left``: there is no such row, and ``--redo`` makes
none.
"""

_HUB_NAMES = ("torch", "transformers")
"""Engines whose models are called as the job calls them."""


class OutputLook:
    """Tells what a run would do about a row. Nothing is written, no lock is taken.

    Args:
        output: OUTPUT, a file of this disk that need not be there.
        job: The job.

    Raises:
        OutputError: OUTPUT cannot be read, or was made with other settings.
    """

    def __init__(self, output: Path, job: Job) -> None:
        self._job = job
        output = Path(os.path.realpath(output))
        self._known = KnownRows(
            output,
            find_format(output),
            _identity(output, job),
            overwrite=job.overwrite,
            name=without_credentials(job.output_path),
            redo=bool(job.redo),
            reads_only=True,
        )
        self._chosen = self._known.chosen(job.redo, job.task) if job.redo else None

    def plan(
        self,
        id: str,
        prompt: str,
        source: str,
        fingerprint: str,
        digest: Callable[[], str] | None,
    ) -> RowPlan:
        """Return what the run would do about a row. Arguments are those of ``Writer.done``."""
        task = self._job.task
        if self._chosen is not None:
            if self._known.state(id, task, prompt, source, "", retry_errors=False) == "new":
                return "left"
            if key_digest(id, task, prompt) not in self._chosen:
                return "done"
            self._known.note_other_file(id, task, prompt, source, "replaced")
            return "again"
        row = (id, task, prompt, source, fingerprint)
        state = self._known.state(*row, retry_errors=False)
        if state in ("touched", "other"):
            is_same = False
            with contextlib.suppress(ItemError):
                is_same = digest is not None and self._known.has_content(*row, digest())
            if state == "other" and not is_same:
                self._known.note_other_file(id, task, prompt, source, "kept")
            state = "done" if is_same or state == "other" else "changed"
        if state == "new":
            return "new"
        if state == "changed":
            self._known.note_other_file(id, task, prompt, source, "replaced")
            return "changed"
        is_retried = self._known.state(*row, retry_errors=self._job.retry_errors) != "done"
        return "again" if is_retried else "done"

    def other_files(self) -> dict[str, Any]:
        """Return the files that have the id of another one. See ``Writer.other_files``."""
        return self._known.other_files.describe()

    def close(self) -> None:
        """Close the files."""
        self._known.close()


@contextlib.contextmanager
def look_at_output(job: Job) -> Iterator[OutputLook | None]:
    """Provide a look at the OUTPUT of a job, a copy of it where it is a URL; None where there is
    none yet.

    Raises:
        OutputError: OUTPUT cannot be read, or was made with other settings.
    """
    with tempfile.TemporaryDirectory(prefix="vlmbatch-") as folder:
        path = Path(job.output_path)
        if is_url(job.output_path):
            path = Path(folder) / url_name(job.output_path)
            remote = RemoteFile(job.output_path, allow_private=job.allow_private_urls)
            if remote.get(path):
                for suffix in (".journal", ".summary.json"):
                    remote.beside(suffix).get(beside(path, suffix))
        if job.output_path == "-" or not (path.exists() or beside(path, ".journal").exists()):
            yield None
            return
        with contextlib.closing(OutputLook(path, job)) as look:
            yield look


def _identity(output: Path, job: Job) -> dict[str, Any]:
    """Return the settings of a run over an OUTPUT, as far as they are known without its engine:
    the rest are those that OUTPUT has.
    """
    header = None if job.overwrite else JournalScan(beside(output, ".journal")).header
    there = dict(header.identity) if header else {}
    if not there and not job.overwrite:
        with contextlib.suppress(OutputError):
            there = dict((read_summary(output) or {}).get("identity") or {})
    # Other engines name models in their own way, and a folder may have several paths.
    is_name = there.get("engine", "torch") in _HUB_NAMES and not os.path.exists(job.model)
    unknown = ("engine", "revision", *([] if is_name else ["model"]))
    here = {name: value for name, value in job.identity().items() if name not in unknown}
    return {**here, **{name: there[name] for name in unknown if name in there}}
