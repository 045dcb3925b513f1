"""Seek in animated GIF files as browsers do: what no frame covers is transparent."""

from __future__ import annotations

from PIL import GifImagePlugin, Image

_RESTORE_TO_BACKGROUND = 2
"""Disposal method (GIF89a specification, 23)."""


def seek_frame(image: GifImagePlugin.GifImageFile, number: int) -> None:
    """Seek a frame; the frames before it are drawn.

    Pillow fills with the background colour what browsers leave transparent: the screen around the
    first frame, and the area of a frame that is restored to the background.

    Args:
        image: Just opened.
        number: Of the frame, from 1.

    Raises:
        EOFError: There is no such frame.
    """
    _clear_around(image)
    for index in range(1, number):
        if image.disposal_method == _RESTORE_TO_BACKGROUND:
            box, image.dispose = image.dispose_extent, None
            _clear(image, box)
        image.disposal_method = 0  # Pillow lets a frame that states none inherit it
        image.seek(index)


def _clear_around(image: GifImagePlugin.GifImageFile) -> None:
    """Make the screen around a smaller first frame transparent."""
    box = image.dispose_extent
    if box is None or box == (0, 0, *image.size):
        return
    image.load()
    frame = image.convert("RGBA").crop(box)
    _replace(image, Image.new("RGBA", image.size))
    image.paste(frame, box)


def _clear(image: GifImagePlugin.GifImageFile, box: tuple[int, int, int, int] | None) -> None:
    """Make an area of what was drawn transparent."""
    image.load()
    canvas = image.convert("RGBA")
    if box is not None:
        canvas.paste((255, 255, 255, 0), box)
    _replace(image, canvas)


def _replace(image: GifImagePlugin.GifImageFile, canvas: Image.Image) -> None:
    """Put RGBA pixels in the place of those that were drawn."""
    image.info.pop("transparency", None)
    image.im, image._mode = canvas.im, "RGBA"
