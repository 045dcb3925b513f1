"""A page cut between its lines and words, and laid out anew on tiles: for questions about one tile
after the other.

The checkpoint's grid cuts through lines, and through the words that stand on its vertical borders;
and it tears a line that is wider than a tile apart from its end. Here all that is on the page comes
to stand in one tile, at the same size: stretches of the page that fit into a tile stay as they are,
columns of text come one after the other, and a line that is too wide is broken between two words,
its end below its beginning. A grid that cuts through nothing is kept, and where there is no gap, as
in photographs, the cuts are those of the grid too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vlmbatch.core import UInt8Array

BoolArray = npt.NDArray[np.bool_]

INK_SHARE = 0.25
"""Of the strongest contrast with the paper: what differs by more is ink that is not cut through."""

FAINT_SHARE = 0.1
"""What differs by less is paper, and takes no room on the tiles."""

MIN_CONTRAST = 8
"""Levels of 255 that are the paper's own noise."""

SPECKS = 0.002
"""Share of a row or column that may be ink in a gap: dust on a scanner."""

WORD_GAP_SHARE = 0.7
"""Of the widest gap: what is as wide stands between words, not letters."""

MIN_LINE_GAP = 2
MIN_COLUMN_LINES = 3
"""Lines that a gutter has to go through for it to part columns of text."""

GUTTER_SHARES = (1 / 16, 1 / 4)
"""Least and greatest width of a gutter, in tiles: words stand closer, and the cells of a table
further apart, which are read row by row. Columns of text are half a tile wide or more, the numbers
of a list are less."""


class Box(NamedTuple):
    """A part of the page, in pixels; ``bottom`` and ``right`` are outside."""

    top: int
    left: int
    bottom: int
    right: int


