"""Manifests: a row each to a picture's path, URL or bytes, with its id, its own questions and the
columns that are carried into OUTPUT.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import os
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vlmbatch.errors import JobError, ReadError
from vlmbatch.job import Job
from vlmbatch.read.base import digest
from vlmbatch.read.bundles.table_files import Row, open_table
from vlmbatch.read.extras import missing_for
from vlmbatch.read.files.kinds import file_status, place_of, printable, suffix_of
from vlmbatch.read.files.source import Found, Part
from vlmbatch.urls import is_url, without_credentials

_PATHS = "path file_path filepath file_name filename file image_path image_file image img_path img jpg png video_path video_file video"
_URLS = "url image_url img_url video_url uri"
_BYTES = "bytes image_bytes img_bytes image_base64 base64 b64"
CONTENT_NAMES = (*_PATHS.split(), *_URLS.split(), *_BYTES.split(), "source")
"""Names of the column that says where a picture is, or holds it; the first that a table has."""

ID_NAMES = ("id",)
QUESTION_NAMES = ("question", "questions", "prompt")

_OUTPUT_COLUMNS = {"id", "source", "media", "task", "prompt", "status", "run_id"}
"""What an OUTPUT of vlmbatch has."""

_LONGEST_PATH = 4096
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")
"""How JPEG, PNG, GIF and WebP begin in base64."""


class Manifest:
    """Gives the rows of a table file as parts of a job.

    Raises:
        JobError: It cannot be read, or its columns cannot be understood; the message lists them.
    """

    def __init__(self, path: str, name: str, job: Job, names_only: bool = False) -> None:
        """Looks at the columns.

        Args:
            path: The file.
            name: What it is called in ids.
            job: The job.
            names_only: Whether rows are only counted: the bytes of pictures are then not read.
        """
        self._path, self._name, self._job, self._names_only = path, name, job, names_only
        self._folder = os.path.dirname(path)
        self._table = table = open_table(path)
        self._is_output = set(table.columns) >= _OUTPUT_COLUMNS
        self._has_lines = path.lower().endswith(".jsonl") and not self._is_output
        self._content = job.path_column or ("source" if self._is_output else self._guess_content())
        self._id = job.id_column or _first(ID_NAMES, table.columns)
        self._question = job.question_column
        if job.task == "vqa" and self._question is None and not self._is_output:
            self._question = _first(QUESTION_NAMES, table.columns)
        for column in (self._content, self._id, self._question, *job.kept_columns):
            if column is not None and column not in table.columns:
                self._refuse(f"it has no column {column!r}")
        if (
            job.task == "vqa"
            and self._question is None
            and not (job.questions or job.questions_file)
        ):
            self._refuse(
                "no column has questions by its name; choose one with --question-column, or ask with -q TEXT"
            )

    def __iter__(self) -> Iterator[Part]:
        """Yields a part a row."""
        wanted = {
            self._content,
            self._id,
            self._question,
            *self._job.kept_columns,
            *(("media",) if self._is_output else ()),
        } - {None}
        for number, row in enumerate(self._table.rows(wanted, not self._names_only)):
            label = f"#row={number}"
            yield (
                self._part({}, label, row) if isinstance(row, ReadError) else self._part(row, label)
            )

    def _part(self, row: Row, label: str, error: ReadError | None = None) -> Part:
        item_id = _text(row.get(self._id)) if self._id is not None else ""
        if self._is_output and row.get("media") in ("frame", "clip"):
            item_id = item_id.partition("#t=")[0]
        written = ""
        questions: tuple[str, ...] = ()
        data: bytes | str | None = None
        content, question = self._columns_of(row)
        try:
            if error is not None:
                raise error
            questions = questions_of(row.get(question)) if question is not None else ()
            written, data = self._content_of(row.get(content), content)
            found = (
                self._in_file(written) if data is None else self._in_memory(data, label, content)
            )
        except ReadError as exc:
            found = Found("", "", printable(self._path) + label, error=str(exc))
        named = (
            without_credentials(written)
            if is_url(written)
            else written.replace(os.sep, "/").removeprefix("./")
        )
        name = printable(item_id or named or f"{self._name}{label}")
        extra = {kept: row.get(column) for column, kept in self._job.kept_columns.items()}
        # A row that adds nothing to its path is the same as that path given in another way; of an
        # OUTPUT's rows about an item one is taken.
        repeats = (
            f"id:{name}"
            if self._is_output
            else place_of(found.path)
            if found.path and not (questions or extra or item_id)
            else ""
        )
        return Part(
            carrying(found, name, extra, questions),
            printable(written) or name,
            label=label,
            repeats=repeats,
        )

    def _columns_of(self, row: Row) -> tuple[str, str | None]:
        """Where a row has its content and its question: a line of a .jsonl file need not have the
        keys of the others, and is taken for what it is.
        """
        content, question = self._content, self._question
        if self._has_lines and row.get(content) in (None, "") and self._job.path_column is None:
            content = (
                _first(CONTENT_NAMES, tuple(key for key in row if row[key] not in (None, "")))
                or content
            )
        may_ask = (
            self._job.task == "vqa" and not self._is_output and self._job.question_column is None
        )
        if self._has_lines and may_ask and (question is None or row.get(question) in (None, "")):
            question = _first(QUESTION_NAMES, tuple(row))
        return content, question

    def _content_of(self, value: Any, column: str) -> tuple[str, bytes | str | None]:
        """The path or URL that a cell of a column names, and the bytes (or base64 of them) that it
        holds.
        """
        if isinstance(value, Mapping):
            path, data = value.get("path"), value.get("bytes")
            if self._names_only or data is not None:
                return path if isinstance(path, str) else "", b"" if self._names_only else data
            value = path
        if self._names_only and column in self._table.picture_columns:
            return "", b""
        if value is None or value == "" or value != value:
            raise ReadError(f"the row has nothing in its column {column!r}")
        if isinstance(value, bytes):
            return "", value
        if not isinstance(value, str):
            raise ReadError(
                f"the column {column!r} holds {type(value).__name__}, not a path, URL or bytes"
            )
        if value.startswith("data:"):
            return "", value.partition(",")[2]
        is_long = len(value) > _LONGEST_PATH and not is_url(value)
        if (
            is_long
            or column in _BYTES.split()
            or (len(value) > 100 and value.startswith(_BASE64_STARTS))
        ):
            return "", value
        return value, None

    def _in_file(self, written: str) -> Found:
        """A file or URL that a row names."""
        is_local = written.lower().startswith("file://")
        if is_url(written) and not is_local:
            return Found(
                written,
                "",
                printable(without_credentials(written)),
                error=missing_for(suffix_of(written)),
            )
        path = urllib.parse.unquote(urllib.parse.urlsplit(written).path) if is_local else written
        full = os.path.join(self._folder, path)
        if self._is_output and (os.path.exists(path) or not os.path.exists(full)):
            full = path  # a record's source counts from the folder that its run was started in
        fingerprint, error = file_status(full)
        if not fingerprint and error is None and (outer := _bundle_of(full)):
            error = f"it is inside {printable(outer)}: give that as INPUT"
        return Found(full, "", printable(full), fingerprint, error or missing_for(suffix_of(full)))

    def _in_memory(self, data: bytes | str, label: str, column: str) -> Found:
        """Bytes, or base64 of them, that a row holds."""
        read: Callable[[], bytes] = (
            functools.partial(_given, data)
            if isinstance(data, bytes)
            else functools.partial(_from_base64, data, column)
        )
        raw = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
        return Found(
            "", "", printable(self._path) + label, digest(raw), read=read, held_bytes=len(raw)
        )

    def _guess_content(self) -> str:
        pictures = self._table.picture_columns
        found = (
            _first(CONTENT_NAMES, pictures)
            or (pictures[0] if len(pictures) == 1 else None)
            or _first(CONTENT_NAMES, self._table.columns)
        )
        if found is None:
            self._refuse(
                "no column has a path, URL or picture by its name; choose one with --path-column"
            )
        return found or ""

    def _refuse(self, why: str) -> None:
        raise JobError(
            f"manifest {printable(self._path)}: {why} (columns: {', '.join(self._table.columns)})"
        )


def questions_of(value: Any) -> tuple[str, ...]:
    """A row's own questions: a text or a list of texts; none when the cell is empty.

    Raises:
        ReadError: It holds something else.
    """
    asked = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(question, str) for question in asked):
        raise ReadError("the row's question is not a text")
    return tuple(dict.fromkeys(question.strip() for question in asked if question.strip()))


def carrying(
    found: Found, name: str, extra: Mapping[str, Any], questions: tuple[str, ...]
) -> Found:
    """A thing with its id, what it carries and what is asked about it. Its rows are done again when
    a carried value changes.
    """
    fingerprint = (
        f"{found.fingerprint}:{digest(repr(extra).encode('utf-8', 'backslashreplace'))}"
        if extra
        else found.fingerprint
    )
    return dataclasses.replace(
        found, id=name, fingerprint=fingerprint, extra=extra, questions=questions
    )


def _bundle_of(path: str) -> str | None:
    """The archive or manifest that a path leads into, as the source of a record may; None for none."""
    outer = path.rpartition("#row=")[0] or path
    while outer and outer != os.path.dirname(outer) and not os.path.exists(outer):
        outer = os.path.dirname(outer)
    return outer if os.path.isfile(outer) else None


def _given(data: bytes) -> bytes:
    return data


def _from_base64(text: str, column: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as exc:
        raise ReadError(f"the column {column!r} does not hold base64: {exc}") from exc


def _first(names: tuple[str, ...], columns: tuple[str, ...]) -> str | None:
    """The first of the usual names that a table has, whatever its capitals."""
    by_name = {column.lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def _text(value: Any) -> str:
    """An id as text; empty for none."""
    return "" if value is None or value != value else str(value).strip()
