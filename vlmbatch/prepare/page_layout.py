"""Cut a page between its lines and words, and lay it out anew on tiles, for ``ocr --per tile``.

The checkpoint's grid cuts through lines, and through the words on its borders. Here each word is
whole in one tile, at its size: columns of text follow each other, and a line wider than a tile is
broken between words. A grid that cuts through nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vlmbatch.core import UInt8Array

INK_SHARE, MIN_CONTRAST = 0.15, 8
"""Ink differs from the paper by more than this share of the greatest contrast, and by more levels
of 255 than noise."""

WORD_GAP, LINE_GAP = 0.4, 1.6
"""Widest gaps inside a word, and inside a line or a block of lines, in heights of a letter."""

SPECK_PIXELS, FRAME_SHARE = 2, 0.1
"""Most ink of a speck of dust; and of a frame around other ink, as a share of the square of its
longer side."""


class Box(NamedTuple):
    """A part of the page in pixels; ``bottom`` and ``right`` are outside."""

    top: int
    left: int
    bottom: int
    right: int


class Text(NamedTuple):
    """A word, a line of words or a block of lines.

    Attributes:
        box: Where it stands.
        start: Column of its first pixel of ink in the row ``box.top``.
        parts: The words of a line, the lines of a block.
    """

    box: Box
    start: int
    parts: list[Text]


def lay_out(page: UInt8Array, edge: int) -> list[UInt8Array]:
    """Lay the words of a page on tiles, line below line in reading order.

    Args:
        page: RGB, uint8, (H, W, 3); H and W are multiples of E.
        edge: E, the edge of a tile in pixels.

    Returns:
        Tiles, uint8, (E, E, 3) each, filled up with the paper's colour; none for a page without
        ink.
    """
    paper = np.median(page.reshape(-1, 3), axis=0).astype(np.uint8)
    contrast = np.where(page > paper, page - paper, paper - page).max(axis=2)
    ink = contrast > max(MIN_CONTRAST, INK_SHARE * int(contrast.max()))
    tiles: list[UInt8Array] = []
    free_from = edge
    for box in _boxes(ink.astype(np.uint8), edge):
        piece = page[box.top : box.bottom, box.left : box.right]
        if free_from + len(piece) > edge:
            tiles.append(np.broadcast_to(paper, (edge, edge, 3)).copy())
            free_from = 0
        tiles[-1][free_from : free_from + len(piece), : piece.shape[1]] = piece
        free_from += len(piece)
    return tiles


def _boxes(ink: UInt8Array, edge: int) -> list[Box]:
    """Return boxes of at most E x E pixels with the words in them, in reading order."""
    ink, letter = _clean(ink, edge)
    height = min(letter, edge / 2)  # what is larger is a figure
    words = _components(ink, WORD_GAP * height, 1)
    cells = [
        {(y // edge, x // edge) for y in (top, bottom - 1) for x in (left, right - 1)}
        for top, left, bottom, right in (word.box for word in words)
    ]
    if all(len(touched) == 1 for touched in cells):
        grid = sorted({cell for touched in cells for cell in touched})
        return [Box(y * edge, x * edge, (y + 1) * edge, (x + 1) * edge) for y, x in grid]
    lines = _components(ink, LINE_GAP * height, 1, words)
    blocks = _components(ink, LINE_GAP * height, LINE_GAP * height, lines)
    return [
        _with_margin(box, int(height / 4), edge)
        for line in _in_order(blocks, edge // 2)
        for box in _fitting(line, edge)
    ]


def _clean(ink: UInt8Array, edge: int) -> tuple[UInt8Array, float]:
    """Leave out specks and frames, as around tables and scans; return the height of letters too."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(ink)
    left, top, width, height, area = stats.T
    is_gone = area <= SPECK_PIXELS
    sides = np.maximum(width, height)
    for n in np.flatnonzero((sides > edge) & (area < FRAME_SHARE * sides.astype(float) ** 2)):
        inside = (left > left[n]) & (left + width < left[n] + width[n])
        is_gone[n] |= (inside & (top > top[n]) & (top + height < top[n] + height[n])).any()
    is_gone[0] = True
    if is_gone.all():
        return np.zeros_like(ink), 1.0
    return (~is_gone[labels]).astype(np.uint8), float(np.median(height[~is_gone]))


