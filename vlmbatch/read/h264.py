"""What an H.264 stream says about its pictures before their pixels: parameter sets and slice headers (ITU-T H.264, 7.3), read and written.

Only what streams of whole frames in MP4 and Matroska have: everything else raises ``Unsupported``, and then nothing is concluded from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

P, B, I = 0, 1, 2  # noqa: E741 - the field's names

_SLICE, _IDR, _SEI, _DELIMITER, _FILLER = 1, 5, 6, 9, 12
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
_HEADER_BYTES = 400
"""A slice's header is in its first bytes, also with weights for many references."""


class Unsupported(ValueError):
    """Something that is not read here, or a damaged stream."""


class _Bits:
    """The bits of a NAL unit behind its header byte, emulation prevention taken out (7.3.1)."""

    def __init__(self, nal: bytes) -> None:
        payload = nal[1:].replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(payload, "big"), 8 * len(payload)

    def u(self, count: int) -> int:
        """An unsigned number of so many bits."""
        self._left -= count
        if self._left < 0:
            raise Unsupported("a header that does not end")
        number = self._value >> self._left
        self._value ^= number << self._left
        return number

    def ue(self) -> int:
        """An unsigned Exp-Golomb number (9.1)."""
        zeros = self._left - self._value.bit_length()
        if zeros > 31:
            raise Unsupported("a number of more than 32 bits")
        return self.u(2 * zeros + 1) - 1

    def se(self) -> int:
        """A signed Exp-Golomb number (9.1.1)."""
        number = self.ue()
        return (number + 1) // 2 if number & 1 else -(number // 2)


def _ue(number: int) -> str:
    bits = f"{number + 1:b}"
    return "0" * (len(bits) - 1) + bits


def _se(number: int) -> str:
    return _ue(2 * number - 1 if number > 0 else -2 * number)


def _nal(header: int, bits: str) -> bytes:
    """A NAL unit of bits, closed (rbsp_trailing_bits) and with emulation prevention."""
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    made, zeros = bytearray([header]), 0
    for byte in int(bits, 2).to_bytes(len(bits) // 8, "big"):
        if zeros >= 2 and byte <= 3:
            made.append(3)
            zeros = 0
        made.append(byte)
        zeros = 0 if byte else zeros + 1
    return bytes(made)


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
class Slice:
    """A slice's header (7.3.3).

    Attributes:
        ref_idc: 0: no other picture refers to this one.
        is_idr: Whether what comes before is forgotten.
        kind: P, B or I.
        frame_num: Counts reference frames, modulo.
        poc_lsb: Low bits of the place in the order of presentation.
        poc_delta_bottom: The bottom field's distance from it.
        num_refs: Length of each of the two lists of references.
        changes: What is moved to the front of each list: pairs of ``modification_of_pic_nums_idc`` and its number.
        unmarks: ``difference_of_pic_nums_minus1`` of references to forget; None: the oldest goes when there are too many.
        picture_id: Its picture parameter set.
    """

    ref_idc: int
    is_idr: bool
    kind: int
    frame_num: int
    poc_lsb: int
    poc_delta_bottom: int
    num_refs: tuple[int, int]
    changes: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]
    unmarks: tuple[int, ...] | None
    picture_id: int


