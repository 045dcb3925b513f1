"""The bits of an H.264 stream's NAL units, read and written (ITU-T H.264, 7.2 and 9.1)."""

from __future__ import annotations


class Unsupported(ValueError):
    """Something that is not read here, or a damaged stream."""


class Bits:
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


def ue(number: int) -> str:
    """The bits of an unsigned Exp-Golomb number, as "0" and "1"."""
    bits = f"{number + 1:b}"
    return "0" * (len(bits) - 1) + bits


def se(number: int) -> str:
    """The bits of a signed Exp-Golomb number."""
    return ue(2 * number - 1 if number > 0 else -2 * number)


def write_nal(header: int, bits: str) -> bytes:
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
