"""Decode a picture of any mode and depth to RGB of 8 bits on white, as viewers show it.

Ordinary pictures become what transformers' ``convert_to_rgb`` makes of them. The rest of this
module is for files that Pillow, and with it transformers, shows in wrong colours.
"""

from __future__ import annotations

from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from vlmbatch.core import UInt8Array
from vlmbatch.errors import DecodeError

_BITS_TAG, _PHOTOMETRIC_TAG, _PLANES_TAG, _COLORMAP_TAG, _SAMPLE_FORMAT_TAG = (
    258,
    262,
    284,
    320,
    339,
)
_UNSIGNED, _SIGNED = 1, 2
_MAY_LACK_ALPHA = ("BMP", "DIB", "TGA", "ICO")
"""Formats whose writers often leave 0 in every alpha: the picture is opaque then."""

_CODESTREAM_START = b"\xff\x4f\xff\x51"
"""Markers SOC and SIZ, with which a JPEG 2000 codestream begins (ISO/IEC 15444-1, A.4.1)."""


def decode_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened picture, or the frame of it that was sought, as RGB on white.

    Args:
        image: Not decoded yet.

    Raises:
        Exception: Whatever Pillow raises about a damaged file.
    """
    file, rawmode = getattr(image, "fp", None), _raw_mode(image)
    if image.format == "JPEG2000" and image.mode != "I;16" and _jpeg2000_bits(file) > 8:
        return _deep_jpeg2000(file)
    _read_planes_of_16_bits(image)
    image.load()
    return on_white(_shown(image, rawmode, file))


def on_white(image: Image.Image) -> Image.Image:
    """Composite transparency on white: the calls of transformers'
    ``image_transforms.convert_to_rgb``, and palettes with alpha too.
    """
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(background, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _shown(image: Image.Image, rawmode: str, file: IO[bytes] | None) -> Image.Image:
    """A decoded picture in a mode that ``on_white`` converts as viewers do."""
    tags = getattr(image, "tag_v2", {})
    key = image.info.get("transparency")
    if image.mode == "F" or image.mode.startswith("I"):
        return _with_clear(_eight_bits(image, tags), np.asarray(image), key)
    if image.mode == "L" and tags.get(_SAMPLE_FORMAT_TAG) == (_SIGNED,):
        return Image.fromarray(_scaled(np.asarray(image).view(np.int8)))
    if image.mode == "La":  # Pillow converts it to LA alone
        return image.convert("LA")
    if rawmode in ("L;2", "L;4") and image.mode == "L" and isinstance(key, int):
        levels = 1 << int(rawmode[2:])  # Pillow scales the greys, not the transparent one
        image.info["transparency"] = key % levels * 255 // (levels - 1)
    elif rawmode == "RGB;16B" and image.mode == "RGB" and key is not None and file is not None:
        return _with_clear(image, _exact(image, file), key)
    elif image.format in _MAY_LACK_ALPHA and _is_clear(image):
        return image.convert("RGB")
    elif image.mode == "P" and 0 < max(tags.get(_COLORMAP_TAG, (0,))) < 256:
        # Colours of 8 bits where TIFF has 16, which Pillow divides by 256.
        image.putpalette(np.reshape(tags[_COLORMAP_TAG], (3, -1)).T.astype(np.uint8).tobytes())
    return image


def _with_clear(shown: Image.Image, exact: npt.NDArray[Any], key: Any) -> Image.Image:
    """Make the pixels whose exact value is a PNG file's transparent colour transparent."""
    shown.info.pop("transparency", None)
    if key is not None:
        matches = exact == np.asarray(key)
        opaque = ~(matches.all(axis=2) if exact.ndim == 3 else matches)
        shown.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    return shown


def _exact(image: Image.Image, file: IO[bytes]) -> npt.NDArray[np.uint16]:
    """The 16 bits of the colours of which Pillow decodes the upper 8, uint16, (H, W, 3)."""
    file.seek(0)
    with Image.open(file, formats=("PNG",)) as again:
        again.tile = [tile._replace(args="RGB;16L") for tile in again.tile]  # the lower 8
        low = np.asarray(again)
    exact: npt.NDArray[np.uint16] = np.asarray(image).astype(np.uint16) << 8 | low
    return exact