class Stream:
    """Reads the packets of one stream.

    Raises:
        Unsupported: The stream has what is not read here.
    """

    def __init__(self, extradata: bytes) -> None:
        """Reads the parameter sets.

        Args:
            extradata: An AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3.1).
        """
        if len(extradata) < 7 or extradata[0] != 1:
            raise Unsupported("no parameter sets beside the stream")
        self._length_bytes = (extradata[4] & 3) + 1
        sequences, place = _sets(extradata, 6, extradata[5] & 31)
        pictures, _ = _sets(extradata, place + 1, extradata[place] if place < len(extradata) else 0)
        if len(sequences) != 1 or not pictures:
            raise Unsupported("several sequence parameter sets, or none")
        self._sequence_id, self.sequence = _sequence(_Bits(sequences[0]))
        self._pictures = dict(_picture(_Bits(nal)) for nal in pictures)
        self._spare_id = max(set(range(256)) - set(self._pictures))

    def slices(self, packet: bytes) -> list[Slice]:
        """The headers of a packet's slices."""
        found = []
        for nal in self._nals(packet):
            kind = nal[0] & 31
            if kind in (_SLICE, _IDR):
                found.append(self._slice(nal))
            elif kind not in (_SEI, _DELIMITER, _FILLER):
                raise Unsupported(f"NAL units of type {kind}")
        if not found:
            raise Unsupported("a packet without a slice")
        return found

    def without_pixels(self, header: Slice) -> bytes:
        """A packet for the same place in the decoder's memory: its picture repeats the last reference, which takes next to nothing to decode.

        Numbers, order and marking are those of the header, so that whatever comes after finds what it would have found, but for this picture's pixels.
        """
        original = self._pictures[header.picture_id]
        # Picture parameter set: no arithmetic coding, no weights, and a slice may turn the deblocking filter off.
        picture = _ue(self._spare_id) + _ue(self._sequence_id) + f"0{original.states_bottom:b}" + _ue(0) + _ue(0) + _ue(0) + "000" + _se(0) * 3 + "100"
        bits = _ue(0) + _ue(P + 5) + _ue(self._spare_id)
        bits += f"{header.frame_num:0{self.sequence.frame_num_bits}b}{header.poc_lsb:0{self.sequence.poc_bits}b}"
        bits += _se(header.poc_delta_bottom) if original.states_bottom else ""
        bits += "00"  # as many references as the parameter set says, one; in the usual order
        if header.ref_idc:
            bits += "0" if header.unmarks is None else "1" + "".join(_ue(1) + _ue(number) for number in header.unmarks) + _ue(0)
        bits += _se(0) + _ue(1)  # no change of the quantizer; no deblocking
        bits += _ue(self.sequence.num_macroblocks)  # mb_skip_run: all of them
        nals = [_nal(0x68, picture), _nal(header.ref_idc << 5 | _SLICE, bits)]
        return b"".join(len(nal).to_bytes(self._length_bytes, "big") + nal for nal in nals)

    def _nals(self, packet: bytes) -> Iterator[bytes]:
        """The NAL units of a packet, each as far as a header may go."""
        place = 0
        while place < len(packet):
            start = place + self._length_bytes
            place = start + int.from_bytes(packet[start - self._length_bytes : start], "big")
            if place > len(packet) or start == place:
                raise Unsupported("a packet that ends too early")
            yield packet[start : min(place, start + _HEADER_BYTES)]

    def _slice(self, nal: bytes) -> Slice:
        bits = _Bits(nal)
        ref_idc, is_idr = nal[0] >> 5 & 3, nal[0] & 31 == _IDR
        bits.ue()
        kind = bits.ue() % 5
        picture_id = bits.ue()
        if kind not in (P, B, I) or picture_id not in self._pictures:
            raise Unsupported("a slice of an unknown kind")
        picture = self._pictures[picture_id]
        frame_num = bits.u(self.sequence.frame_num_bits)
        if is_idr:
            bits.ue()
        poc_lsb = bits.u(self.sequence.poc_bits)
        bottom = bits.se() if picture.states_bottom else 0
        if kind == B:
            bits.u(1)
        num_refs = picture.default_refs
        if kind != I and bits.u(1):
            num_refs = (bits.ue() + 1, bits.ue() + 1 if kind == B else 0)
        num_refs = (num_refs[0] if kind != I else 0, num_refs[1] if kind == B else 0)
        if max(num_refs) > 32:
            raise Unsupported("more references than there can be")
        changes = (_changes(bits) if kind != I else (), _changes(bits) if kind == B else ())
        if (kind == P and picture.weighted_p) or (kind == B and picture.weighted_b):
            self._pass_weights(bits, sum(num_refs))
        unmarks = None
        if ref_idc and is_idr:
            bits.u(1)
            if bits.u(1):
                raise Unsupported("long-term references")
        elif ref_idc and bits.u(1):
            unmarks = tuple(_unmarks(bits))
        return Slice(ref_idc, is_idr, kind, frame_num, poc_lsb, bottom, num_refs, changes, unmarks, picture_id)

    def _pass_weights(self, bits: _Bits, num_refs: int) -> None:
        """Reads over weights for prediction (7.3.3.2)."""
        bits.ue()
        if self.sequence.has_colours:
            bits.ue()
        for _ in range(num_refs):
            for count in (2, 4) if self.sequence.has_colours else (2,):
                if bits.u(1):
                    for _ in range(count):
                        bits.se()


def _sets(extradata: bytes, place: int, count: int) -> tuple[list[bytes], int]:
    found = []
    for _ in range(count):
        length = int.from_bytes(extradata[place : place + 2], "big")
        found.append(extradata[place + 2 : place + 2 + length])
        place += 2 + length
    return found, place


def _sequence(bits: _Bits) -> tuple[int, SequenceSet]:
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


def _pass_scaling(bits: _Bits, size: int) -> None:
    """Reads over a scaling list (7.3.2.1.1.1)."""
    last = after = 8
    for _ in range(size):
        if after:
            after = (last + bits.se()) % 256
        last = after or last


def _picture(bits: _Bits) -> tuple[int, PictureSet]:
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


def _changes(bits: _Bits) -> tuple[tuple[int, int], ...]:
    """Changes of a list of references (7.3.3.1)."""
    found: list[tuple[int, int]] = []
    if bits.u(1):
        while (operation := bits.ue()) != 3:
            if operation > 1 or len(found) > 66:
                raise Unsupported("long-term references")
            found.append((operation, bits.ue()))
    return tuple(found)


def _unmarks(bits: _Bits) -> Iterator[int]:
    """References to forget (7.3.3.3)."""
    while operation := bits.ue():
        if operation != 1:
            raise Unsupported("long-term references")
        yield bits.ue()
