"""Input options: files to read, and limits for untrusted files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vlmbatch.errors import JobError
from vlmbatch.job.option import Kind, check_at_least, option
from vlmbatch.values import parse_pages, parse_size

DEFAULT_DPI = 150
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Manifests that have columns; a .txt manifest has lines."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Options of reading. See the help text of each field."""

    inputs: Sequence[str] = dataclasses.field(default=(), metadata={"is_path": True})
    media: Kind = "image"
    limit: int | None = option(None, "Stop after this many items.", metavar="N", group="Items")
    shuffle: bool = option(
        False, "Take the items in random order (OUTPUT stays in input order).", group="Items"
    )
    include: Sequence[str] = option(
        (), "Only items whose path matches; repeatable.", metavar="GLOB", group="Items"
    )
    exclude: Sequence[str] = option(
        (), "Skip items whose path matches; repeatable.", metavar="GLOB", group="Items"
    )
    path_column: str | None = option(
        None,
        "Column of a manifest that holds the path, URL or bytes. "
        "[default: by its name, such as path, file, image, url]",
        metavar="COL",
        group="Items",
    )
    id_column: str | None = option(
        None,
        "Column of a manifest that holds the id. [default: id, if there is one]",
        metavar="COL",
        group="Items",
    )
    keep: Sequence[str] = option(
        (),
        "Copy a column of a manifest, or a key of the .json beside an archive entry, to OUTPUT; "
        "COL=NAME renames it; repeatable.",
        metavar="COL",
        group="Items",
    )
    max_pixels: int = option(
        200_000_000,
        "Reject larger images before decoding (error row).",
        metavar="N",
        group="Items",
    )
    max_file_size: str = option(
        "1GiB",
        "Reject larger files and archive entries before reading (error row).",
        metavar="SIZE",
        group="Items",
    )
    max_compression_ratio: float = option(
        200.0,
        "Reject archive entries that unpack to more than N times their size, beyond a few "
        "megabytes (error row).",
        metavar="N",
        group="Items",
    )
    pages: str | None = option(
        None,
        "Pages of a document, or frames of an animation: 1, 1-3, 2,5- or all. "
        "[default: all of a PDF, the first of an image file]",
        metavar="PAGES",
        group="Items",
        media="image",
    )
    max_pages: int = option(
        10_000,
        "Reject files with more pages, where --pages looks for them (error row).",
        metavar="N",
        group="Items",
        media="image",
    )
    dpi: int = option(
        DEFAULT_DPI,
        "Resolution at which PDF pages are rendered.",
        metavar="N",
        group="Items",
        media="image",
    )
    allow_empty: bool = option(
        False,
        "Finding nothing to ask about is no error (otherwise exit code 66).",
        group="Items",
    )
    allow_private_urls: bool = option(
        False,
        "Also fetch from private and other non-public addresses, and through the system's proxy.",
        group="Items",
    )

    @property
    def max_file_bytes(self) -> int:
        """``max_file_size`` in bytes."""
        return parse_size(self.max_file_size)

    @property
    def kept_columns(self) -> dict[str, str]:
        """Columns that are copied to OUTPUT, each with its name there."""
        pairs = (text.partition("=") for text in self.keep)
        return {column.strip(): name.strip() or column.strip() for column, _, name in pairs}

    def check_inputs(self) -> None:
        """Check the values of this group.

        Raises:
            JobError: A value is not allowed.
        """
        check_at_least(self, limit=1, max_pixels=1, max_pages=1)
        if self.max_file_bytes < 1:
            raise JobError(f"max_file_size must be above 0, not {self.max_file_size!r}")
        if not self.max_compression_ratio >= 1:
            raise JobError(
                f"max_compression_ratio must be at least 1, not {self.max_compression_ratio}"
            )
        if len(set(self.kept_columns.values())) < len(self.keep) or "" in self.kept_columns:
            raise JobError(
                "keep takes a column each, once, as COL or COL=NAME, "
                f"not {', '.join(map(repr, self.keep))}"
            )
        if self.pages is not None:
            parse_pages(self.pages)
            if self.media == "video":
                raise JobError(
                    "pages goes with pictures and documents; choose frames of a video with fps, "
                    "every, num_frames or at"
                )
        if not 10 <= self.dpi <= 2400:
            raise JobError(f"dpi must be from 10 to 2400, not {self.dpi}")
