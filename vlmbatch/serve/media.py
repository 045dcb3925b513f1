"""Pictures and videos of a request: ``data:`` and ``https:`` URLs, and nothing else."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import logging
import re
import threading
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any, BinaryIO, Literal

from vlmbatch.core import Pixels
from vlmbatch.errors import DecodeError, ItemError, MissingDependencyError, ReadError
from vlmbatch.read.extras import need_remote
from vlmbatch.read.files.source import DiskFile, HeldBytes
from vlmbatch.serve.settings import MediaLimits

logger = logging.getLogger(__name__)

FETCH_SECONDS = 60.0
"""Longest time that fetching may take."""

FETCH_TRIES = 1
"""A client tries again by itself, and would wait in vain here."""

_DATA = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class ClipSampling:
    """Choice of a video's frames: so many a second, at most so many, or the checkpoint's rule."""

    fps: float | None = None
    num_frames: int | None = None


class Medium:
    """A picture or video of a request. Used by one thread at a time.

    Attributes:
        kind: ``picture`` or ``clip``.
        detail: Detail of a picture; None for the server's own.
        is_remote: Whether ``fetch`` must be called before ``pixels``.
    """

    def __init__(
        self,
        url: str,
        kind: Literal["picture", "clip"],
        param: str,
        limits: MediaLimits,
        detail: str | None = None,
        sampling: ClipSampling | None = None,
    ) -> None:
        """Take a URL; nothing is read yet.

        Args:
            url: The URL.
            kind: ``picture`` or ``clip``.
            param: The place in the request; errors name it.
            limits: What is refused.
            detail: ``low``, ``high``, ``auto`` or None.
            sampling: Choice of a video's frames.
        """
        self._url, self.kind, self._param, self._limits = url, kind, param, limits
        self.detail: Literal["low", "full"] | None = None
        if kind == "picture" and detail in ("low", "high"):
            self.detail = "low" if detail == "low" else "full"
        self._sampling = sampling or ClipSampling()
        self.is_remote = url[:5].lower() != "data:"
        self._fetched: bytes | DiskFile | None = None
        self._pixels: Pixels | None = None
        self._guard = threading.Lock()

    def fetch(self) -> None:
        """Fetch what is behind the URL, under the address guard.

        Raises:
            ReadError: It cannot be had, or its scheme is not allowed; ``param`` says which it is.
        """
        try:
            scheme = urllib.parse.urlsplit(self._url).scheme.lower()
            if scheme not in (("https", "http") if self._limits.allow_private_urls else ("https",)):
                raise ReadError("a URL begins with data: or https:")
            need_remote("web URLs")
            if self.kind == "clip":
                self._fetched = DiskFile.copied("", self._fill)
            else:
                sink = io.BytesIO()
                self._fill(sink)
                self._fetched = sink.getvalue()
        except (ItemError, MissingDependencyError, ValueError) as error:
            raise self._named(error) from error

    def pixels(self) -> Pixels:
        """Decode it; a second call returns the same.

        Raises:
            ReadError: It is over a limit.
            DecodeError: It is no picture or video, or a broken one; ``param`` says which it is.
        """
        with self._guard:
            if self._pixels is None:
                try:
                    self._pixels = self._clip() if self.kind == "clip" else self._picture()
                except ItemError as error:
                    raise self._named(error) from error
                self._url, self._fetched = "", None
            return self._pixels

    def _fill(self, sink: BinaryIO) -> None:
        from vlmbatch.read.fetch import http as web

        web.fetch(
            self._url,
            _Hurried(sink, FETCH_SECONDS),  # type: ignore[arg-type]
            self._limits.max_file_bytes,
            allow_private=self._limits.allow_private_urls,
            max_attempts=FETCH_TRIES,
        )

    def _picture(self) -> Pixels:
        from vlmbatch.read.pictures.decode import load_image

        with HeldBytes(self._data()).open(self._limits.max_file_bytes) as file:
            return load_image(file, self._limits.max_pixels)

    def _clip(self) -> Pixels:
        fetched = self._fetched
        if not isinstance(fetched, DiskFile):
            data = self._data()
            if not data:
                raise DecodeError("empty file")
            fetched = HeldBytes(data).as_file()
        return load_sampled_clip(fetched.path, self._limits.max_pixels, self._sampling)

    def _data(self) -> bytes:
        """Return the bytes of the file."""
        if isinstance(self._fetched, bytes):
            return self._fetched
        match = _DATA.match(self._url)
        if match is None:
            raise DecodeError("not a data: URL; write data:image/png;base64,…")
        start = match.end()
        if len(self._url) - start > 3 * self._limits.max_file_bytes:
            raise ReadError(f"more bytes than --max-file-size ({self._limits.max_file_size})")
        text = self._url[start:]
        if "base64" not in match[2].lower().split(";"):
            return urllib.parse.unquote_to_bytes(text)
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise DecodeError(f"not base64: {error}") from error

    def _named(self, error: Exception) -> ItemError:
        """Return an error of the same kind that names the place in the request."""
        kind = type(error) if isinstance(error, ItemError) else ReadError
        named = kind(f"{self._param}: {error}")
        named.param = self._param  # type: ignore[attr-defined]
        return named


def load_sampled_clip(path: str, max_pixels: int, sampling: ClipSampling) -> Pixels:
    """Decode the frames of a video that go into a prompt, as ``vlmbatch video --per clip`` does.

    Raises:
        ReadError: The file cannot be opened.
        DecodeError: It is no video, or its frames have too many pixels.
    """
    from vlmbatch.read.video.file import VideoFile
    from vlmbatch.read.video.load import load_clip, no_frames
    from vlmbatch.sample.fps import Fps
    from vlmbatch.sample.num_frames import NumFrames
    from vlmbatch.sample.stretches import StretchSampler

    with VideoFile(path, max_pixels) as video:
        extent = video.extent
        number = sampling.num_frames
        if number is not None and sampling.fps is not None:
            number = max(1, min(number, round(sampling.fps * extent.end_seconds)))
        way = Fps(sampling.fps or 1.0) if number is None else NumFrames(number)
        spans: Sequence[Any] = list(StretchSampler(way, "clip")(video))
        if not spans:
            raise no_frames(video)
    return load_clip(path, max_pixels, spans[0], extent=extent)


class _Hurried:
    """A file that takes no more bytes once a time is over."""

    def __init__(self, file: BinaryIO, seconds: float) -> None:
        self._file, self._seconds = file, seconds
        self._end = time.monotonic() + seconds

    def write(self, data: bytes) -> int:
        """Write, unless it is too late."""
        if time.monotonic() > self._end:
            raise ReadError(f"not fetched within {self._seconds:.0f} s")
        return self._file.write(data)

    def seek(self, place: int) -> int:
        """Go to a place."""
        return self._file.seek(place)

    def truncate(self) -> int:
        """Drop what follows."""
        return self._file.truncate()
