"""An OUTPUT as one pyarrow table, for Python programs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmbatch.core import RECORD_FIELDS
from vlmbatch.errors import OutputError
from vlmbatch.urls import without_credentials
from vlmbatch.write.columns import carried_kinds
from vlmbatch.write.parquet import require, schema, tables
from vlmbatch.write.records import read_records
from vlmbatch.write.remote.file import local_copy

if TYPE_CHECKING:
    import pyarrow


def read(output: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pyarrow.Table:
    """Return the rows of an OUTPUT, finished or not, in order; from JSONL, Parquet and CSV alike.

        table = vlmbatch.read("photos.jsonl")
        print(table.num_rows, table["text"].to_pylist())
        frame = vlmbatch.read("photos.jsonl", ["id", "text"]).to_pandas()

    Args:
        output: The file, or its URL in a store.
        columns: Only these, in this order.

    Raises:
        OutputError: It is not there, was not written by vlmbatch, or has no such column.
        MissingDependencyError: pyarrow, or what opens the URL, is not installed.
    """
    arrow = require()
    with local_copy(os.fspath(output), allow_private=True) as path:
        kinds = carried_kinds(read_records(path))
        names = [*RECORD_FIELDS, *kinds]
        wanted = names if columns is None else [columns] if isinstance(columns, str) else columns
        for name in wanted:
            if name not in names:
                raise OutputError(
                    f"{without_credentials(os.fspath(output))} has no column {name!r}; it has {', '.join(names)}"
                )
        whole = schema(extra=kinds)
        layout = arrow.schema([whole.field(name) for name in wanted])
        # A carried column may be missing from a row.
        kept = None if set(wanted) & kinds.keys() else list(wanted)
        found = list(tables(read_records(path, kept), layout))
        return arrow.concat_tables(found) if found else layout.empty_table()
