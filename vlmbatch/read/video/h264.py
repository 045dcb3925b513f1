"""What an H.264 stream says about its pictures before their pixels: slice headers (ITU-T H.264,
7.3.3), read and written.

Only what streams of whole frames in MP4 and Matroska have: everything else raises ``Unsupported``,
and then nothing is concluded from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmbatch.read.video.h264_bits import Bits, Unsupported, se, ue, write_nal
from vlmbatch.read.video.h264_sets import read_parameter_sets

P, B, I = 0, 1, 2  # noqa: E741 - the field's names

_SLICE, _IDR, _SEI, _DELIMITER, _FILLER = 1, 5, 6, 9, 12
_HEADER_BYTES = 400
"""A slice's header is in its first bytes, also with weights for many references."""


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
        changes: What is moved to the front of each list: pairs of ``modification_of_pic_nums_idc``
            and its number.
        unmarks: ``difference_of_pic_nums_minus1`` of references to forget; None: the oldest goes
            when there are too many.
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
            extradata: See ``h264_sets.read_parameter_sets``.
        """
        sets = read_parameter_sets(extradata)
        self.sequence = sets.sequence
        self._length_bytes, self._sequence_id, self._pictures = (
            sets.length_bytes,
            sets.sequence_id,
            sets.pictures,
        )
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
        """A packet for the same place in the decoder's memory: its picture repeats the last
        reference, which takes next to nothing to decode.

        Numbers, order and marking are those of the header, so that whatever comes after finds what
        it would have found, but for this picture's pixels.
        """
        original = self._pictures[header.picture_id]
        # Picture parameter set: no arithmetic coding, no weights, and a slice may turn the
        # deblocking filter off.
        picture = (
            ue(self._spare_id)
            + ue(self._sequence_id)
            + f"0{original.states_bottom:b}"
            + ue(0)
            + ue(0)
            + ue(0)
            + "000"
            + se(0) * 3
            + "100"
        )
        bits = ue(0) + ue(P + 5) + ue(self._spare_id)
        bits += f"{header.frame_num:0{self.sequence.frame_num_bits}b}{header.poc_lsb:0{self.sequence.poc_bits}b}"
        bits += se(header.poc_delta_bottom) if original.states_bottom else ""
        bits += "00"  # as many references as the parameter set says, one; in the usual order
        if header.ref_idc:
            bits += (
                "0"
                if header.unmarks is None
                else "1" + "".join(ue(1) + ue(number) for number in header.unmarks) + ue(0)
            )
        bits += se(0) + ue(1)  # no change of the quantizer; no deblocking
        bits += ue(self.sequence.num_macroblocks)  # mb_skip_run: all of them
        nals = [write_nal(0x68, picture), write_nal(header.ref_idc << 5 | _SLICE, bits)]
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
        bits = Bits(nal)
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
        return Slice(
            ref_idc,
            is_idr,
            kind,
            frame_num,
            poc_lsb,
            bottom,
            num_refs,
            changes,
            unmarks,
            picture_id,
        )

    def _pass_weights(self, bits: Bits, num_refs: int) -> None:
        """Reads over weights for prediction (7.3.3.2)."""
        bits.ue()
        if self.sequence.has_colours:
            bits.ue()
        for _ in range(num_refs):
            for count in (2, 4) if self.sequence.has_colours else (2,):
                if bits.u(1):
                    for _ in range(count):
                        bits.se()


def _changes(bits: Bits) -> tuple[tuple[int, int], ...]:
    """Changes of a list of references (7.3.3.1)."""
    found: list[tuple[int, int]] = []
    if bits.u(1):
        while (operation := bits.ue()) != 3:
            if operation > 1 or len(found) > 66:
                raise Unsupported("long-term references")
            found.append((operation, bits.ue()))
    return tuple(found)


def _unmarks(bits: Bits) -> Iterator[int]:
    """References to forget (7.3.3.3)."""
    while operation := bits.ue():
        if operation != 1:
            raise Unsupported("long-term references")
        yield bits.ue()
