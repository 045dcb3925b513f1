"""A video's container: opened safely, its packets one by one, and what its times count from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from vlmbatch.errors import DecodeError, ReadError
from vlmbatch.read.base import one_line

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

SAME_SECONDS = 1e-6
"""Times closer than this are the same."""

MICROSECONDS = 1_000_000
_MAX_DEMUX_ERRORS = 16
_VP8_SHOWN = 0x10


def open_container(path: str) -> tuple[InputContainer, VideoStream]:
    """Opens a file and finds its video stream.

    Raises:
        ReadError: The file cannot be opened.
        DecodeError: It is no video.
    """
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
        # `file:` and the whitelist: a name is never taken for a URL, and a playlist in a video's
        # clothes reaches no network.
        container = av.open(
            f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace"
        )
    except (av.error.FFmpegError, ValueError, RuntimeError, MemoryError) as exc:
        # The bytes could be read, so this is about what they say, even where ffmpeg calls it an
        # input/output error.
        raise DecodeError(f"not a video: {one_line(exc)}") from exc
    try:
        attached = av.stream.Disposition.attached_pic
        stream = next(
            (stream for stream in container.streams.video if not stream.disposition & attached),
            None,
        )
        if stream is None:
            raise DecodeError("no video stream")
        if stream.codec_context is None:
            raise DecodeError("no decoder for this video's format")
        stream.thread_type = "AUTO"
    except BaseException:
        container.close()
        raise
    return container, stream


def packets(
    container: InputContainer, stream: VideoStream, note: Callable[[Exception], None] | None = None
) -> Iterator[av.Packet[Any]]:
    """Packets of the stream and the empty one that flushes the decoder. Reading goes on after an
    error, a few times.

    Args:
        container: The container.
        stream: One of its streams.
        note: Hears of errors.
    """
    from av.error import FFmpegError

    num_errors = 0
    while num_errors < _MAX_DEMUX_ERRORS:
        try:
            yield from container.demux(stream)
            return
        except IndexError:
            # At the end PyAV flushes every stream, and fails at one that turned up after the file
            # was opened (MPEG-TS); this one came before it.
            return
        except FFmpegError as exc:
            num_errors += 1
            if note is not None:
                note(exc)


def is_shown(packet: av.Packet[Any], codec: str) -> bool:
    """Whether a packet's frame is one that is shown: an edit list may cut it away, and VP8 has
    frames that others only refer to (RFC 6386, 9.1).
    """
    return not packet.is_discard and not (codec == "vp8" and not memoryview(packet)[0] & _VP8_SHOWN)


def origin_seconds(container: InputContainer, stream: VideoStream) -> Fraction:
    """The time that a player calls 0, in seconds: the container's start, exact where it is the
    stream's own (it is stated in microseconds).
    """
    own = (
        Fraction(0)
        if stream.start_time is None
        else stream.start_time * (stream.time_base or Fraction(0))
    )
    if container.start_time is None:
        return own
    start = Fraction(container.start_time, MICROSECONDS)
    return own if abs(own - start) <= SAME_SECONDS else start


def drops_exactly(stream: VideoStream) -> bool:
    """Whether the decoder can be told to leave out frames that no other frame refers to, so that
    every other frame stays what it is.

    HEVC's frames of that kind may be referred to by those of a higher temporal layer; a stream that
    states one layer has none.
    """
    name = stream.codec_context.name
    if name == "hevc":
        extradata = stream.codec_context.extradata or b""  # hvcC: ISO/IEC 14496-15, 8.3.3.1
        return len(extradata) > 21 and extradata[0] == 1 and extradata[21] >> 3 & 7 == 1
    return name in ("h264", "mpeg2video", "mpeg4")
