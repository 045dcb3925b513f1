"""A video's container: opened safely, its stream chosen, its packets one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from vlmbatch.errors import DecodeError, one_line
from vlmbatch.processor import processor_share
from vlmbatch.read.files.source import DiskFile
from vlmbatch.read.video.restarts import Jumps, continued

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

SAME_SECONDS = 1e-6
"""Times closer than this are the same."""

MICROSECONDS = 1_000_000
_FALLBACK_FPS = 25
_MAX_DEMUX_ERRORS = 16
_VP8_SHOWN = 0x10
_THEORA_HEADER = 0x80
_STATES_EACH_END = ("mov,mp4,m4a,3gp,3g2,mj2", "avi")
"""Containers that state how long each stream is; others state it of the longest one."""


class Demuxer:
    """An open file: its container, and the packets of one video stream.

    Attributes:
        container: The container.
        stream: The stream.
        states_end: Whether the container states the end of each stream, and its times run on.
        is_joined: Whether files of this kind are often joined end to end, so that only reading them
            tells where they end.
        jumps: Jumps of times in the packets so far.

    Raises:
        ReadError: The file cannot be opened.
        DecodeError: It is no video, or has no such stream.
    """

    def __init__(self, path: str, number: int | None = None) -> None:
        """Open a file.

        Args:
            path: The file.
            number: The video stream, from 0; None chooses one.
        """
        from av.format import Flags

        self.container = _open(path)
        self.jumps = Jumps()
        try:
            self.stream = _choose_stream(self.container, number)
            self.stream.thread_type = "AUTO"
            share = processor_share()
            if share.quota is not None:  # FFmpeg itself starts a thread for each core of the host
                self.stream.codec_context.thread_count = share.threads
            name, flags = self.container.format.name, Flags(self.container.format.flags)
            self.states_end = name in _STATES_EACH_END
            self.is_joined = bool(flags & Flags.ts_discont) or name == "flv"
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Demuxer:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def packets(self, note: Callable[[Exception], None] | None = None) -> Iterator[av.Packet[Any]]:
        """Yield packets and the empty one that flushes the decoder. Their times run on where the
        file's start anew. Reading goes on after an error, a few times.

        Args:
            note: Called with each error.
        """
        found, base = self._demuxed(note), self.stream.time_base
        if self.states_end or not base:
            return found
        return continued(found, base, frame_seconds(self.stream), self.is_frame, self.jumps)

    def is_frame(self, packet: av.Packet[Any]) -> bool:
        """Return whether a packet gives a frame that is shown: an edit list may cut it away, VP8
        has frames that are only referred to (RFC 6386, 9.1), and Theora has headers in packets.
        """
        if not packet.size or packet.is_discard:
            return False
        name = self.stream.codec_context.name
        if name not in ("vp8", "theora"):
            return True
        first = memoryview(packet)[0]
        return not first & _THEORA_HEADER if name == "theora" else bool(first & _VP8_SHOWN)

    def _demuxed(self, note: Callable[[Exception], None] | None) -> Iterator[av.Packet[Any]]:
        from av.error import FFmpegError

        # AVI has decoding times alone: FFmpeg's presentation times of reordered frames are late.
        is_avi = self.container.format.name == "avi"
        reorders = self.stream.codec_context.has_b_frames
        num_errors = 0
        while num_errors < _MAX_DEMUX_ERRORS:
            try:
                for packet in self.container.demux(self.stream):
                    if is_avi and (reorders or packet.pts != packet.dts):
                        packet.pts = None
                    yield packet
                return
            except IndexError:
                # At the end PyAV flushes every stream, and fails at one that appeared after the
                # file was opened (MPEG-TS); this one came before it.
                return
            except FFmpegError as exc:
                num_errors += 1
                if note is not None:
                    note(exc)


def _open(path: str) -> InputContainer:
    import av

    DiskFile(path).open().close()
    try:
        # `file:` and the whitelist: a name is never taken for a URL, and a playlist that is named
        # like a video reaches no network.
        return av.open(
            f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace"
        )
    except (av.error.FFmpegError, ValueError, RuntimeError, MemoryError) as exc:
        # The bytes could be read, so this is about their content, even where FFmpeg calls it an
        # input/output error.
        raise DecodeError(f"not a video: {one_line(exc)}") from exc


def _choose_stream(container: InputContainer, number: int | None) -> VideoStream:
    """Return the numbered stream, or the one that a player takes: flagged as default, then the
    largest picture. Cover art and thumbnails are no streams of the video.
    """
    import av

    flags = av.stream.Disposition
    pictures = flags.attached_pic | flags.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        raise DecodeError("no video stream")
    if number is not None and number >= len(streams):
        numbers = "0" if len(streams) == 1 else f"0 to {len(streams) - 1}"
        raise DecodeError(
            f"no video stream {number}: the file has {len(streams)}, so --stream takes {numbers}"
        )

    def rank(stream: VideoStream) -> tuple[bool, bool, int]:
        codec = stream.codec_context
        size = 0 if codec is None else codec.width * codec.height
        return codec is not None, bool(stream.disposition & flags.default), size

    chosen = max(streams, key=rank) if number is None else streams[number]
    if chosen.codec_context is None:
        raise DecodeError("no decoder for this video's format")
    return chosen


def frame_seconds(stream: VideoStream) -> Fraction:
    """Return the seconds from one frame to the next, at the stated frame rate."""
    return 1 / Fraction(stream.average_rate or stream.guessed_rate or _FALLBACK_FPS)


def drops_exactly(stream: VideoStream) -> bool:
    """Return whether the decoder can leave out frames that no other frame refers to, so that every
    other frame stays as it is.

    HEVC's frames of that kind may be referred to by those of a higher temporal layer; a stream that
    states one layer has none.
    """
    name = stream.codec_context.name
    if name == "hevc":
        extradata = stream.codec_context.extradata or b""  # hvcC: ISO/IEC 14496-15, 8.3.3.1
        return len(extradata) > 21 and extradata[0] == 1 and extradata[21] >> 3 & 7 == 1
    return name in ("h264", "mpeg2video", "mpeg4")
