"""Which pictures of an H.264 stream each picture may refer to: its lists of references, built as a
decoder builds them (ITU-T H.264, 8.2).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vlmbatch.read.video.h264 import B, I, Slice
from vlmbatch.read.video.h264_bits import Unsupported
from vlmbatch.read.video.h264_sets import SequenceSet


@dataclasses.dataclass(frozen=True, slots=True)
class _Reference:
    """A picture that those after it may refer to."""

    frame_num: int
    poc: int
    owner: Any


class References:
    """The memory of a decoder, as the headers of the pictures say; pictures come in decoding order.

    Raises:
        Unsupported: The headers do not tell, now or from now on.
    """

    def __init__(self, sequence: SequenceSet) -> None:
        """Starts before a picture that forgets all others."""
        self._sequence = sequence
        self._memory: list[_Reference] = []
        self._last_frame_num: int | None = None
        self._poc = (0, 0)

    @property
    def remembered(self) -> list[Any]:
        """The owners of the pictures that the next one may refer to."""
        return [reference.owner for reference in self._memory]

    def add(self, slices: list[Slice], owner: Any) -> list[Any]:
        """Takes the next picture.

        Args:
            slices: Its slices' headers.
            owner: What stands for it in lists of references.

        Returns:
            The owners of the pictures that it may refer to, in the order of its lists.
        """
        first = slices[0]
        if len({(one.ref_idc > 0, one.is_idr, one.frame_num, one.poc_lsb) for one in slices}) > 1:
            raise Unsupported("more than one picture in a packet")
        if first.is_idr:
            self._memory, self._last_frame_num = [], None
        modulo = 1 << self._sequence.frame_num_bits
        expected = 0 if self._last_frame_num is None else (self._last_frame_num + 1) % modulo
        if first.frame_num != expected or (self._last_frame_num is None and not first.is_idr):
            raise Unsupported("a reference frame is missing")
        top = self._order(first)
        poc = min(top, top + first.poc_delta_bottom)
        # The slices of a picture mostly have the same lists.
        kinds = {(one.kind, one.num_refs, one.changes): one for one in slices}
        found = [owner for one in kinds.values() for owner in self._lists(one, poc, modulo)]
        if first.ref_idc:
            self._remember(first, _Reference(first.frame_num, poc, owner), modulo)
        return found

    def _order(self, header: Slice) -> int:
        """The picture order count of the top field (8.2.1.1)."""
        size = 1 << self._sequence.poc_bits
        msb, lsb = (0, 0) if header.is_idr else self._poc
        if header.poc_lsb < lsb and lsb - header.poc_lsb >= size // 2:
            msb += size
        elif header.poc_lsb > lsb and header.poc_lsb - lsb > size // 2:
            msb -= size
        if header.ref_idc:
            self._poc = (msb, header.poc_lsb)
        return msb + header.poc_lsb

    def _lists(self, header: Slice, poc: int, modulo: int) -> list[Any]:
        """The owners in both lists of a slice (8.2.4)."""
        if header.kind == I:
            return []
        numbers = {
            _number(reference, header.frame_num, modulo): reference for reference in self._memory
        }
        if header.kind == B:
            before = sorted(
                (one for one in self._memory if one.poc < poc), key=lambda one: -one.poc
            )
            after = sorted((one for one in self._memory if one.poc > poc), key=lambda one: one.poc)
            if len(before) + len(after) < len(self._memory):
                raise Unsupported("two pictures of the same order")
            initial = [before + after, after + before]
            if len(initial[1]) > 1 and initial[0] == initial[1]:
                initial[1] = [initial[1][1], initial[1][0], *initial[1][2:]]
        else:
            initial = [[numbers[number] for number in sorted(numbers, reverse=True)]]
        found: list[Any] = []
        for references, length, changes in zip(
            initial, header.num_refs, header.changes, strict=False
        ):
            found.extend(
                one.owner
                for one in _changed(references, length, changes, numbers, header.frame_num, modulo)
            )
        return found

    def _remember(self, header: Slice, reference: _Reference, modulo: int) -> None:
        """Marks a picture as a reference, and forgets others (8.2.5)."""
        numbers = {_number(one, header.frame_num, modulo): one for one in self._memory}
        if header.unmarks is not None:
            for number in header.unmarks:
                if numbers.pop(header.frame_num - number - 1, None) is None:
                    raise Unsupported("a reference to forget is missing")
        elif len(numbers) >= self._sequence.max_refs:
            del numbers[min(numbers)]
        if len(numbers) >= self._sequence.max_refs:
            raise Unsupported("too many references")
        self._memory = [*numbers.values(), reference]
        self._last_frame_num = header.frame_num


def _number(reference: _Reference, frame_num: int, modulo: int) -> int:
    """PicNum (8.2.4.1)."""
    return reference.frame_num - (modulo if reference.frame_num > frame_num else 0)


def _changed(
    references: list[_Reference],
    length: int,
    changes: tuple[tuple[int, int], ...],
    numbers: dict[int, _Reference],
    frame_num: int,
    modulo: int,
) -> list[_Reference]:
    """A list of references after its changes (8.2.4.3.1)."""
    references = references[:length]
    predicted = frame_num
    for place, (operation, difference) in enumerate(changes):
        predicted = (predicted + (difference + 1) * (1 if operation else -1)) % modulo
        chosen = numbers.get(predicted - (modulo if predicted > frame_num else 0))
        if chosen is None or place >= length:
            raise Unsupported("a reference is missing")
        references = [
            *references[:place],
            chosen,
            *(one for one in references[place:] if one is not chosen),
        ]
    return references[:length]
