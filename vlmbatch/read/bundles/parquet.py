"""Parquet files as tables. A cell that cannot be read is no reason to lose the others."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any

from vlmbatch.errors import JobError, ReadError, one_line
from vlmbatch.read.bundles.table import Cells, Rows, Table

BATCH_ROWS = 16
"""Rows that are decoded together; a row may hold a picture."""


def open_parquet(path: str) -> Table:
    """Look at the columns of a Parquet file.

    Raises:
        JobError: It is none.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
    except (pyarrow.ArrowException, ValueError) as exc:
        raise JobError(f"not a Parquet file: {one_line(exc)}") from exc
    has_path = {
        field.name: has for field in schema if (has := _picture_type(field.type)) is not None
    }

    def rows(wanted: Collection[str], without_bytes: str | None) -> Rows:
        leaves = [name for name in schema.names if name in wanted and name != without_bytes]
        if without_bytes is not None and has_path.get(without_bytes, True):
            # Without the pictures their paths still say what rows are called.
            leaves.append(f"{without_bytes}.path" if without_bytes in has_path else without_bytes)
        return _rows(path, leaves)

    return Table(tuple(schema.names), rows, tuple(has_path))


def _rows(path: str, leaves: Sequence[str]) -> Rows:
    """Yield the rows of some columns; for a group that is damaged an error for each row that is
    lost.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20) as file:
        # One group after the other: asked for all at once, Arrow keeps the dictionaries of each.
        for group in range(file.num_row_groups):
            left = file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(
                    batch_size=BATCH_ROWS, row_groups=[group], columns=leaves, use_threads=False
                ):
                    for cells in _cells(batch):
                        left -= 1
                        yield cells
            except Exception as exc:  # Arrow raises many kinds on damaged files
                error = ReadError(f"the row cannot be read: {one_line(exc)}")
                yield from itertools.repeat(error, left)


def _cells(batch: Any) -> list[Cells]:
    """Return the rows of a batch; a cell that has no Python value, such as a date beyond the year
    9999 or text that is not UTF-8, is a ``ReadError``.
    """
    try:
        rows: list[Cells] = batch.to_pylist()
    except Exception:  # the error of one cell
        columns = [[_value(cell) for cell in column] for column in batch.columns]
        rows = [
            dict(zip(batch.schema.names, cells, strict=True))
            for cells in zip(*columns, strict=True)
        ]
    return rows


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except Exception as exc:
        return ReadError(f"the cell cannot be read: {one_line(exc)}")


def _picture_type(kind: Any) -> bool | None:
    """Return whether a column of this type has the pictures' paths beside their bytes; None when it
    has no bytes.
    """
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_struct(kind):
        names = {kind.field(number).name for number in range(kind.num_fields)}
        return "path" in names if "bytes" in names else None
    kinds = (
        types.is_binary,
        types.is_large_binary,
        types.is_binary_view,
        types.is_fixed_size_binary,
    )
    return False if any(is_kind(kind) for is_kind in kinds) else None
