"""An open video: frames with the times that a player shows them at, upright pixels, and skipping that gives the same frames as decoding everything."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import math
import os
import struct
import threading
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmbatch.errors import DecodeError, ReadError
from vlmbatch.read.base import check_size, one_line
from vlmbatch.records import UInt8Array

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

SEEK_GAP_SECONDS = 15.0
"""Gaps shorter than this are decoded: key frames are often 10 s apart, and a seek goes back to the one before."""

_SEEK_MARGIN_SECONDS = 1.0
"""Containers seek by decoding time, which runs ahead of presentation time by the reordered frames."""

_TOLERANCE_SECONDS = 1e-6
_FALLBACK_FPS = 25
_MAX_DEMUX_ERRORS = 16
_SHORT_SECONDS = 1.0
"""A stated duration below this is checked against the packets, which are few when it is right: files that hold few times state next to nothing."""

_MICROSECONDS = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class DecodedFrame:
    """A frame as the decoder gives it; only ``rgb`` makes RGB of it.

    Attributes:
        time_seconds: Presentation time, the container's start subtracted.
        duration_seconds: How long it stands when nothing follows.
        is_key: Whether decoding can start here.
    """

    time_seconds: float
    duration_seconds: float
    is_key: bool
    _frame: av.VideoFrame
    _max_pixels: int
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def rgb(self) -> UInt8Array:
        """The upright picture, uint8, (H, W, 3).

        Raises:
            DecodeError: It cannot be converted, or has too many pixels.
        """
        check_size(self._frame.width, self._frame.height, self._max_pixels)
        from av.video.reformatter import VideoReformatter

        try:
            # PyAV changes the frame while it converts it, so threads take turns. One thread a conversion: it runs on one of many workers already.
            with self._lock:
                converted = VideoReformatter().reformat(self._frame, format="rgb24", threads=1)
            pixels = np.asarray(converted.to_ndarray(), np.uint8)
        except (OSError, ValueError, RuntimeError, MemoryError) as exc:
            raise DecodeError(f"a frame cannot be converted to RGB: {one_line(exc)}") from exc
        return np.ascontiguousarray(_upright(pixels, self._frame), np.uint8)


class VideoFile:
    """A video file, opened. One thread at a time; ``frames`` starts over each time; only its latest iterator goes on.

    Attributes:
        num_decoded: Frames decoded so far.
        num_broken: Packets so far that could not be read or decoded.
        broken_seconds: Time of the last frame before the first of them.
        broken_reason: What the decoder said.

    Raises:
        ReadError: The file cannot be opened.
        DecodeError: It is no video, or its frames have too many pixels.
    """

    def __init__(self, path: str, max_pixels: int) -> None:
        """Opens the file and reads its header.

        Args:
            path: The file.
            max_pixels: Frames with more pixels are refused before they are decoded.
        """
        self._path = path
        self._max_pixels = max_pixels
        self._container, self._stream = _open(path)
        self.num_decoded = 0
        self.num_broken = 0
        self.broken_seconds = 0.0
        self.broken_reason = ""
        self._wanted_seconds = 0.0
        self._last_seconds = -math.inf
        self._seekable = True
        self._started = False
        self._step = 1 / Fraction(self._stream.average_rate or self._stream.guessed_rate or _FALLBACK_FPS)
        self._origin = _origin(self._container, self._stream)
        try:
            check_size(self._stream.codec_context.width, self._stream.codec_context.height, max_pixels)
        except DecodeError:
            self.close()
            raise

    def __enter__(self) -> VideoFile:
        """The file itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes the file."""
        self.close()

    def close(self) -> None:
        """Closes the file. Frames that were given out stay valid."""
        self._container.close()

    @functools.cached_property
    def end_seconds(self) -> float:
        """Where the video ends, as the container states it; from the packets' times when it does not."""
        stream = self._stream
        if stream.duration and stream.time_base:
            end = float((stream.duration + (stream.start_time or 0)) * stream.time_base - self._origin)
        else:
            end = (self._container.duration or 0) / _MICROSECONDS
        if end > _SHORT_SECONDS:
            return end
        times = self.frame_times()
        return max(end, times[-1] + float(self._step)) if times else 0.0

    def frame_times(self) -> list[float]:
        """Times of all frames, ascending, in seconds: from the packets. Only where these have none (AVI, raw streams) are frames decoded."""
        return list(self._frame_times)

    @functools.cached_property
    def _frame_times(self) -> tuple[float, ...]:
        container, stream = _open(self._path)
        with container:
            pts = [packet.pts for packet in _packets(container, stream) if packet.size and not packet.is_discard]
        if None in pts or not stream.time_base:
            with VideoFile(self._path, self._max_pixels) as again:
                return tuple(frame.time_seconds for frame in again.frames())
        return tuple(float(time) for time in sorted({self._time(value) for value in pts if value is not None}))

    def _time(self, pts: int) -> Fraction:
        return pts * (self._stream.time_base or Fraction(1)) - self._origin

    def skip_to(self, seconds: float) -> None:
        """Says that ``frames`` may leave out what is over before this time."""
        self._wanted_seconds = seconds

    def frames(self, start_seconds: float = 0.0) -> Iterator[DecodedFrame]:
        """Yields frames in presentation order, times strictly rising.

        The frame on screen at ``start_seconds``, or at what ``skip_to`` said last, and all later ones are among them. Damaged packets are passed
        over and counted.
        """
        if self._started:
            self._reopen()
        self._started = True
        self._wanted_seconds, self._last_seconds = start_seconds, -math.inf
        current = self._timed(self._decoded())
        while True:
            reached = max(self._last_seconds, 0.0) + SEEK_GAP_SECONDS
            if self._seekable and self._wanted_seconds > reached and self.end_seconds > reached:
                current = self._jump(min(self._wanted_seconds, self.end_seconds))
                self._wanted_seconds = -math.inf
            frame = next(current, None)
            if frame is None:
                return
            if frame.time_seconds > self._last_seconds + _TOLERANCE_SECONDS / 2:
                self._last_seconds = frame.time_seconds
                self.num_decoded += 1
                yield frame

    def _jump(self, seconds: float) -> Iterator[DecodedFrame]:
        """Frames from the key frame before a time on; from the file's start when the container cannot say where that is."""
        if self._stream.time_base:
            pts = int((Fraction(seconds - _SEEK_MARGIN_SECONDS) + self._origin) / self._stream.time_base)
            try:
                self._container.seek(pts, stream=self._stream)
                # Frames before the first key frame may refer to what was skipped.
                decoded = itertools.dropwhile(lambda frame: not frame.key_frame, self._decoded(from_key=True))
                first = next(decoded, None)
            except (OSError, ValueError) as exc:
                logger.debug("no seeking in %s: %s", self._path, one_line(exc))
                first = None
            if first is not None and first.pts is not None and self._time(first.pts) <= seconds + _TOLERANCE_SECONDS:
                # Where key frames are far apart, each seek would go back to before where decoding already was.
                self._seekable = self._time(first.pts) > self._last_seconds + _TOLERANCE_SECONDS
                return self._timed(itertools.chain([first], decoded))
        self._seekable = False
        self._reopen()
        return self._timed(self._decoded())

    def _reopen(self) -> None:
        self._container.close()
        self._container, self._stream = _open(self._path)

    def _timed(self, decoded: Iterator[av.VideoFrame]) -> Iterator[DecodedFrame]:
        """Gives frames their times; one without a time, or with one that runs backwards, follows the one before at the frame rate."""
        last: Fraction | None = None
        for frame in decoded:
            time = None if frame.pts is None else self._time(frame.pts)
            if time is None or (last is not None and time <= last):
                time = Fraction(0) if last is None else last + self._step
            last = time
            duration = frame.duration * (self._stream.time_base or 0) or self._step
            yield DecodedFrame(float(time), float(duration), bool(frame.key_frame), frame, self._max_pixels)

    def _decoded(self, from_key: bool = False) -> Iterator[av.VideoFrame]:
        """Frames as the decoder gives them, in presentation order; with ``from_key`` packets before the first key frame are left out."""
        from av.error import FFmpegError

        for packet in _packets(self._container, self._stream, self._note):
            if from_key and packet.size and not packet.is_keyframe:
                continue
            from_key = False
            try:
                frames = packet.decode()
            except (FFmpegError, MemoryError) as exc:
                self._note(exc)
                continue
            yield from frames

    def _note(self, error: Exception) -> None:
        if not self.num_broken:
            self.broken_seconds, self.broken_reason = max(self._last_seconds, 0.0), one_line(error)
        self.num_broken += 1


