"""Opens manifests and archives."""

from __future__ import annotations

from collections.abc import Iterable

from vlmbatch.job import InputOptions, QuestionOptions
from vlmbatch.read.base import Counts
from vlmbatch.read.bundles.archive import Archive
from vlmbatch.read.bundles.kinds import bundle_kind
from vlmbatch.read.bundles.manifest import Manifest
from vlmbatch.read.files.source import Candidate


def open_bundle(
    path: str,
    name: str,
    options: InputOptions,
    asked: QuestionOptions,
    counts: Counts,
    names_only: bool,
) -> Iterable[Candidate]:
    """Return the content of a manifest or archive, in its order.

    Args:
        path: The file.
        name: Its name in ids, valid UTF-8.
        options: Columns, limits and pages.
        asked: Says whether rows ask questions, and in which column.
        counts: Counts things that are left alone.
        names_only: Whether things are only counted: their bytes are then not read.

    Raises:
        JobError: The columns of a manifest cannot be understood.
    """
    if bundle_kind(path) == "manifest":
        return Manifest(path, name, options, asked, counts, names_only)
    return Archive(path, name, options, asked.question_column, counts, names_only)