def _is_clear(image: Image.Image) -> bool:
    """Whether alpha is 0 everywhere."""
    return image.has_transparency_data and not image.convert("RGBA").getchannel("A").getbbox()


def _eight_bits(image: Image.Image, tags: Any) -> Image.Image:
    """Greys of more than 8 bits as mode L; Pillow would clip them at 255."""
    bits = int(tags.get(_BITS_TAG, (16,))[0])
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        greys = (values >> (bits - 8)).astype(np.uint8)
    elif image.mode == "I" and image.format in ("PNG", "PPM"):
        greys = (values >> 8).astype(np.uint8)  # of 16 bits, whatever the file has
    elif image.mode == "I" and tags.get(_SAMPLE_FORMAT_TAG, (_UNSIGNED,)) == (_UNSIGNED,):
        greys = _scaled(values.view(np.uint32))
    else:
        greys = _scaled(values)
    # Pillow inverts what is stored as "white is zero" in 8 bits only.
    return Image.fromarray(255 - greys if tags.get(_PHOTOMETRIC_TAG) == 0 else greys)


def _scaled(values: npt.NDArray[Any]) -> UInt8Array:
    """Greys whose type does not say which one is white, as 0 to 255.

    White is 1 for floats (a tenth of them may be brighter, as highlights are), 255 for values that
    look like 8 bits, and else the largest value. Black is 0, or the least value when that is
    negative. What is not a number is black.
    """
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    whole = bool((finite == np.rint(finite)).all())
    if values.dtype.kind == "f" and (high <= 1 or (not whole and (finite > 1).mean() <= 0.1)):
        white = 1.0
    else:
        white = 255.0 if low >= 0 and high <= 255 and (whole or high > 127) else high
    black = min(low, 0.0)
    with np.errstate(invalid="ignore"):
        scaled = (values.astype(np.float32) - black) * (255 / max(white - black, 1e-30))
    greys: UInt8Array = np.nan_to_num(np.rint(scaled).clip(0, 255)).astype(np.uint8)
    return greys


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's name for the storage of a PNG file's pixels; "" for other formats."""
    tiles = getattr(image, "tile", None)
    return str(tiles[0].args) if image.format == "PNG" and tiles else ""


def _read_planes_of_16_bits(image: Image.Image) -> None:
    """Tell Pillow that uncompressed planes of a TIFF file have 16 bits, of which it reads 8."""
    tags = getattr(image, "tag_v2", None)
    if tags is None or tags.get(_PLANES_TAG) != 2 or set(tags.get(_BITS_TAG, ())) != {16}:
        return
    order = "B" if tags.prefix == b"MM" else "L"
    assert isinstance(image, ImageFile.ImageFile)
    image.tile = [
        tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
        if tile.codec_name == "raw" and isinstance(tile.args, tuple) and len(tile.args[0]) == 1
        else tile
        for tile in image.tile
    ]


def _jpeg2000_bits(file: IO[bytes] | None) -> int:
    """Bits of the first component of a JPEG 2000 file; 0 when it does not say."""
    if file is None:
        return 0
    file.seek(0)
    head = file.read(1 << 20)
    place = head.find(_CODESTREAM_START) + 42  # Ssiz of component 0
    return (head[place] & 127) + 1 if 42 <= place < len(head) else 0


def _deep_jpeg2000(file: IO[bytes] | None) -> Image.Image:
    """Decode JPEG 2000 colours of more than 8 bits, of which Pillow makes the brightest black: it
    rounds 65535 up to 256 * 256 and keeps the lower 8 bits.
    """
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # stderr is the job's
    assert file is not None
    bits = _jpeg2000_bits(file)
    file.seek(0)
    pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise DecodeError(
            f"JPEG 2000 with {bits} bits a colour cannot be decoded; convert it to 8 bits"
        )
    shown = (pixels.astype(np.uint16) >> (bits - 8)).astype(np.uint8)
    order = [2, 1, 0, 3][: shown.shape[2]]
    return on_white(Image.fromarray(np.ascontiguousarray(shown[:, :, order])))
