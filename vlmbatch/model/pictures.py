"""Load pictures and clips that Python programs give: paths, URLs, Pillow images, arrays, bytes,
open files.

Paths and URLs go through the readers of a job, with their formats, limits and address guard.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union

import numpy as np
import numpy.typing as npt

from vlmbatch.core import Item, Pixels
from vlmbatch.errors import DecodeError, ItemError, JobError, ReadError, VlmbatchError, one_line
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.sample import make_sampler
from vlmbatch.serve.media import ClipSampling, load_sampled_clip
from vlmbatch.tasks import Task
from vlmbatch.urls import is_url, without_credentials

if TYPE_CHECKING:
    from PIL import Image

PictureLike: TypeAlias = Union[
    str, os.PathLike[str], bytes, BinaryIO, "Image.Image", npt.NDArray[Any]
]
"""A path, a URL (``https:``, ``data:``, of a store), the bytes of a picture file, a file that is
open in binary mode, a Pillow image, or an array: uint8, (H, W), (H, W, 3) or (H, W, 4).
"""

ClipLike: TypeAlias = str | os.PathLike[str] | bytes
"""The path or URL of a video (also ``data:``), or the bytes of its file."""

_PILLOW_GUARD = threading.Lock()
"""Pillow decodes an opened file at first use, which two threads must not do at once."""


def is_picture(value: Any) -> bool:
    """True for one picture, False for a collection of them."""
    if isinstance(value, (str, bytes, os.PathLike)) or _is_pillow(value) or _is_open(value):
        return True
    return hasattr(value, "__array__") and np.ndim(value) < 4


def items_of(
    pictures: PictureLike | Iterable[PictureLike], task: Task = "caption"
) -> Iterator[Item]:
    """Yield an Item a picture, lazily: several for a folder, a glob, an archive or a document.

    What cannot be read is an Item whose ``load`` raises. ``place`` counts the Items.

    Args:
        pictures: A picture, or several.
        task: With vqa the rows of a manifest may ask questions of their own.
    """
    given = [pictures] if is_picture(pictures) else pictures
    number = 0
    for value in given:  # type: ignore[union-attr]
        for item in _items(value, number, task):
            yield dataclasses.replace(item, place=(number, 0))
            number += 1


def load_picture(value: PictureLike) -> Pixels:
    """Load one picture.

    Raises:
        ItemError: It cannot be read or decoded.
        JobError: It is none, or several.
    """
    items = list(_first(items_of(value), 2))
    if len(items) != 1:
        raise JobError(
            f"{_shown(value)} holds {'several pictures' if items else 'no picture'}; "
            "give one picture"
        )
    return items[0].load()


def load_clip(value: ClipLike, fps: float | None = None, num_frames: int | None = None) -> Pixels:
    """Load the frames of a video that the checkpoint takes of it.

    Args:
        value: Path, URL or bytes of the video.
        fps: Frames a second, at most 64 in all. [default: 1]
        num_frames: At most so many frames, evenly spaced, instead.

    Raises:
        ItemError: It cannot be read or decoded.
        JobError: It is no video, or the options are not allowed.
    """
    data = value if isinstance(value, bytes) else None
    if isinstance(value, str) and value.startswith("data:"):
        data = _data_bytes(value)
    path = "-" if data is not None else _path_text(value)
    job = Job(inputs=path, media="video", per="clip", fps=fps, num_frames=num_frames, output="-")
    if data is not None:
        with tempfile.NamedTemporaryFile(prefix="vlmbatch-") as file:
            file.write(data)
            file.flush()
            return load_sampled_clip(file.name, job.max_pixels, ClipSampling(fps, num_frames))
    if not is_url(path) and not os.path.exists(path):
        raise ReadError(f"no such file: {path}")
    items = list(_first(open_reader(job, sampler=make_sampler(job)), 2))
    if len(items) != 1:
        raise JobError(
            f"{_shown(value)} holds {'several videos' if items else 'no video'}; give one video"
        )
    return items[0].load()


def _items(value: Any, number: int, task: Task) -> Iterator[Item]:
    if isinstance(value, (str, os.PathLike)) and not str(value).startswith("data:"):
        yield from _read_items(_path_text(value), number, task)
        return
    name = f"picture-{number}"
    if isinstance(value, str):
        yield _item(name, "data:", number, lambda: _load_bytes(_data_bytes(value)))
    elif isinstance(value, bytes):
        yield _item(name, "memory", number, lambda: _load_bytes(value))
    elif _is_open(value):
        yield _open_item(name, value, number)
    elif _is_pillow(value):
        yield _item(name, "memory", number, lambda: _load_pillow(value))
    elif hasattr(value, "__array__"):
        yield _item(name, "memory", number, lambda: Pixels((_rgb_array(np.asarray(value)),)))
    else:
        raise JobError(
            f"a picture is a path, a URL, bytes, an open file, a Pillow image or an array, not "
            f"{type(value).__name__}"
        )


def _item(name: str, source: str, number: int, load: Callable[[], Pixels]) -> Item:
    return Item(name, source, (number, 0), "image", load)


def _open_item(name: str, file: Any, number: int) -> Item:
    """Item of an open file. It is read now: the caller may go on to close it."""
    if isinstance(file, io.TextIOBase):
        reason = "the file is open as text: open a picture with mode 'rb'"
        return _item(name, "memory", number, _raises(ReadError(reason)))
    try:
        data = file.read()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        return _item(name, "memory", number, _raises(ReadError(one_line(error))))
    return _item(name, "memory", number, lambda: _load_bytes(data))


def _read_items(text: str, number: int, task: Task) -> Iterator[Item]:
    """Items of a path or URL, as a job lists them."""
    try:
        questions = ("?",) if task == "vqa" else ()  # the caller's, which rows may replace
        job = Job(inputs=(text,), task=task, questions=questions, output="-")
        for item in open_reader(job):
            yield dataclasses.replace(item, id=_item_id(text, item))
    except VlmbatchError as error:
        reason = error if isinstance(error, ItemError) else ReadError(one_line(error))
        yield _item(_shown(text), _shown(text), number, _raises(reason))


def _item_id(given: str, item: Item) -> str:
    """The path of a picture, from where the program runs; the URL of one that was fetched."""
    if is_url(given) or not os.path.exists(given):
        return item.source
    folder = given if os.path.isdir(given) else os.path.dirname(given)
    return (Path(folder) / item.id).as_posix()


def _raises(error: ItemError) -> Callable[[], Pixels]:
    def load() -> Pixels:
        raise error

    return load


def _load_bytes(data: bytes) -> Pixels:
    from vlmbatch.read.pictures.decode import load_image

    if not data:
        raise DecodeError("empty file")
    return load_image(io.BytesIO(data), _LIMITS.max_pixels)


def _load_pillow(image: Image.Image) -> Pixels:
    from vlmbatch.read.pictures.decode import upright_copy

    with _PILLOW_GUARD:
        return Pixels((upright_copy(image, _LIMITS.max_pixels),))


def _rgb_array(array: npt.NDArray[Any]) -> Any:
    """An array as RGB, uint8, (H, W, 3)."""
    is_known = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not is_known or 0 in array.shape:
        raise DecodeError(
            f"an array of {array.dtype}, {array.shape}: a picture is uint8, (H, W), (H, W, 3) or "
            "(H, W, 4)"
        )
    if array.ndim == 3 and array.shape[2] == 4:
        from PIL import Image

        return _load_pillow(Image.fromarray(array)).frames[0]
    if array.ndim == 2 or array.shape[2] == 1:
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return np.array(array)  # a copy: the caller may go on to write into it


def _data_bytes(url: str) -> bytes:
    """The bytes of a ``data:`` URL (RFC 2397)."""
    head, comma, data = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ReadError("a data: URL of a picture is data:image/…;base64,…")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ReadError(f"a data: URL that is no base64: {one_line(error)}") from error


def _path_text(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise JobError(f"a path or URL, not {type(value).__name__}")
    text = os.fspath(value)
    return "./-" if text == "-" else text  # to a job, - is standard input


def _shown(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        return type(value).__name__
    text = str(value)
    return "a data: URL" if text.startswith("data:") else without_credentials(text)


def _is_pillow(value: Any) -> bool:
    return hasattr(value, "convert") and hasattr(value, "getexif")


def _is_open(value: Any) -> bool:
    return hasattr(value, "read") and not hasattr(value, "__array__")


def _first(items: Iterable[Item], count: int) -> Iterator[Item]:
    for _, item in zip(range(count), items, strict=False):
        yield item


_LIMITS = Job()
