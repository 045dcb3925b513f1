"""Tables of an OUTPUT's rows, or of its items."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vlmbatch.core import RECORD_FIELDS
from vlmbatch.errors import JobError
from vlmbatch.export.outputs import Outputs
from vlmbatch.export.places import name_of, writing
from vlmbatch.export.rows import TableLayout
from vlmbatch.export.wide import WideTable
from vlmbatch.urls import without_credentials
from vlmbatch.write import read_summary
from vlmbatch.write.columns import Row
from vlmbatch.write.formats import find_format


def write_table(
    outputs: Outputs,
    form: str,
    place: str,
    layout: TableLayout,
    wide: WideTable | None = None,
    *,
    overwrite: bool = False,
    opening: bytes = b"",
) -> int:
    """Write a table, whole or not at all, and return the number of its rows.

    Args:
        outputs: The OUTPUTs.
        form: ``jsonl``, ``parquet`` or ``csv``.
        place: The file or URL; ``-`` is stdout.
        layout: Columns and order.
        wide: The rows, where they are not those of the OUTPUTs.
        overwrite: Whether what is there is replaced.
        opening: Bytes before the table.

    Raises:
        JobError: The place does not fit the format, or there is no such column.
        OutputError: It cannot be written, or is there.
    """
    if place != "-" and name_of(place).suffix.lower() != f".{form}":
        raise JobError(
            f"--to {form} writes a file that ends in .{form}, not {without_credentials(place)}"
        )
    if place == "-" and form == "parquet":
        raise JobError("parquet does not go to stdout: give -o FILE.parquet")
    columns = layout.columns
    if wide is not None:
        extra = {**wide.kinds(), **layout.check(wide.columns, outputs.name)}
        rows, columns = wide.rows(), columns or tuple(wide.columns)
    else:
        # Only a look at every row tells the kinds of carried columns.
        looks = form != "jsonl" or layout != TableLayout()
        carried = outputs.kinds() if looks else {}
        extra = {**carried, **layout.check([*RECORD_FIELDS, *carried], outputs.name)}
        rows = outputs.counted()
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for count, row in enumerate(layout.of(rows), 1):  # noqa: B007
            yield row

    # The metadata of Parquet files has room for one job.
    job = (read_summary(outputs.paths[0]) or {}).get("job") if len(outputs) == 1 else None
    write = find_format(Path(f"x.{form}")).write_rows
    with contextlib.ExitStack() as stack:
        file: BinaryIO = sys.stdout.buffer
        if place != "-":
            file = stack.enter_context(writing(outputs.paths, place, overwrite=overwrite))
        file.write(opening)
        write(file, counted(), job=job, extra=extra, columns=columns or None)
        file.flush()
    return count