def lay_out(page: UInt8Array, edge: int) -> list[UInt8Array]:
    """Cuts a page into pieces and lays them one below the other on tiles, in reading order.

    Args:
        page: RGB, uint8, (H, W, 3); H and W are multiples of E.
        edge: E, the edge of a tile in pixels.

    Returns:
        Tiles, uint8, (E, E, 3) each, filled up with the paper's colour; none about a page without
        ink.
    """
    contrast, paper = find_contrast(page)
    faint = is_ink(contrast, FAINT_SHARE)
    if not _tears(faint, edge):
        return [
            tile for tile in _grid(page, edge) if int(tile.max()) - int(tile.min()) > MIN_CONTRAST
        ]
    margin = max(1, edge // 32)
    whole = _trimmed(faint, Box(0, 0, *faint.shape), margin)
    if whole is None:
        return []
    inside = slice(whole.top, whole.bottom), slice(whole.left, whole.right)
    page, faint, ink = page[inside], faint[inside], is_ink(contrast, INK_SHARE)[inside]
    tiles: list[UInt8Array] = []
    free_from = edge
    for box in cut_page(ink, edge):
        trimmed = _trimmed(faint, box, margin)
        if trimmed is None:
            continue
        piece = page[trimmed.top : trimmed.bottom, box.left : box.right]
        if int(piece.max()) - int(piece.min()) <= MIN_CONTRAST:
            continue  # one colour, though not the paper's
        height, width, _ = piece.shape
        if free_from + height > edge:
            tiles.append(np.broadcast_to(paper, (edge, edge, 3)).copy())
            free_from = 0
        tiles[-1][free_from : free_from + height, :width] = piece
        free_from += height
    return tiles


def _grid(page: UInt8Array, edge: int) -> list[UInt8Array]:
    """The tiles of the grid, row by row."""
    height, width, _ = page.shape
    return [
        page[top : top + edge, left : left + edge]
        for top in range(0, height, edge)
        for left in range(0, width, edge)
    ]


def _tears(ink: BoolArray, edge: int) -> bool:
    """Whether the grid cuts through ink."""
    height, width = ink.shape
    rows = [int(ink[cut - 1 : cut + 1].sum()) > SPECKS * width for cut in range(edge, height, edge)]
    columns = [
        int(ink[:, cut - 1 : cut + 1].sum()) > SPECKS * height for cut in range(edge, width, edge)
    ]
    return any(rows) or any(columns)


def find_contrast(page: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
    """How much every pixel differs from the paper, uint8, (H, W), and the paper's colour, uint8,
    (3,): the one that most of the page has.
    """
    paper = np.median(page.reshape(-1, 3), axis=0).astype(np.uint8)
    return np.where(page > paper, page - paper, paper - page).max(axis=2), paper


def is_ink(contrast: UInt8Array, share: float) -> BoolArray:
    """What differs from the paper by more than a share of the strongest contrast, and than noise;
    bool, (H, W).
    """
    return contrast > max(MIN_CONTRAST, share * int(contrast.max()))


def _trimmed(ink: BoolArray, box: Box, margin: int) -> Box | None:
    """A box without the paper around its ink, but for a margin; None when it has no ink."""
    part = ink[box.top : box.bottom, box.left : box.right]
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    if not len(rows):
        return None
    return Box(
        max(box.top, box.top + int(rows[0]) - margin),
        max(box.left, box.left + int(columns[0]) - margin),
        min(box.bottom, box.top + int(rows[-1]) + 1 + margin),
        min(box.right, box.left + int(columns[-1]) + 1 + margin),
    )


def cut_page(ink: BoolArray, edge: int) -> Iterator[Box]:
    """Yields boxes of at most E x E pixels in reading order; together they are the page, each pixel
    once.

    Args:
        ink: (H, W).
        edge: E, in pixels.
    """
    height, width = ink.shape
    yield from _cut(ink, Box(0, 0, height, width), edge)


def _cut(ink: BoolArray, box: Box, edge: int) -> Iterator[Box]:
    if box.right - box.left <= edge:
        yield from _strips(ink, box, edge)
        return
    part = ink[box.top : box.bottom, box.left : box.right]
    lines = _between(_gaps(part.sum(axis=1), part.shape[1], MIN_LINE_GAP), len(part))
    profiles = np.stack([part[top:bottom].sum(axis=0) for top, bottom in lines])
    at = 0
    while at < len(lines):
        count, cuts = _columns(profiles[at:], lines[at:], edge)
        block = box._replace(top=box.top + lines[at][0], bottom=box.top + lines[at + count - 1][1])
        if cuts:
            for left, right in zip([0, *cuts], [*cuts, part.shape[1]], strict=True):
                yield from _cut(
                    ink, block._replace(left=box.left + left, right=box.left + right), edge
                )
        else:
            for strip in _strips(ink, block, edge):
                yield from _words(ink, strip, edge)
        at += count


def _columns(
    profiles: npt.NDArray[np.int64], lines: Sequence[tuple[int, int]], edge: int
) -> tuple[int, list[int]]:
    """How many of the next lines stand in the same columns of text, and where these are parted; (1,
    []) when they stand in none.

    Args:
        profiles: Pixels of ink in each column of pixels, by line.
        lines: (top, bottom) of each.
        edge: E, in pixels.
    """
    least, most = (max(1, round(share * edge)) for share in GUTTER_SHARES)
    found: tuple[int, list[int]] = (1, [])
    counts = np.zeros(profiles.shape[1], np.int64)
    for count, (profile, (_, bottom)) in enumerate(zip(profiles, lines, strict=True), 1):
        counts += profile
        gutters = [
            gap
            for gap in _gaps(counts, bottom - lines[0][0], least)
            if gap[0] > 0 and gap[1] < len(counts)
        ]
        if not gutters:
            break
        cuts: list[int] = []
        for start, end in gutters:
            cut = (start + end) // 2
            if (
                end - start <= most
                and min(cut - (cuts[-1] if cuts else 0), len(counts) - cut) >= edge // 2
            ):
                cuts.append(cut)
        if count >= MIN_COLUMN_LINES and cuts:
            found = count, cuts
    return found


def _strips(ink: BoolArray, box: Box, edge: int) -> Iterator[Box]:
    """A box in strips from top to bottom, none higher than a tile."""
    top = box.top
    while box.bottom - top > edge:
        cut = top + _cut_at(ink[top : top + edge, box.left : box.right].sum(axis=1), edge)
        yield box._replace(top=top, bottom=cut)
        top = cut
    yield box._replace(top=top)


def _words(ink: BoolArray, box: Box, edge: int) -> Iterator[Box]:
    """A box in pieces from left to right, none wider than a tile."""
    left = box.left
    while box.right - left > edge:
        cut = left + _cut_at(ink[box.top : box.bottom, left : left + edge].sum(axis=0), edge)
        yield box._replace(left=left, right=cut)
        left = cut
    yield box._replace(left=left)


def _cut_at(counts: npt.NDArray[np.int64], edge: int) -> int:
    """Where E rows or columns are cut: in the last gap of their second half that is not much less
    than the widest there, or at E where there is none.
    """
    gaps = [(max(start, edge // 2), end) for start, end in _gaps(counts, 1, 1) if end > edge // 2]
    if not gaps:
        return edge
    widest = max(end - start for start, end in gaps)
    start, end = next(gap for gap in reversed(gaps) if gap[1] - gap[0] >= WORD_GAP_SHARE * widest)
    return edge if end == edge else (start + end + 1) // 2


def _gaps(counts: npt.NDArray[np.int64], length: int, least: int) -> list[tuple[int, int]]:
    """(start, end) of every stretch of rows or columns without ink that is at least so wide.

    Args:
        counts: Pixels of ink in each.
        length: How many pixels each has.
        least: The width.
    """
    is_white = np.concatenate(([False], counts <= SPECKS * length, [False]))
    edges = np.flatnonzero(is_white[1:] != is_white[:-1])
    return [
        (int(start), int(end))
        for start, end in zip(edges[::2], edges[1::2], strict=True)
        if end - start >= least
    ]


def _between(gaps: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """(start, end) of the parts that cuts in the middle of gaps leave; gaps at the ends are no
    cuts.
    """
    cuts = [(start + end) // 2 for start, end in gaps if start > 0 and end < length]
    return list(zip([0, *cuts], [*cuts, length], strict=True))
