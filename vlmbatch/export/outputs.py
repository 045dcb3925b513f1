"""The rows of one OUTPUT, or of several one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vlmbatch.errors import JobError
from vlmbatch.export.nothing import explain_no_rows
from vlmbatch.export.rows import RowFilter
from vlmbatch.write import read_records
from vlmbatch.write.columns import Kind, Row, carried_kinds

OUTPUT_COLUMN = "output"
"""Column that says of which OUTPUT a row is, where there are several."""


class Output(NamedTuple):
    """An OUTPUT.

    Attributes:
        name: Its name in messages and tables.
        path: The file of this disk that is read.
    """

    name: str
    path: Path


class Outputs:
    """Rows of OUTPUTs, in their order.

    Attributes:
        repeated: Id, task and prompt of the first row that is in several of them; None where there
            is none. Known once the rows were read.
        num_repeated: Number of such rows.
    """

    def __init__(self, outputs: Sequence[Output], wanted: RowFilter) -> None:
        """Name the OUTPUTs, and the rows that are taken of them.

        Raises:
            JobError: One is given twice.
        """
        names = [output.name for output in outputs]
        for name in names:
            if names.count(name) > 1:
                raise JobError(f"{name} is given twice")
        self._outputs, self._wanted = outputs, wanted
        self.repeated: tuple[str, str, str] | None = None
        self.num_repeated = 0

    def __len__(self) -> int:
        return len(self._outputs)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of this disk that are read."""
        return tuple(output.path for output in self._outputs)

    @property
    def name(self) -> str:
        """The names, for messages."""
        return ", ".join(output.name for output in self._outputs)

    def why_empty(self) -> str | None:
        """Return why no row is taken; None when one is."""
        columns = ("task", "prompt", "status")
        every = (read_records(path, columns) for path in self.paths)
        return explain_no_rows(itertools.chain.from_iterable(every), self._wanted)

    def rows(self) -> Iterator[Row]:
        """Yield the rows; those of several OUTPUTs say which one is theirs."""
        if len(self) == 1:
            return self._wanted.of(read_records(self._outputs[0].path))
        return itertools.chain.from_iterable(map(self._rows_of, self._outputs))

    def _rows_of(self, output: Output) -> Iterator[Row]:
        for row in self._wanted.of(read_records(output.path)):
            if OUTPUT_COLUMN in row:
                raise JobError(
                    f"{output.name} has a column {OUTPUT_COLUMN!r}, which says the OUTPUT of a "
                    "row when there are several: export it alone"
                )
            yield {**row, OUTPUT_COLUMN: output.name}

    def counted(self) -> Iterator[Row]:
        """Yield the rows, and count those that are in several OUTPUTs."""
        if len(self) == 1:
            yield from self.rows()
            return
        seen: set[int] = set()
        self.repeated, self.num_repeated = None, 0
        for row in self.rows():
            key = (row["id"], row["task"], row["prompt"])
            if hash(key) in seen:
                self.repeated = self.repeated or key
                self.num_repeated += 1
            seen.add(hash(key))
            yield row

    def kinds(self) -> Mapping[str, Kind]:
        """Return the kinds of the columns that not every row has. All rows are read for it."""
        return carried_kinds(self.rows())
