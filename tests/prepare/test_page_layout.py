"""Pages cut between lines and words: nothing is lost, nothing is there twice, and the order is that
of reading.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.core import UInt8Array
from vlmbatch.prepare.page_layout import BoolArray, cut_page, find_contrast, is_ink, lay_out

EDGE = 128
LINE, GAP, SPACE = 8, 6, 6
"""Height of a line, the gap below it, the space between words, in pixels."""


class Page:
    """Words as blocks that each have a colour of their own, with hair gaps between letters."""

    def __init__(self, height: int, width: int, paper: int = 250) -> None:
        self.pixels: UInt8Array = np.full((height, width, 3), paper, np.uint8)
        self.sizes: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._dice = random.Random(1)

    def word(self, top: int, left: int, width: int, height: int = LINE) -> None:
        number = len(self.sizes) + 1
        colour = (number % 100, number // 100, 40)
        self.pixels[top : top + height, left : left + width] = colour
        self.pixels[top : top + height, left + 4 : left + width - 1 : 5] = self.pixels[0, 0]
        self.sizes[colour] = (height, width)

    def lines(self, top: int, left: int, right: int, count: int) -> int:
        """Lines of words; gives where they end."""
        for _ in range(count):
            at = left
            while at + 10 <= right:
                width = min(self._dice.randrange(10, 40), right - at)
                self.word(top, at, width)
                at += width + SPACE
            top += LINE + GAP
        return top

    def words_of(self, tiles: list[UInt8Array]) -> list[tuple[int, int, int]]:
        """The words in the order of reading: tile by tile, line by line. Fails for one that is torn
        or there twice.
        """
        return [colour for tile in tiles for colour in self._words_of(tile)]

    def _words_of(self, tile: UInt8Array) -> Iterator[tuple[int, int, int]]:
        places = {}
        for colour in {
            tuple(int(value) for value in pixel) for pixel in tile.reshape(-1, 3)
        } & self.sizes.keys():
            rows, columns = np.nonzero((tile == colour).all(axis=2))
            height, width = int(rows.max() - rows.min() + 1), int(columns.max() - columns.min() + 1)
            assert height == self.sizes[colour][0]
            assert self.sizes[colour][1] - 1 <= width <= self.sizes[colour][1]
            places[colour] = (int(rows.min()), int(columns.min()))
        yield from sorted(places, key=lambda colour: places[colour])


@pytest.mark.parametrize("paper", [250, 200])
def test_lines_wider_than_a_tile_are_broken_between_words_and_read_on(paper: int) -> None:
    page = Page(4 * EDGE, 3 * EDGE, paper)
    page.lines(11, 13, 3 * EDGE - 17, 34)
    tiles = lay_out(page.pixels, EDGE)
    assert page.words_of(tiles) == list(page.sizes)
    assert all(tile.shape == (EDGE, EDGE, 3) and tile.dtype == np.uint8 for tile in tiles)
    assert len(tiles) <= 16


def test_columns_of_text_are_read_one_after_the_other_below_their_title() -> None:
    page = Page(3 * EDGE, 4 * EDGE)
    for left in (10, 80, 150, 220, 290):
        page.word(10, left, 60, 20)
    page.lines(50, 10, 2 * EDGE - 10, 20)
    page.lines(50, 2 * EDGE + 10, 4 * EDGE - 10, 20)
    assert page.words_of(lay_out(page.pixels, EDGE)) == list(page.sizes)


def test_the_cells_of_a_table_and_the_numbers_of_a_list_stay_beside_their_line() -> None:
    page = Page(3 * EDGE, 2 * EDGE)
    for number in range(10):
        top = 10 + number * (LINE + GAP)
        page.word(top, 5, 12)
        page.word(top, 32, 70)
        page.word(top, 210, 30)
    assert page.words_of(lay_out(page.pixels, EDGE)) == list(page.sizes)


def test_a_page_as_narrow_as_a_tile_is_cut_between_lines() -> None:
    page = Page(5 * EDGE, EDGE)
    page.lines(7, 8, EDGE - 8, 44)
    tiles = lay_out(page.pixels, EDGE)
    assert page.words_of(tiles) == list(page.sizes)
    assert len(tiles) <= 6


def test_dust_is_no_ink() -> None:
    page = Page(4 * EDGE, 3 * EDGE)
    page.lines(11, 13, 3 * EDGE - 17, 34)
    dust = np.random.default_rng(0)
    for row, column in zip(dust.integers(0, 4 * EDGE, 20), dust.integers(0, 13, 20), strict=True):
        page.pixels[row, column] = 0
    assert page.words_of(lay_out(page.pixels, EDGE)) == list(page.sizes)


def test_a_photograph_is_cut_as_the_grid_is() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (2 * EDGE, 3 * EDGE, 3), np.uint8)
    tiles = lay_out(photo, EDGE)
    grid = photo.reshape(2, EDGE, 3, EDGE, 3).transpose(0, 2, 1, 3, 4).reshape(6, EDGE, EDGE, 3)
    assert np.array_equal(np.stack(tiles), grid)


def test_a_grid_that_tears_nothing_is_kept() -> None:
    page = Page(2 * EDGE, 2 * EDGE)
    for top, left in ((40, 40), (40, 180), (170, 40)):
        page.word(top, left, 40)
    tiles = lay_out(page.pixels, EDGE)
    for tile, (top, left) in zip(tiles, ((0, 0), (0, EDGE), (EDGE, 0)), strict=True):
        assert np.array_equal(tile, page.pixels[top : top + EDGE, left : left + EDGE])
    page.word(EDGE - 4, 40, 20)
    assert page.words_of(lay_out(page.pixels, EDGE)) == [
        (1, 0, 40),
        (2, 0, 40),
        (4, 0, 40),
        (3, 0, 40),
    ]


def test_there_is_no_tile_of_paper() -> None:
    page = np.full((4 * EDGE, 2 * EDGE, 3), 244, np.uint8)
    page[::7, ::5] -= 3
    assert lay_out(page, EDGE) == []
    page[3 * EDGE : 3 * EDGE + 9, 20:60] = 0
    assert len(lay_out(page, EDGE)) == 1


def test_ink_is_what_differs_from_the_colour_that_most_of_the_page_has() -> None:
    page = np.full((10, 10, 3), (10, 20, 30), np.uint8)
    page[4, 4] = (200, 20, 30)
    page[5, 5] = (15, 20, 30)
    page[6, 6] = (40, 20, 30)
    contrast, paper = find_contrast(page)
    assert paper.tolist() == [10, 20, 30]
    assert [contrast[place, place] for place in range(3, 7)] == [0, 190, 5, 30]
    assert [np.argwhere(is_ink(contrast, share)).tolist() for share in (0.25, 0.1)] == [
        [[4, 4]],
        [[4, 4], [6, 6]],
    ]


def test_margins_take_no_room_and_faint_words_are_kept() -> None:
    page = Page(4 * EDGE, 3 * EDGE)
    noise = np.random.default_rng(0).integers(-4, 5, page.pixels.shape)
    page.pixels = (page.pixels.astype(np.int16) + noise - 5).clip(0, 255).astype(np.uint8)
    page.pixels[124:132, 150:200] = 0
    page.pixels[300:308, 150:200] = 200
    (tile,) = lay_out(page.pixels, EDGE)
    assert (tile == 0).all(axis=2).sum() == (tile == 200).all(axis=2).sum() == 8 * 50


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    edge=st.integers(2, 40),
    share=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
def test_boxes_cover_a_page_exactly_and_fit_into_tiles(
    seed: int, size: tuple[int, int], edge: int, share: float
) -> None:
    dice = np.random.default_rng(seed)
    ink: BoolArray = dice.random(size) < share
    for row in dice.integers(0, size[0], 5):
        ink[row] = False
    for column in dice.integers(0, size[1], 5):
        ink[:, column : column + 3] = False
    times = np.zeros(size, int)
    for box in cut_page(ink, edge):
        assert 0 < box.bottom - box.top <= edge
        assert 0 < box.right - box.left <= edge
        times[box.top : box.bottom, box.left : box.right] += 1
    assert (times == 1).all()
