"""Resize with Lanczos into planes and tiles, with the bits of Pillow's resize: the compiled
``resize.c``, called on pictures and grids.

A grid is a uint8 array (rows, columns, 3, height, width): a picture cut into equal tiles, or one
tile.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmbatch.core import Picture, UInt8Array, picture_size

ONE = 1 << 22
"""The weight 1 in Pillow's fixed-point arithmetic (``PRECISION_BITS`` of its Resample.c)."""
BAND_BYTES = 1 << 20
"""Size of the bands in which a Pillow image is copied: a core's cache holds them."""

Weights = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]
"""For each output pixel the first input pixel, the number of weights, and the weights in a row of
their own.
"""
Band = tuple[int, int, int, int, int, int, int]
"""Rows of a picture as ``horizontal`` takes them: address, bytes to the next row, bytes of a pixel,
bytes to the next plane, pixels of a piece of a row, bytes to its next piece, number of rows.
"""

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
_WEIGHTS = (_POINTER, _POINTER, _POINTER, _INT)
_SIGNATURES = {
    "is_supported": (),
    "taps": (_INT, _INT),
    "weigh": (_INT, _INT, _POINTER, _POINTER, _POINTER),
    "horizontal": (
        *(_POINTER, _LONG, _INT, _LONG, _INT, _LONG, _INT, _INT),
        *(_POINTER, _LONG, _INT, *_WEIGHTS),
    ),
    "vertical": (_POINTER, _LONG, _INT, _POINTER, _LONG, _INT, _LONG, _INT, *_WEIGHTS),
}


class Resizer:
    """The compiled routine. Thread-safe; it computes without the GIL."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Take the routine from the compiled library.

        Raises:
            OSError: It is of another kind, or the processor lacks AVX2.
        """
        self._library = library
        for name, types in _SIGNATURES.items():
            try:
                getattr(self._library, name).argtypes = types
            except AttributeError as error:
                raise OSError(str(error)) from error
        if not self._library.is_supported():
            raise OSError("the processor has no AVX2")
        self._weights = functools.lru_cache(maxsize=32)(self._weigh)

    def picture(self, picture: Picture, grid: UInt8Array) -> None:
        """Resize an RGB picture so that it fills a grid.

        Raises:
            MemoryError: There is not enough memory.
        """
        self._resize(picture_size(picture), _picture_bands(picture), grid)

    def grid(self, found: UInt8Array, grid: UInt8Array) -> None:
        """Resize a grid so that it fills another.

        Raises:
            MemoryError: There is not enough memory.
        """
        self._resize(_size(found), _grid_bands(found), grid)

    def _resize(self, size: tuple[int, int], bands: Iterator[Band], grid: UInt8Array) -> None:
        (in_width, in_height), (width, height) = size, _size(grid)
        if in_width != width and is_vertical_first(size, (width, height)):
            resized = np.empty((1, 1, 3, height, in_width), np.uint8)
            self._resize(size, bands, resized)
            self.grid(resized, grid)
            return
        planes = np.empty((3, in_height, width), np.uint8)
        across = self._weights(in_width, width)  # held: another thread may push it out of the cache
        weights = _addresses(across)
        top = 0
        for *band, rows in bands:
            to = planes[:, top:].ctypes.data
            self._call("horizontal", *band, in_width, rows, to, in_height * width, width, *weights)
            top += rows
        down = self._weights(in_height, height)
        tile_height, tile_width = grid.shape[3:]
        area = tile_height * tile_width
        for number, tiles in enumerate(grid):
            places = slice(number * tile_height, (number + 1) * tile_height)
            self._call(
                "vertical",
                *(planes.ctypes.data, in_height * width, width),
                *(tiles.ctypes.data, area, tile_width, 3 * area, tile_height),
                *_addresses([part[places] for part in down]),
            )

    def _weigh(self, in_size: int, out_size: int) -> Weights:
        if in_size == out_size:  # Pillow leaves out the pass
            first = np.arange(out_size, dtype=np.int32)
            return first, np.ones_like(first), np.full((out_size, 1), ONE, np.int32)
        first, count = np.empty((2, out_size), np.int32)
        weights = np.empty((out_size, self._library.taps(in_size, out_size)), np.int32)
        self._call("weigh", in_size, out_size, *_addresses((first, count, weights))[:3])
        return first, count, weights

    def _call(self, name: str, *arguments: int) -> None:
        if getattr(self._library, name)(*arguments):
            raise MemoryError


def is_vertical_first(size: tuple[int, int], to: tuple[int, int]) -> bool:
    """Return whether Pillow 13 resizes heights before widths; each rounds to bytes, so that the
    order matters. Sizes are (width, height); see ``ImagingResampleInner`` in its Resample.c.
    """
    lost_width, lost_height = size[0] - to[0], size[1] - to[1]
    return lost_height > 0 and lost_height > 2 * lost_width


def _addresses(weights: Sequence[npt.NDArray[np.int32]]) -> tuple[int, ...]:
    return (*(part.ctypes.data for part in weights), weights[2].shape[1])


def _size(grid: UInt8Array) -> tuple[int, int]:
    """(width, height) of the picture that a grid shows."""
    rows, columns, _, height, width = grid.shape
    return columns * width, rows * height


def _grid_bands(grid: UInt8Array) -> Iterator[Band]:
    """The rows of tiles."""
    height, width = grid.shape[3:]
    area = height * width
    for tiles in grid:
        yield tiles.ctypes.data, width, 1, area, width, 3 * area, height


def _picture_bands(picture: Picture) -> Iterator[Band]:
    if not isinstance(picture, np.ndarray):
        yield from _image_bands(picture)
        return
    if picture.strides[1:] != (3, 1):
        picture = np.ascontiguousarray(picture)
    height, width = picture.shape[:2]
    yield picture.ctypes.data, picture.strides[0], 3, 0, width, 0, height


def _image_bands(image: Image.Image) -> Iterator[Band]:
    """Bands of a Pillow image, read in Pillow's own memory; numpy's copy of an image takes six
    times as long.
    """
    width, height = image.size
    rows = max(16, BAND_BYTES // (4 * width) // 16 * 16)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        exported = band.__arrow_c_array__()
        yield _first_byte(exported[1]), 4 * width, 4, 0, width, 0, band.height


class _ArrowArray(ctypes.Structure):
    """``ArrowArray`` of the Arrow C data interface, as far as its children."""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset")),
    *((name, ctypes.c_int64) for name in ("n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]


def _first_byte(capsule: object) -> int:
    """Address of the pixels in Pillow's memory, four bytes each."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    array = ctypes.cast(get(capsule, b"arrow_array"), ctypes.POINTER(_ArrowArray)).contents
    return int(array.children[0].contents.buffers[1])
