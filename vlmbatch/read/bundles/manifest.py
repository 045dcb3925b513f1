"""Manifests: tables with a row for each picture or video, which has its path, URL or bytes, its id,
its own questions and the columns that are carried into OUTPUT.
"""

from __future__ import annotations

import logging
import os
import urllib.parse
from collections.abc import Iterator, Mapping

from vlmbatch.errors import JobError, ReadError, one_line
from vlmbatch.job import InputOptions, QuestionOptions
from vlmbatch.read.base import Counts
from vlmbatch.read.bundles.cells import cell_of, first_named, held_bytes, id_text
from vlmbatch.read.bundles.columns import carried, questions_of, with_columns
from vlmbatch.read.bundles.table import Cells
from vlmbatch.read.bundles.table_files import open_table
from vlmbatch.read.extras import missing_for
from vlmbatch.read.fetch.remote import source_of
from vlmbatch.read.files.kinds import (
    file_status,
    is_text_named_video,
    other_media,
    place_of,
    printable,
    shown,
    suffix_of,
)
from vlmbatch.read.files.page_choice import PageChoice
from vlmbatch.read.files.source import Candidate, Listed, Source, Unreadable
from vlmbatch.urls import is_url, without_credentials

logger = logging.getLogger(__name__)

_PATHS = """
path file_path filepath file_name filename file image_path image_file image img_path img jpg png
video_path video_file video
"""
_URLS = "url image_url img_url video_url uri"
_BYTES = "bytes image_bytes img_bytes image_base64 base64 b64"
CONTENT_NAMES = (*_PATHS.split(), *_URLS.split(), *_BYTES.split(), "source")
"""Names of the column with a picture's place or bytes; the first that a table has."""

ID_NAMES = ("id",)
QUESTION_NAMES = ("question", "questions", "prompt")
_KNOWN_NAMES = frozenset((*CONTENT_NAMES, *ID_NAMES, *QUESTION_NAMES))

_OUTPUT_COLUMNS = {"id", "source", "media", "task", "prompt", "status", "run_id"}
"""Columns that an OUTPUT of vlmbatch has."""

_LONGEST_PATH = 4096
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "JVBERi0")
"""First characters of JPEG, PNG, GIF, WebP and PDF in base64."""


