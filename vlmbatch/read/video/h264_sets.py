"""The parameter sets of an H.264 stream: what holds for all its pictures (ITU-T H.264, 7.3.2)."""

from __future__ import annotations

import dataclasses

from vlmbatch.read.video.h264_bits import Bits, Unsupported

_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)


@dataclasses.dataclass(frozen=True, slots=True)
class SequenceSet:
    """A sequence parameter set (7.3.2.1).

    Attributes:
        frame_num_bits: Length of ``frame_num``.
        poc_bits: Length of ``pic_order_cnt_lsb``.
        max_refs: The most reference frames.
        num_macroblocks: Of a frame.
        has_colours: Whether there are colour planes, which weights are stated for.
    """

    frame_num_bits: int
    poc_bits: int
    max_refs: int
    num_macroblocks: int
    has_colours: bool


@dataclasses.dataclass(frozen=True, slots=True)
class PictureSet:
    """A picture parameter set (7.3.2.2), as far as slice headers go."""

    sequence_id: int
    states_bottom: bool
    default_refs: tuple[int, int]
    weighted_p: bool
    weighted_b: bool


@dataclasses.dataclass(frozen=True, slots=True)
class ParameterSets:
    """What stands beside a stream.

    Attributes:
        length_bytes: So many bytes state the length of each NAL unit in a packet.
        sequence_id: Number of the sequence parameter set.
        sequence: The one that there is.
        pictures: Picture parameter sets by their number.
    """

    length_bytes: int
    sequence_id: int
    sequence: SequenceSet
    pictures: dict[int, PictureSet]


def read_parameter_sets(extradata: bytes) -> ParameterSets:
    """Reads an AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3.1).

    Raises:
        Unsupported: It is none, or has what is not read here.
    """
    if len(extradata) < 7 or extradata[0] != 1:
        raise Unsupported("no parameter sets beside the stream")
    sequences, place = _sets(extradata, 6, extradata[5] & 31)
    pictures, _ = _sets(extradata, place + 1, extradata[place] if place < len(extradata) else 0)
    if len(sequences) != 1 or not pictures:
        raise Unsupported("several sequence parameter sets, or none")
    number, sequence = _sequence(Bits(sequences[0]))
    return ParameterSets(
        (extradata[4] & 3) + 1, number, sequence, dict(_picture(Bits(nal)) for nal in pictures)
    )


def _sets(extradata: bytes, place: int, count: int) -> tuple[list[bytes], int]:
    found = []
    for _ in range(count):
        length = int.from_bytes(extradata[place : place + 2], "big")
        found.append(extradata[place + 2 : place + 2 + length])
        place += 2 + length
    return found, place


def _sequence(bits: Bits) -> tuple[int, SequenceSet]:
    profile = bits.u(8)
    bits.u(16)
    number = bits.ue()
    chroma = 1
    if profile in _HIGH_PROFILES:
        chroma = bits.ue()
        if chroma == 3 and bits.u(1):
            raise Unsupported("colour planes of their own")
        bits.ue(), bits.ue(), bits.u(1)  # bit depths, qpprime_y_zero_transform_bypass_flag
        if bits.u(1):
            for place in range(8 if chroma != 3 else 12):
                if bits.u(1):
                    _pass_scaling(bits, 16 if place < 6 else 64)
    frame_num_bits = bits.ue() + 4
    if bits.ue() != 0:
        raise Unsupported("an order of presentation that is not stated")
    poc_bits = bits.ue() + 4
    max_refs, gaps = bits.ue(), bits.u(1)
    num_macroblocks = (bits.ue() + 1) * (bits.ue() + 1)
    if not bits.u(1) or gaps or not 1 <= max_refs <= 16:
        raise Unsupported("fields, or gaps between frames")
    return number, SequenceSet(frame_num_bits, poc_bits, max_refs, num_macroblocks, chroma != 0)


def _pass_scaling(bits: Bits, size: int) -> None:
    """Reads over a scaling list (7.3.2.1.1.1)."""
    last = after = 8
    for _ in range(size):
        if after:
            after = (last + bits.se()) % 256
        last = after or last


def _picture(bits: Bits) -> tuple[int, PictureSet]:
    number, sequence_id = bits.ue(), bits.ue()
    bits.u(1)
    states_bottom = bool(bits.u(1))
    if bits.ue():
        raise Unsupported("slice groups")
    default_refs = (bits.ue() + 1, bits.ue() + 1)
    weighted_p, weighted_b = bool(bits.u(1)), bits.u(2) == 1
    bits.se(), bits.se(), bits.se(), bits.u(2)
    if bits.u(1):
        raise Unsupported("redundant pictures")
    return number, PictureSet(sequence_id, states_bottom, default_refs, weighted_p, weighted_b)
