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
from vlmbatch.prepare.page_layout import lay_out

EDGE = 128
LINE, GAP, SPACE = 8, 6, 6
"""Height of a line, the gap below it, the space between words, in pixels."""


class Page:
    """Draws words as blocks, each of its own colour, with hair gaps between letters."""

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


def test_a_grid_that_parts_letters_is_not_kept() -> None:
    page = Page(2 * EDGE, 2 * EDGE)
    for left in (EDGE - 22, EDGE + 1):
        page.pixels[20:60, left : left + 21] = 10
    (tile,) = lay_out(page.pixels, EDGE)
    assert (tile == 10).all(axis=2).sum() == 2 * 40 * 21


@pytest.mark.parametrize("paper", [(90, 110, 105), (250, 238, 215), (12, 12, 12)])
def test_there_is_no_tile_of_coloured_paper(paper: tuple[int, int, int]) -> None:
    pixels = np.full((2 * EDGE, 2 * EDGE, 3), paper, np.uint8)
    pixels[20:40, 20:60] = 200
    assert len(lay_out(pixels, EDGE)) == 1
    pixels[EDGE - 10 : EDGE + 10, 20:60] = 200
    assert len(lay_out(pixels, EDGE)) == 1


def test_lines_of_a_crooked_scan_are_read_one_after_the_other() -> None:
    page = Page(3 * EDGE, 3 * EDGE)
    for line in range(12):
        for column in range(7):
            page.word(20 + 18 * line + 2 * column, 10 + 50 * column, 40)
    assert page.words_of(lay_out(page.pixels, EDGE)) == list(page.sizes)


def test_a_frame_around_a_page_is_left_out() -> None:
    page = Page(3 * EDGE, 3 * EDGE)
    page.lines(11, 13, 3 * EDGE - 17, 18)
    for place in (0, -3):
        page.pixels[place : place + 3 or None] = page.pixels[:, place : place + 3 or None] = 0
    assert page.words_of(lay_out(page.pixels, EDGE)) == list(page.sizes)


def test_a_figure_beside_lines_is_read_before_them() -> None:
    page = Page(2 * EDGE, 2 * EDGE)
    page.word(12, 8, 30, 60)
    for line in range(5):
        page.word(12 + 14 * line, 56 - line, 40)
        page.word(12 + 14 * line, 110, 40)
    assert page.words_of(lay_out(page.pixels, EDGE)) == list(page.sizes)


def test_a_line_without_gaps_is_cut_at_the_edge() -> None:
    page = np.full((2 * EDGE, 3 * EDGE, 3), 250, np.uint8)
    page[30:38, 10 : 10 + 2 * EDGE] = np.arange(2 * EDGE)[:, None] // 2
    (tile,) = lay_out(page, EDGE)
    rows = [row for row in tile[:, :, 0] if (row != 250).any()]
    assert sum(int((row != 250).sum()) for row in rows) >= 8 * 2 * EDGE


@settings(max_examples=150)
@given(
    places=st.lists(st.tuples(*[st.integers(0, 9)] * 2, st.integers(2, 11)), max_size=30),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    paper=st.sampled_from([250, 130]),
)
def test_every_word_is_whole_in_one_tile(
    places: list[tuple[int, int, int]], size: tuple[int, int], paper: int
) -> None:
    page = Page(size[0] * EDGE, size[1] * EDGE, paper)
    drawn: set[tuple[int, int]] = set()
    for row, column, width in places:
        top, left = 3 + 51 * row, 5 + 51 * column
        fits = top + LINE < size[0] * EDGE and left + 40 < size[1] * EDGE
        if fits and (row, column) not in drawn:
            drawn.add((row, column))
            page.word(top, left, 4 * width)
    tiles = lay_out(page.pixels, EDGE)
    assert sorted(page.words_of(tiles)) == sorted(page.sizes)
    assert all(tile.shape == (EDGE, EDGE, 3) for tile in tiles)


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.0, 0.001, 0.02, 0.3, 0.9, 1.0]))
def test_any_ink_becomes_tiles(seed: int, share: float) -> None:
    dice = np.random.default_rng(seed)
    page = np.full((64, 96, 3), 255, np.uint8)
    page[dice.random((64, 96)) < share] = dice.integers(0, 256, 3)
    assert all(tile.shape == (32, 32, 3) for tile in lay_out(page, 32))


def test_there_is_no_tile_of_paper() -> None:
    page = np.full((4 * EDGE, 2 * EDGE, 3), 244, np.uint8)
    page[::7, ::5] -= 3
    assert lay_out(page, EDGE) == []
    page[3 * EDGE : 3 * EDGE + 9, 20:60] = 0
    assert len(lay_out(page, EDGE)) == 1


def test_margins_take_no_room_and_faint_words_are_kept() -> None:
    page = Page(4 * EDGE, 3 * EDGE)
    noise = np.random.default_rng(0).integers(-4, 5, page.pixels.shape)
    page.pixels = (page.pixels.astype(np.int16) + noise - 5).clip(0, 255).astype(np.uint8)
    page.pixels[124:132, 150:200] = 0
    page.pixels[300:308, 150:200] = 200
    (tile,) = lay_out(page.pixels, EDGE)
    assert (tile == 0).all(axis=2).sum() == (tile == 200).all(axis=2).sum() == 8 * 50
