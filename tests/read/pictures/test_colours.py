"""Modes and depths that are seldom met: what a viewer shows, never black for white."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.read.pictures.files import write_bmp, write_gif, write_png, write_tiff
from vlmbatch.errors import DecodeError
from vlmbatch.read.pictures.decode import load_image

RAMP = np.linspace(0, 1, 16)
GREYS = np.array([0, 17, 34, 51, 68, 85, 102, 119, 136, 153, 170, 187, 204, 221, 238, 255])
"""What a viewer shows of ``RAMP``."""
WHITE, BLACK = [255, 255, 255], [0, 0, 0]


def load(path: Path, number: int = 1) -> np.ndarray:
    return load_image(str(path), 10**6, number).arrays()[0]


def tiff_of(path: Path, values: npt.NDArray, *, white_is_zero: bool = False) -> np.ndarray:
    """The greys that are shown of one row of values, stored in their own type."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    order = ">" if values.dtype.byteorder == ">" else "<"
    bits = values.dtype.itemsize * 8
    write_tiff(
        path,
        len(values),
        1,
        [values.tobytes()],
        bits=bits,
        order=order,
        sample_format=kind,
        photometric=0 if white_is_zero else 1,
    )
    return load(path)[0, :, 0]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_transparent_grey_is_white_at_every_depth(tmp_path: Path, depth: int, place: int) -> None:
    top = 2**depth - 1
    greys = np.array([[0, top // 3, top - top // 3, top]])
    key = int(greys[0, place])
    path = write_png(tmp_path / "a.png", greys, depth, transparent=[key])
    shown = np.where(greys == key, 255, greys * 255 // top)
    assert load(path)[0, :, 0].tolist() == shown[0].tolist()


def test_a_transparent_colour_of_8_bits_is_white(tmp_path: Path) -> None:
    colours = np.array([[[0, 0, 0], [0, 0, 1], [9, 8, 7]]])
    path = write_png(tmp_path / "a.png", colours, 8, transparent=[0, 0, 0])
    assert load(path).tolist() == [[WHITE, [0, 0, 1], [9, 8, 7]]]


def test_a_transparent_colour_of_16_bits_is_compared_in_all_of_them(tmp_path: Path) -> None:
    colours = np.array([[[0x1234, 0, 0], [0x1235, 0, 0], [0x1234, 0, 0xFFFF]]])
    path = write_png(tmp_path / "a.png", colours, 16, transparent=[0x1234, 0, 0])
    assert load(path).tolist() == [[WHITE, [0x12, 0, 0], [0x12, 0, 255]]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_may_have_an_alpha_for_each_colour(tmp_path: Path, depth: int) -> None:
    palette = bytes([0, 0, 0, 200, 100, 0])
    indices = np.array([[0, 1]])
    path = write_png(tmp_path / "a.png", indices, depth, palette=palette, transparent=b"\0\x80")
    clear, half = load(path)[0].tolist()
    assert clear == WHITE
    assert half == pytest.approx([227, 177, 127], abs=1)


@pytest.mark.parametrize(
    ("kind", "white_is_zero"),
    [
        ("<f4", False),
        (">f4", False),
        ("<f4", True),
        (">f4", True),
        ("<u4", False),
        ("<i4", False),
        (">i4", False),
    ],
)
def test_greys_of_32_bits_are_scaled(tmp_path: Path, kind: str, white_is_zero: bool) -> None:
    top = {"f": 1, "u": 2**32 - 1, "i": 2**31 - 1}[kind[1]]
    shown = tiff_of(tmp_path / "a.tif", (RAMP * top).astype(kind), white_is_zero=white_is_zero)
    np.testing.assert_allclose(shown, 255 - GREYS if white_is_zero else GREYS, atol=1)


@pytest.mark.parametrize("kind", ["<i1", "<i2", ">i2", "<i4", "<f4"])
def test_the_least_of_negative_greys_is_black(tmp_path: Path, kind: str) -> None:
    shown = tiff_of(tmp_path / "a.tif", (RAMP * 200 - 100).astype(kind))
    np.testing.assert_allclose(shown, GREYS, atol=2)


@pytest.mark.parametrize("kind", ["<i2", "<i4", "<u4", "<f4"])
def test_values_of_8_bits_in_wider_types_are_as_they_are(tmp_path: Path, kind: str) -> None:
    assert tiff_of(tmp_path / "a.tif", (GREYS // 2).astype(kind)).tolist() == (GREYS // 2).tolist()


def test_highlights_above_one_do_not_darken_the_rest(tmp_path: Path) -> None:
    values = np.array([0.2] * 10 + [0.5] * 9 + [40.5], "<f4")
    assert tiff_of(tmp_path / "a.tif", values).tolist() == [51] * 10 + [128] * 9 + [255]


@pytest.mark.parametrize("odd", [[np.nan], [np.inf], [-np.inf]])
def test_floats_that_are_no_numbers_leave_the_others_alone(
    tmp_path: Path, odd: list[float]
) -> None:
    shown = tiff_of(tmp_path / "a.tif", np.array([*RAMP, *odd], "<f4"))
    np.testing.assert_allclose(shown[:16], GREYS, atol=1)
    assert shown[16] == (255 if odd == [np.inf] else 0)
    assert tiff_of(tmp_path / "b.tif", np.array(odd * 2, "<f4")).shape == (2,)


@pytest.mark.parametrize(("scale", "kind"), [(b"-1.0", "<f4"), (b"1.0", ">f4")])
def test_pfm_files_are_floats(tmp_path: Path, scale: bytes, kind: str) -> None:
    (tmp_path / "a.pfm").write_bytes(b"Pf\n16 1\n" + scale + b"\n" + RAMP.astype(kind).tobytes())
    np.testing.assert_allclose(load(tmp_path / "a.pfm")[0, :, 0], GREYS, atol=1)


@pytest.mark.parametrize("top", [1, 100, 255, 1000, 65535])
def test_greys_of_a_pgm_file_are_scaled_by_its_largest_value(tmp_path: Path, top: int) -> None:
    values = np.array([0, top // 2, top]).astype(">u2" if top > 255 else "u1")
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 %d\n" % top + values.tobytes())
    shown = load(tmp_path / "a.pgm")[0, :, 0]
    np.testing.assert_allclose(shown, values / top * 255, atol=1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("count", [3, 4])
def test_planes_of_16_bits_keep_their_upper_eight(tmp_path: Path, order: str, count: int) -> None:
    planes = [np.array([0, 0x40FF, 0xFF01, 0xFFFF]) for _ in range(3)] + [np.full(4, 0xFFFF)]
    write_tiff(
        tmp_path / "a.tif",
        4,
        1,
        [plane.astype(f"{order}u2").tobytes() for plane in planes[:count]],
        bits=16,
        order=order,
        samples=count,
        photometric=2,
        tags={338: [2]} if count == 4 else {},
    )
    np.testing.assert_allclose(load(tmp_path / "a.tif")[0, :, 0], [0, 0x40, 255, 255], atol=1)


def test_alpha_that_greys_were_multiplied_by_is_undone(tmp_path: Path) -> None:
    tags = {338: [1]}
    write_tiff(tmp_path / "a.tif", 2, 1, [bytes([0, 0, 50, 128])], bits=8, samples=2, tags=tags)
    clear, half = load(tmp_path / "a.tif")[0].tolist()
    assert clear == WHITE
    assert half == pytest.approx([177] * 3, abs=2)


@pytest.mark.parametrize("scale", [1, 257])
def test_the_palette_of_a_tiff_file_may_have_8_bits(tmp_path: Path, scale: int) -> None:
    palette = np.zeros((3, 256), int)
    palette[:, 1] = 200, 100, 50
    tags = {320: (palette * scale).ravel().tolist()}
    write_tiff(tmp_path / "a.tif", 2, 1, [b"\0\1"], bits=8, photometric=3, tags=tags)
    assert load(tmp_path / "a.tif").tolist() == [[BLACK, [200, 100, 50]]]


def with_alpha(*alphas: int) -> npt.NDArray[np.uint8]:
    """Pixels in the order of BMP and TGA."""
    return np.array([[[30, 60, 90, alpha] for alpha in alphas]], np.uint8)


def write_tga(path: Path, bgra: npt.NDArray[np.uint8]) -> Path:
    height, width = bgra.shape[:2]
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, width, height, 32, 0x28)
    path.write_bytes(header + bgra.tobytes())
    return path


@pytest.mark.parametrize("write", [write_bmp, write_tga])
def test_alpha_of_bmp_and_tga_counts_unless_it_is_0_everywhere(
    tmp_path: Path, write: Callable[[Path, npt.NDArray[np.uint8]], Path]
) -> None:
    assert load(write(tmp_path / "a", with_alpha(0, 0))).tolist() == [[[90, 60, 30]] * 2]
    assert load(write(tmp_path / "b", with_alpha(0, 255))).tolist() == [[WHITE, [90, 60, 30]]]


def test_a_png_whose_alpha_is_0_everywhere_is_white(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", with_alpha(0, 0), 8)
    assert load(path).tolist() == [[WHITE, WHITE]]


def test_colours_of_a_tga_palette_may_be_transparent(tmp_path: Path) -> None:
    header = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 0, 2, 32, 0, 0, 2, 1, 8, 0x28)
    palette = bytes([30, 60, 90, 255, 0, 0, 0, 0])
    (tmp_path / "a.tga").write_bytes(header + palette + b"\0\1")
    assert load(tmp_path / "a.tga").tolist() == [[[90, 60, 30], WHITE]]


def deep_jpeg2000(path: Path, pixels: npt.NDArray[np.uint16]) -> Path:
    lossless = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
    assert cv2.imwrite(str(path), pixels[:, :, ::-1], lossless)
    return path


def test_white_stays_white_in_jpeg2000_of_16_bits(tmp_path: Path) -> None:
    pixels = np.zeros((80, 64, 3), np.uint16)
    pixels[:40] = 65535, 0x8000, 65535
    np.testing.assert_allclose(load(deep_jpeg2000(tmp_path / "a.jp2", pixels)), pixels >> 8, atol=2)


def test_a_damaged_jpeg2000_of_16_bits_is_a_decode_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = deep_jpeg2000(tmp_path / "a.jp2", np.full((80, 64, 3), 999, np.uint16))
    whole = path.read_bytes()
    path.write_bytes(whole[:120] + bytes(len(whole) - 120))
    with pytest.raises(DecodeError):
        load(path)
    assert capfd.readouterr().err == ""


RED, GREEN, BLUE = [255, 0, 0], [0, 255, 0], [0, 0, 255]


def row(path: Path, number: int) -> list[list[int]]:
    return load(path, number)[0].tolist()


def test_a_gif_frame_restored_to_background_leaves_white(tmp_path: Path) -> None:
    frames = [((0, 0, 4, 1), 0, 0), ((1, 0, 2, 1), 1, 2), ((3, 0, 1, 1), 2, 2)]
    path = write_gif(tmp_path / "a.gif", (4, 1), [*frames, ((0, 0, 1, 1), 3, 0)])
    assert row(path, 1) == [RED] * 4
    assert row(path, 2) == [RED, GREEN, GREEN, RED]
    assert row(path, 3) == [RED, WHITE, WHITE, BLUE]
    assert row(path, 4) == [BLACK, WHITE, WHITE, WHITE]


def test_a_first_gif_frame_restored_to_background_leaves_white(tmp_path: Path) -> None:
    frames = [((0, 0, 4, 1), 0, 2), ((1, 0, 1, 1), 1, 0), ((2, 0, 1, 1), 2, 0)]
    path = write_gif(tmp_path / "a.gif", (4, 1), frames)
    assert row(path, 2) == [WHITE, GREEN, WHITE, WHITE]
    assert row(path, 3) == [WHITE, GREEN, BLUE, WHITE]


def test_a_gif_screen_is_white_around_its_first_frame(tmp_path: Path) -> None:
    frames = [((1, 0, 2, 1), 0, 0), ((0, 0, 1, 1), 1, 3), ((3, 0, 1, 1), 2, 0)]
    path = write_gif(tmp_path / "a.gif", (4, 1), frames)
    assert row(path, 1) == [WHITE, RED, RED, WHITE]
    assert row(path, 2) == [GREEN, RED, RED, WHITE]
    assert row(path, 3) == [WHITE, RED, RED, BLUE]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_transparent_pictures_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    pixels = np.array([[[10, 20, 30, 255], [0, 0, 0, 0], [40, 50, 60, 255]]] * 2, np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    shown = load(tmp_path / "a.png")
    assert shown.shape[:2] == ((2, 3) if orientation < 5 else (3, 2))
    assert (shown == 255).all(axis=2).sum() == 2
