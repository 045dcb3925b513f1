"""Pictures: the same pixels as the reference makes, and errors that say what is wrong."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.media import picture, write_huge_png, write_picture
from tests.read.pictures.files import packed_12_bits, write_tiff
from vlmbatch.errors import DecodeError, ReadError
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.read.pictures import decode as images

LIMIT = 200_000_000


def load(path: Path, max_pixels: int = LIMIT) -> np.ndarray:
    pixels = images.load_image(str(path), max_pixels).arrays()[0]
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.flags.c_contiguous
    return pixels


def reference(path: Path) -> np.ndarray:
    transforms = pytest.importorskip("transformers.image_transforms")
    with Image.open(path) as image:
        return transforms.convert_to_rgb(ImageOps.exif_transpose(image), return_numpy=True)


def in_mode(mode: str) -> Image.Image:
    image = Image.fromarray(picture())
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_every_mode_becomes_the_rgb_of_the_reference(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    in_mode(mode).save(path)
    np.testing.assert_array_equal(load(path), reference(path))


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("CMYK", "a.jpg"),
        ("L", "a.jpg"),
        ("RGB", "a.webp"),
        ("RGBA", "a.tiff"),
        ("RGB", "a.bmp"),
        ("RGB", "a.avif"),
        ("RGBA", "a.ico"),
    ],
)
def test_other_formats_become_the_rgb_of_the_reference(
    tmp_path: Path, mode: str, name: str
) -> None:
    path = tmp_path / name
    in_mode(mode).save(path)
    np.testing.assert_array_equal(load(path), reference(path))


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.jp2", "a.pgm"])
def test_greys_of_16_bits_keep_their_upper_eight(tmp_path: Path, name: str) -> None:
    greys = (np.arange(40 * 30) * 54).astype(np.uint16).reshape(30, 40)
    Image.fromarray(greys).save(tmp_path / name)
    assert greys.max() > 64_000
    np.testing.assert_array_equal(
        load(tmp_path / name), np.repeat((greys >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    )


@pytest.mark.parametrize(
    ("order", "bits", "white_is_zero"),
    [("<", 16, False), (">", 16, False), ("<", 16, True), ("<", 12, False)],
)
def test_greys_of_many_bits_in_tiff_files_are_as_viewers_show_them(
    tmp_path: Path, order: str, bits: int, white_is_zero: bool
) -> None:
    greys = ((np.arange(40 * 30) * 54) >> (16 - bits)).astype(np.uint16).reshape(30, 40)
    data = greys.astype(f"{order}u2").tobytes() if bits == 16 else packed_12_bits(greys)
    photometric = 0 if white_is_zero else 1
    write_tiff(tmp_path / "a.tif", 40, 30, [data], bits=bits, order=order, photometric=photometric)
    shown = (greys >> (bits - 8)).astype(np.uint8)
    np.testing.assert_array_equal(
        load(tmp_path / "a.tif")[:, :, 0], 255 - shown if white_is_zero else shown
    )


def test_greys_of_16_bits_are_turned_upright_and_may_have_a_transparent_one(tmp_path: Path) -> None:
    greys = (np.arange(40 * 30) * 54).astype(np.uint16).reshape(30, 40)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(greys).save(tmp_path / "a.png", exif=exif, transparency=int(greys[3, 3]))
    shown = greys >> 8
    shown[3, 3] = 255
    np.testing.assert_array_equal(load(tmp_path / "a.png")[:, :, 0], np.rot90(shown, -1))


def test_a_palette_with_a_transparent_colour_is_put_on_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = in_mode("P")
    image.save(path, transparency=image.getpixel((0, 0)))
    np.testing.assert_array_equal(load(path), reference(path))
    assert not np.array_equal(load(path), np.asarray(Image.open(path).convert("RGB")))


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    first, second = (Image.fromarray(picture(seed=seed)) for seed in (1, 2))
    first.save(path, save_all=True, append_images=[second])
    np.testing.assert_array_equal(load(path), reference(path))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, name: str) -> None:
    path = tmp_path / name
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(path, exif=exif)
    assert load(path).shape == ((30, 40, 3) if orientation < 5 else (40, 30, 3))
    np.testing.assert_array_equal(load(path), reference(path))


@pytest.mark.parametrize("block", [b"", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_exif_block_does_not_fail_the_picture(tmp_path: Path, block: bytes) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(picture()).save(path, exif=block)
    assert load(path).shape == (30, 40, 3)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1)])
def test_thin_pictures(tmp_path: Path, width: int, height: int) -> None:
    assert load(write_picture(tmp_path / "a.png", width, height)).shape == (height, width, 3)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.bmp", "a.webp", "a.tiff", "a.avif"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_truncated_file_is_a_decode_error(tmp_path: Path, name: str) -> None:
    path = write_picture(tmp_path / name, 400, 300)
    whole = path.read_bytes()
    for length in (4, 20, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(DecodeError) as caught:
            load(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"only text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", b"<svg/>"],
)
def test_what_is_no_picture_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match="not a picture"):
        load(path)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DecodeError, match="empty file"):
        load(tmp_path / "a.jpg")


def test_files_that_cannot_be_opened_are_read_errors(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    for path in (
        tmp_path / "missing.jpg",
        tmp_path,
        tmp_path / "broken.jpg",
        tmp_path / "self.jpg",
        Path("nul\0byte.jpg"),
    ):
        with pytest.raises(ReadError):
            load(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_a_read_error(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png")
    path.chmod(0)
    with pytest.raises(ReadError, match="Permission denied"):
        load(path)


def test_a_file_beyond_the_size_limit_is_a_read_error(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png")
    size = path.stat().st_size
    (within,) = open_reader(Job(inputs=(str(path),), max_file_size=str(size)))
    assert within.load().arrays()[0].shape == (30, 40, 3)
    (beyond,) = open_reader(Job(inputs=(str(path),), max_file_size=str(size - 1)))
    with pytest.raises(ReadError, match=f"{size:,} bytes are more than --max-file-size allows"):
        beyond.load()


def test_too_many_pixels_are_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_decode", lambda image: pytest.fail("decoded"))
    with pytest.raises(
        DecodeError,
        match=r"40000 x 40000 = 1,600,000,000 pixels are more than --max-pixels 200,000,000",
    ):
        load(write_huge_png(tmp_path / "a.png"))


def test_a_huge_picture_inside_an_icon_is_refused(tmp_path: Path) -> None:
    inner = write_huge_png(tmp_path / "a.png").read_bytes()
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    (tmp_path / "a.ico").write_bytes(struct.pack("<HHH", 0, 1, 1) + entry + inner)
    with pytest.raises(DecodeError, match="40000 x 40000"):
        load(tmp_path / "a.ico")


def test_the_pixel_limit_itself_is_allowed(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", 20, 10)
    assert load(path, 200).shape == (10, 20, 3)
    with pytest.raises(DecodeError):
        load(path, 199)


def test_the_reader_gives_an_item_a_picture(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png"):
        write_picture(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"text")
    reader = open_reader(Job(inputs=(str(tmp_path),)))
    items = list(reader)
    assert [(item.id, item.place, item.media, item.time_seconds) for item in items] == [
        ("a.png", (0, 0), "image", None),
        ("c.png", (1, 0), "image", None),
        ("sub/b.png", (2, 0), "image", None),
    ]
    np.testing.assert_array_equal(items[0].load().arrays()[0], picture())
    with pytest.raises(DecodeError):
        items[1].load()


def test_names_that_are_not_utf8_are_opened(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    (item,) = open_reader(Job(inputs=(str(tmp_path),)))
    assert item.id == "caf\\xe9.png"
    assert item.load().arrays()[0].shape == (30, 40, 3)


def test_missing_paths_on_stdin_are_items_that_fail(tmp_path: Path) -> None:
    lines = f"{tmp_path}/no.jpg\n{tmp_path}\n{tmp_path}/clip.mp4\n".encode()
    for item in open_reader(Job(inputs=("-",)), stdin=io.BytesIO(lines)):
        with pytest.raises(ReadError):
            item.load()
