"""Lists of paths on a stream: separators, encodings, and no reading ahead."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from tests.media import write_picture
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.read.files.kinds import read_paths


def test_names_with_newlines_come_through_nul_separated_stdin() -> None:
    assert list(read_paths(io.BytesIO(b"a\nb.jpg\0c.jpg\0"))) == ["a\nb.jpg", "c.jpg"]
    assert list(read_paths(io.BytesIO(b""))) == []


def test_a_byte_order_mark_is_no_part_of_the_first_path() -> None:
    assert list(read_paths(io.BytesIO("\ufeffa.jpg\r\nb.jpg\r\n".encode()))) == ["a.jpg", "b.jpg"]
    assert list(read_paths(io.BytesIO("\ufeff".encode()))) == []


def test_stdin_longer_than_a_block() -> None:
    names = [f"{number:06}.jpg" for number in range(20_000)]
    assert list(read_paths(io.BytesIO("\n".join(names).encode()))) == names


def test_the_first_path_of_stdin_is_given_as_soon_as_its_line_is_there(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            line = self.readline()
            return line or pytest.fail("read ahead")

    job = Job(inputs=("-",))
    paths = [write_picture(tmp_path / name) for name in ("b.jpg", "a.png")]
    lines = b"".join(os.fsencode(path) + b"\n" for path in paths)
    reader = iter(open_reader(job, stdin=Pipe(lines)))
    assert next(reader).id.endswith("b.jpg")
    assert next(reader).id.endswith("a.png")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
@pytest.mark.parametrize("size", [1, 3, 1 << 16])
def test_a_byte_order_mark_on_stdin_says_the_encoding(encoding: str, size: int) -> None:
    class Slow(io.BytesIO):
        def read1(self, ask: int | None = -1) -> bytes:
            return self.read(size)

    data = "größe.png\r\nb.png\r\n".encode(encoding)
    assert list(read_paths(Slow(data))) == ["größe.png", "b.png"]