class Manifest:
    """Gives the rows of a table file.

    Raises:
        JobError: It cannot be read, or its columns cannot be understood; the message lists them.
    """

    def __init__(
        self,
        path: str,
        name: str,
        options: InputOptions,
        asked: QuestionOptions,
        counts: Counts,
        names_only: bool = False,
    ) -> None:
        """Look at the columns.

        Args:
            path: The file.
            name: Its name in ids.
            options: Media, columns and pages.
            asked: Says whether rows ask questions, and in which column.
            counts: Counts values that cannot be carried.
            names_only: Whether rows are only counted: bytes of pictures are then not read.
        """
        self._path, self._name, self._options, self._counts = path, name, options, counts
        self._names_only = names_only
        self._pages = PageChoice(options.pages)
        chosen = (options.path_column, options.id_column, asked.question_column)
        columns = (column.lower() for column in (*chosen, *options.kept_columns) if column)
        self._table = table = open_table(path, _KNOWN_NAMES.union(columns))
        self._is_output = set(table.columns) >= _OUTPUT_COLUMNS
        self._has_lines = path.lower().endswith(".jsonl") and not self._is_output
        self._content = options.path_column or self._guess_content()
        self._id = options.id_column or first_named(ID_NAMES, table.columns)
        self._question = asked.question_column
        may_ask = asked.task == "vqa" and not self._is_output
        self._guesses_question = may_ask and self._question is None
        if self._guesses_question:
            self._question = first_named(QUESTION_NAMES, table.columns)
        for column in (self._content, self._id, self._question, *options.kept_columns):
            if column is not None and column not in table.columns:
                self._refuse(f"it has no column {column!r}")
        has_questions = bool(asked.questions or asked.questions_file)
        if asked.task == "vqa" and self._question is None and not has_questions:
            self._refuse(
                "no column has questions by its name; choose one with --question-column, "
                "or ask with -q TEXT"
            )

    def __iter__(self) -> Iterator[Candidate]:
        """Yield the rows."""
        needed = (self._content, self._id, self._question, *self._options.kept_columns)
        columns = {column for column in needed if column is not None}
        if self._is_output:
            columns.add("media")
        self._reads_bytes = not self._names_only or self._holds_documents(columns)
        left_out = None if self._reads_bytes else self._content
        for number, cells in enumerate(self._table.rows(columns, left_out)):
            yield self._candidate(cells, f"#row={number}")

    def _holds_documents(self, columns: set[str]) -> bool:
        """Return whether bytes have to be read where things are only counted: all of them where
        pages of every file are asked for, or else if the first row has a document.
        """
        if not self._table.picture_columns:
            return True  # they are read anyway
        if self._options.media != "image":
            return False
        if self._pages.of_all_files or self._pages.only_first:
            return self._pages.of_all_files
        self._reads_bytes = True
        first = next(self._table.rows(columns, None), None)
        try:
            return isinstance(first, dict) and self._pages.counts_of(self._content_of(first)[1])
        except ReadError:
            return False

    def _candidate(self, cells: Cells | ReadError, label: str) -> Candidate:
        """Return a row. One that cannot be asked about is unreadable, with what is known of it."""
        item_id = written = fingerprint = ""
        questions: tuple[str, ...] = ()
        row = {} if isinstance(cells, ReadError) else cells
        content: Source
        try:
            if isinstance(cells, ReadError):
                raise cells
            item_id = id_text(cell_of(row, self._id))
            if self._is_output and row.get("media") in ("frame", "clip"):
                item_id = item_id.partition("#t=")[0]
            questions = questions_of(cell_of(row, self._question_of(row)))
            written, content, fingerprint = self._content_of(row)
        except ReadError as exc:
            content = Unreadable(str(exc))
        except Exception as exc:  # nobody foresaw it, but it is this row's, not the run's
            logger.debug("unexpected error", exc_info=True)
            content = Unreadable(f"{type(exc).__name__}: {one_line(exc)}")
        is_file = bool(written) and not content.is_held
        source = printable(self._path) + label
        if is_file:
            source = printable(without_credentials(self._full(written)))
        name = printable(item_id or shown(written) or f"{self._name}{label}")
        extra = carried(row, self._options.kept_columns, self._counts)
        repeats = ""
        if self._is_output:  # of the rows about an item one is taken
            repeats = f"id:{name}"
        elif is_file and not (questions or extra or item_id):
            # A row that adds nothing to its path is that path, given in another way.
            repeats = place_of(self._full(written))
        listed = Listed("", source, content, fingerprint)
        return Candidate(
            with_columns(listed, name, extra, questions), printable(written) or name, label, repeats
        )

    def _question_of(self, cells: Cells) -> str | None:
        """Return the column of a row's question: a line of a .jsonl file need not have the keys of
        the others.
        """
        guesses = self._has_lines and self._guesses_question
        if guesses and (self._question is None or cells.get(self._question) in (None, "")):
            return first_named(QUESTION_NAMES, tuple(cells))
        return self._question

    def _content_of(self, cells: Cells) -> tuple[str, Source, str]:
        """Return the path or URL that a row names, its bytes, and their fingerprint.

        Raises:
            ReadError: It has none.
        """
        column = self._content
        guesses = self._has_lines and self._options.path_column is None
        if guesses and cells.get(column) in (None, ""):
            filled = tuple(key for key in cells if cells[key] not in (None, ""))
            column = first_named(CONTENT_NAMES, filled) or column
        value = cell_of(cells, column)
        written = ""
        if isinstance(value, Mapping):
            path, data = value.get("path"), value.get("bytes")
            written = path if isinstance(path, str) else ""
            if not self._reads_bytes or data is not None:
                value = data if self._reads_bytes else b""
                if not isinstance(value, bytes | str):
                    raise ReadError(f"the column {column!r} holds no bytes under 'bytes'")
                return written, *held_bytes(value, column, suffix_of(written))
            value = path
        if not self._reads_bytes and column in self._table.picture_columns:
            return "", *held_bytes(b"", column)
        if value is None or value == "" or value != value:
            raise ReadError(f"the row has nothing in its column {column!r}")
        if isinstance(value, bytes):
            return "", *held_bytes(value, column)
        if not isinstance(value, str):
            kind = type(value).__name__
            raise ReadError(f"the column {column!r} holds {kind}, not a path, URL or bytes")
        if value.startswith("data:"):
            return "", *held_bytes(value.partition(",")[2], column)
        is_long = len(value) > _LONGEST_PATH and not is_url(value)
        is_base64 = len(value) > 100 and value.startswith(_BASE64_STARTS)
        if is_long or is_base64 or column in _BYTES.split():
            return "", *held_bytes(value, column)
        return value, *self._named(value)

    def _named(self, written: str) -> tuple[Source, str]:
        """Return the bytes of a file or URL that a row names, and their fingerprint."""
        full = self._full(written)
        fingerprint, error = "", None
        if not is_url(full):
            fingerprint, error = file_status(full)
            if not fingerprint and error is None and (outer := _bundle_of(full)):
                error = f"it is inside {printable(outer)}: give that as INPUT"
        error = error or missing_for(suffix_of(full)) or other_media(full, self._options.media)
        if error is None and is_text_named_video(full):
            error = "it is text, not a video"
        content = source_of(full, self._options) if error is None else Unreadable(error)
        return content, fingerprint

    def _full(self, written: str) -> str:
        """Return the path or URL that is opened: paths count from the folder of the manifest.

        Raises:
            ReadError: It is a ``file://`` URL that is not one.
        """
        path = written
        if written.lower().startswith("file://"):
            try:
                path = urllib.parse.unquote(urllib.parse.urlsplit(written).path)
            except ValueError as exc:
                raise ReadError(f"not a URL: {one_line(exc)}") from exc
        elif is_url(written):
            return written
        full = os.path.join(os.path.dirname(self._path), path)
        if self._is_output and (os.path.exists(path) or not os.path.exists(full)):
            return path  # a record's source counts from the folder that its run was started in
        return full

    def _guess_content(self) -> str:
        if self._is_output:
            return "source"
        pictures = self._table.picture_columns
        found = (
            first_named(CONTENT_NAMES, pictures)
            or (pictures[0] if len(pictures) == 1 else None)
            or first_named(CONTENT_NAMES, self._table.columns)
        )
        if found is None:
            self._refuse(
                "no column has a path, URL or picture by its name; choose one with --path-column"
            )
        return found or ""

    def _refuse(self, why: str) -> None:
        columns = ", ".join(self._table.columns)
        message = f"{why} (columns: {columns})"
        raise JobError(f"manifest {printable(self._path)}: {' '.join(message.split())}")


def _bundle_of(path: str) -> str | None:
    """Return the archive or manifest that a path leads into, as the source of a record may; None
    for none.
    """
    outer = path.rpartition("#row=")[0] or path
    while outer and outer != os.path.dirname(outer) and not os.path.exists(outer):
        outer = os.path.dirname(outer)
    return outer if os.path.isfile(outer) else None
