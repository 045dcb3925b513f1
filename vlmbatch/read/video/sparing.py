"""Which frames of an H.264 stream are decoded for nothing but their place in the decoder's memory,
and what is decoded instead.

Encoders that put B-frames into pyramids let the other B-frames around one refer to it, and nothing
else; its headers say so. When none of those is wanted
its pixels are never seen: a picture that repeats another stands in for it, at a third of the time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmbatch.read.video.h264 import Slice, Stream
from vlmbatch.read.video.h264_bits import Unsupported
from vlmbatch.read.video.references import References
from vlmbatch.read.video.skipping import Step

if TYPE_CHECKING:
    import av

logger = logging.getLogger(__name__)


def open_sparing(codec: str, extradata: bytes | None) -> H264Sparing | None:
    """What tells whose pixels are needed; None where that cannot be told."""
    try:
        return H264Sparing(Stream(extradata or b"")) if codec == "h264" else None
    except Unsupported as exc:
        logger.debug("the pixels of all frames are decoded: %s", exc)
        return None


class H264Sparing:
    """Follows the references of one stretch of a stream, which begins at a key frame."""

    def __init__(self, stream: Stream) -> None:
        """Takes what reads the stream."""
        self._stream = stream
        self._references: References | None = References(stream.sequence)
        self._known: dict[Step, tuple[Slice, list[Step]]] = {}

    def spare(self, held: Sequence[Step], count: int) -> None:
        """See ``skipping.Sparing``. Once a header cannot be read all pixels are needed."""
        if self._references is None:
            return
        try:
            for step in held:
                if step not in self._known:
                    self._known[step] = self._read(step, self._references)
        except Unsupported as exc:
            logger.debug("the pixels of all frames are decoded: %s", exc)
            self._references, self._known = None, {}
            return
        # What comes after all that is held can only refer to what is in memory then.
        needed = set(self._references.remembered)
        for number in range(len(held) - 1, -1, -1):
            step = held[number]
            header, refers_to = self._known[step]
            if step.wanted or step.is_key or step in needed or (number >= count and header.ref_idc):
                needed.update(refers_to)
            elif header.ref_idc and step.is_shown:
                step.packet = _packet(self._stream.without_pixels(header), step.packet)
        self._known = {step: self._known[step] for step in held[count:]}

    def _read(self, step: Step, references: References) -> tuple[Slice, list[Step]]:
        slices = self._stream.slices(bytes(step.packet))
        if step.fresh and not slices[0].is_idr:
            raise Unsupported("a key frame that frames after it may refer past")
        return slices[0], references.add(slices, step)


def _packet(content: bytes, instead_of: Any) -> av.Packet[Any]:
    import av

    made: av.Packet[Any] = av.Packet(content)
    made.stream, made.time_base = instead_of.stream, instead_of.time_base
    made.pts, made.dts, made.duration = instead_of.pts, instead_of.dts, instead_of.duration
    return made