def _open(path: str) -> tuple[InputContainer, VideoStream]:
    import av

    try:
        size = os.stat(path).st_size
        with open(path, "rb") as file:
            file.read(1)
    except (OSError, ValueError) as exc:
        raise ReadError(one_line(exc)) from exc
    if size == 0:
        raise DecodeError("empty file")
    try:
        # `file:` and the whitelist: a name is never taken for a URL, and a playlist in a video's clothes reaches no network.
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError, RuntimeError, MemoryError) as exc:
        # The bytes could be read, so this is about what they say, even where ffmpeg calls it an input/output error.
        raise DecodeError(f"not a video: {one_line(exc)}") from exc
    try:
        attached = av.stream.Disposition.attached_pic
        stream = next((stream for stream in container.streams.video if not stream.disposition & attached), None)
        if stream is None:
            raise DecodeError("no video stream")
        if stream.codec_context is None:
            raise DecodeError("no decoder for this video's format")
        stream.thread_type = "AUTO"
    except BaseException:
        container.close()
        raise
    return container, stream


def _packets(container: InputContainer, stream: VideoStream, note: Any = None) -> Iterator[av.Packet[Any]]:
    """Packets of the stream and the empty one that flushes the decoder. Reading goes on after an error, a few times."""
    from av.error import FFmpegError

    num_errors = 0
    while num_errors < _MAX_DEMUX_ERRORS:
        try:
            yield from container.demux(stream)
            return
        except IndexError:
            # At the end PyAV flushes every stream, and fails at one that turned up after the file was opened (MPEG-TS); this one came before it.
            return
        except FFmpegError as exc:
            num_errors += 1
            if note is not None:
                note(exc)


def _origin(container: InputContainer, stream: VideoStream) -> Fraction:
    """The time that a player calls 0, in seconds: the container's start, exact where it is the stream's own (it is stated in microseconds)."""
    own = Fraction(0) if stream.start_time is None else stream.start_time * (stream.time_base or Fraction(0))
    if container.start_time is None:
        return own
    start = Fraction(container.start_time, _MICROSECONDS)
    return own if abs(own - start) <= _TOLERANCE_SECONDS else start


def _upright(pixels: UInt8Array, frame: av.VideoFrame) -> UInt8Array:
    """Turns and mirrors a picture as its display matrix says.

    The matrix ((a, b, u), (c, d, v), (x, y, w)) takes a stored point (p, q) to (a p + c q + x, b p + d q + y) (ffmpeg's libavutil/display.h);
    angles between the quarter turns are left alone.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    if abs(b) > abs(a):
        pixels = pixels.transpose(1, 0, 2)
        a, d = c, b
    if a < 0:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if d < 0 else pixels