def _components(
    ink: UInt8Array, width: float, height: float, parts: Sequence[Text] = ()
) -> list[Text]:
    """Return what is connected when gaps of so many pixels are closed, each with its parts."""
    import cv2

    kernel = np.ones((int(height) | 1, int(width) | 1), np.uint8)
    closed = cv2.morphologyEx(ink, cv2.MORPH_CLOSE, kernel)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(closed)
    found = []
    for n, (left, top, wide, high, _) in enumerate(stats[1:].tolist(), 1):
        start = left + int(np.argmax(labels[top, left : left + wide] == n))
        found.append(Text(Box(top, left, top + high, left + wide), start, []))
    for part in parts:
        found[labels[part.box.top, part.start] - 1].parts.append(part)
    return found


def _groups(texts: Sequence[Text], axis: int, share: float = 1.0) -> list[list[Text]]:
    """Part texts where a gap runs between them: rows for axis 0, columns for axis 1.

    With a share of less than 1 only the middle of each counts: lines may overlap a little.
    """
    groups: list[list[Text]] = []
    end = 0.0
    cut = (1 - share) / 2
    spans = [(text, cut * (text.box[axis + 2] - text.box[axis])) for text in texts]
    for text, less in sorted(spans, key=lambda span: span[0].box[axis] + span[1]):
        if not groups or text.box[axis] + less >= end:
            groups.append([])
        groups[-1].append(text)
        end = max(end, text.box[axis + 2] - less)
    return groups


def _in_order(blocks: Sequence[Text], narrowest: int) -> Iterator[Text]:
    """Yield the lines of a page in reading order: blocks row by row, and in a row by columns.

    Blocks that are narrower than a column, such as cells, are read with those beside them.
    """
    for row in _groups(blocks, 0):
        columns = _groups(row, 1)
        boxes = [_union([block.box for block in column]) for column in columns]
        if any(box.right - box.left < narrowest for box in boxes):
            columns = [row]
        for column in columns:
            lines = [line for block in column for line in block.parts]
            tall = 2 * float(np.median([line.box.bottom - line.box.top for line in lines]))
            for is_tall in (True, False):
                alike = [
                    line for line in lines if (line.box.bottom - line.box.top > tall) == is_tall
                ]
                for beside in _groups(alike, 0, 0.5):
                    yield from sorted(beside, key=lambda line: line.box.left)


def _fitting(line: Text, edge: int) -> Iterator[Box]:
    """Yield a line in pieces that fit into a tile; cut words that do not."""
    words = [
        Box(top, left, min(top + edge, word.box.bottom), min(left + edge, word.box.right))
        for word in sorted(line.parts, key=lambda word: word.box.left)
        for top in range(word.box.top, word.box.bottom, edge)
        for left in range(word.box.left, word.box.right, edge)
    ]
    piece = words[0]
    for word in words[1:]:
        whole = _union([piece, word])
        if max(whole.bottom - whole.top, whole.right - whole.left) > edge:
            yield piece
            piece = word
        else:
            piece = whole
    yield piece


def _union(boxes: Sequence[Box]) -> Box:
    tops, lefts, bottoms, rights = zip(*boxes, strict=True)
    return Box(min(tops), min(lefts), max(bottoms), max(rights))


def _with_margin(box: Box, margin: int, edge: int) -> Box:
    """Return a box with a margin, as far as the tile and the page have room for it."""
    high = min(margin, (edge - box.bottom + box.top) // 2)
    wide = min(margin, (edge - box.right + box.left) // 2)
    top, left = max(0, box.top - high), max(0, box.left - wide)
    return Box(top, left, box.bottom + high, box.right + wide)
