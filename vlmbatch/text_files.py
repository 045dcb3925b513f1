"""Text files as people write them: encodings with a byte order mark, delimiters, JSON, and texts
beside pictures.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import os
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks. Those of UTF-32 come first: one of them begins with that of UTF-16."""

ID_COLUMNS = ("id", "image", "video", "file", "path")
PROMPT_COLUMNS = ("prompt", "question")
"""Names of the columns by which tables of people say which answer a row is about."""

DELIMITERS = (",", ";", "\t")
MAX_LINES = 10_000
"""Lines that one row of a CSV file may take."""

LARGEST_FIELD = 2**31 - 1
"""The csv module refuses fields of more than 131,072 characters unless told otherwise; a picture in
base64 is longer.
"""


def encoding_of(head: bytes) -> tuple[str, int]:
    """Return the encoding that a byte order mark names, and the length of the mark.

    Args:
        head: The first 4 bytes. Without a mark the encoding is UTF-8.
    """
    return next(((name, len(mark)) for mark, name in _MARKS if head.startswith(mark)), ("utf-8", 0))


def may_be_mark(head: bytes) -> bool:
    """Return whether bytes are the beginning of a byte order mark that may go on."""
    return any(mark.startswith(head) for mark, _ in _MARKS)


def open_text(path: str, *, errors: str = "surrogateescape") -> IO[str]:
    """Open a text file behind its byte order mark, line endings untouched.

    Args:
        path: The file.
        errors: What becomes of bytes that are not UTF-8; in UTF-16 and UTF-32, where no such escape
            exists, they are replaced unless this is ``strict``.

    Raises:
        OSError: The file cannot be opened.
    """
    with open(path, "rb") as file:
        encoding, length = encoding_of(file.read(4))
    if encoding != "utf-8" and errors != "strict":
        errors = "replace"
    text = open(path, encoding=encoding, errors=errors, newline="")
    if length:
        text.read(1)
    return text


def delimiter_of(file: IO[str], names: frozenset[str], preferred: str = ",") -> str:
    """Return the delimiter of a CSV file, as its header has it; leaves the file behind a first line
    such as ``sep=;``, as spreadsheets write it.

    Args:
        file: The file, at its start.
        names: Names of columns in small letters. A delimiter that makes one of them a column is
            surer than one that makes more columns.
        preferred: Wins where nothing else decides.
    """
    start = file.tell()
    hint = file.readline(8).rstrip("\r\n")
    if hint.startswith("sep=") and len(hint) == 5:
        return hint[4]

    def likelihood(delimiter: str) -> tuple[bool, int, bool]:
        file.seek(start)
        try:
            lines = itertools.islice(iter(file.readline, ""), MAX_LINES)
            header = next(csv.reader(lines, delimiter=delimiter), [])
        except csv.Error:
            return False, 0, False
        known = any(name.strip().lower() in names for name in header)
        return known, len(header), delimiter == preferred

    best = max(DELIMITERS, key=likelihood)
    file.seek(start)
    return best


def repeated_name(header: list[str]) -> str | None:
    """Return a name that stands in a header twice; None without one. Empty names do not count."""
    seen: set[str] = set()
    for name in header:
        if name and name in seen:
            return name
        seen.add(name)
    return None


def read_rows(path: str, names: frozenset[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a .csv or .jsonl file, each with the number of its line.

    Args:
        path: The file; one that does not end in .csv has a JSON object a line.
        names: As in ``delimiter_of``.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It cannot be understood; the message names the line where one is to blame.
    """
    with open_text(path, errors="strict") as file:
        try:
            if path.lower().endswith(".csv"):
                yield from _csv_rows(file, names)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _json_row(line, number)
        except UnicodeDecodeError as exc:
            raise ValueError(f"it is not {exc.encoding.upper()} text") from exc


def _csv_rows(file: IO[str], names: frozenset[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_FIELD))
    rows = csv.DictReader(file, delimiter=delimiter_of(file, names))
    try:
        if name := repeated_name(list(rows.fieldnames or ())):
            raise ValueError(f"two columns are named {name!r}")
        for row in rows:
            yield rows.line_num, row
    except csv.Error as exc:
        raise ValueError(f"line {rows.line_num}: {exc}") from exc


def _json_row(line: str, number: int) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as exc:
        raise ValueError(f"line {number}: not JSON ({exc})") from exc
    if not isinstance(row, dict):
        raise ValueError(f"line {number}: not an object")
    return row


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


class TextBeside(NamedTuple):
    """A ``.txt`` file, and the file that it is about.

    Attributes:
        text: Its path below the folder, with ``/``.
        about: That of the file beside it: ``a.jpg`` for ``a.jpg.txt`` or ``a.txt``; empty where
            there is none.
    """

    text: str
    about: str


def texts_beside(folder: str) -> Iterator[TextBeside]:
    """Yield the ``.txt`` files of a folder and of those below it, sorted. One may be about several
    files that differ in their suffix only: the first one without a text of its own gets it.

    Raises:
        OSError: A folder cannot be read.
    """
    for root, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        start = os.path.relpath(root, folder).replace(os.sep, "/")
        start = "" if start == "." else f"{start}/"
        texts = {name for name in names if name.lower().endswith(".txt") and name[0] != "."}
        others = sorted(name for name in names if name not in texts and name[0] != ".")
        about = {f"{name}.txt": name for name in others if f"{name}.txt" in texts}
        for name in others:
            text = f"{os.path.splitext(name)[0]}.txt"
            if f"{name}.txt" not in texts and text in texts:
                about.setdefault(text, name)
        for text in sorted(texts):
            found = about.get(text)
            yield TextBeside(start + text, start + found if found else "")


def read_text(path: str) -> str:
    """Return the text of a file, with plain line ends and no white space around it.

    Raises:
        ValueError: It is not text.
        OSError: It cannot be read.
    """
    try:
        with open_text(path, errors="strict") as file:
            return "\n".join(file.read().splitlines()).strip()
    except UnicodeDecodeError as exc:
        raise ValueError("not text") from exc


def _raise(error: OSError) -> None:
    raise error
