"""The routine is compiled when that pays, kept, and used only where it computes as Pillow does."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.prepare.compiled import copy_library, needs_compiler
from vlmbatch.prepare import compiled as compiling
from vlmbatch.prepare.compiled import SOURCE, WORTH_SECONDS, CompiledResizer
from vlmbatch.prepare.tiles import TileSettings, cut_tiles

pytestmark = needs_compiler
SMALL = TileSettings(longest_edge=256, tile_edge=64)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """The library in a folder for caches."""
    return copy_library(tmp_path)


def test_a_short_run_compiles_nothing(tmp_path: Path) -> None:
    compiled = CompiledResizer(tmp_path / "new")
    cut_tiles(np.zeros((48, 64, 3), np.uint8), SMALL, compiled)
    compiled.add_pillow_seconds(WORTH_SECONDS / 2)
    assert compiled.get() is None
    assert not any(tmp_path.iterdir())


def test_pillows_time_adds_up(tmp_path: Path) -> None:
    compiled = CompiledResizer(tmp_path / "new" / "resize")
    assert compiled.get() is None
    for _ in range(2):
        compiled.add_pillow_seconds(WORTH_SECONDS / 2)
    compiled.compile_now()  # which waits for what is underway
    assert compiled.get() is not None
    assert [path.suffix for path in (tmp_path / "new" / "resize").iterdir()] == [".so"]


def test_the_next_run_has_it_at_once(library: Path) -> None:
    assert CompiledResizer(library.parent).get() is not None


def test_a_broken_library_is_made_anew(library: Path) -> None:
    library.write_bytes(b"\x7fELF")
    compiled = CompiledResizer(library.parent)
    assert compiled.get() is None
    compiled.compile_now()
    assert compiled.get() is not None


def test_a_library_that_others_may_write_is_not_loaded(library: Path) -> None:
    library.chmod(0o722)
    assert CompiledResizer(library.parent).get() is None


def test_a_library_that_computes_otherwise_is_not_used(
    library: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "other.c"
    source.write_text(
        SOURCE.read_text().replace("#define HALF (1 << (BITS - 1))", "#define HALF 0")
    )
    library.unlink()
    command = ["cc", "-O1", "-shared", "-fPIC", source, "-o", library, "-lm"]
    subprocess.run(command, check=True)
    library.chmod(0o700)
    with caplog.at_level(logging.WARNING):
        assert CompiledResizer(library.parent).get() is None
    assert "resized by Pillow" in caplog.text


def test_without_a_compiler_pillow_resizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    compiled = CompiledResizer(tmp_path / "resize")
    compiled.compile_now()
    assert compiled.get() is None
    picture = np.full((48, 64, 3), 7, np.uint8)
    assert np.array_equal(cut_tiles(picture, SMALL, compiled)[0], cut_tiles(picture, SMALL)[0])


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    compiled = CompiledResizer(tmp_path / "file" / "resize")
    compiled.compile_now()
    assert compiled.get() is None


def test_a_source_that_does_not_compile_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.c").write_text("int main(")
    monkeypatch.setattr(compiling, "SOURCE", tmp_path / "broken.c")
    compiled = CompiledResizer(tmp_path / "resize")
    compiled.compile_now()
    assert compiled.get() is None
    assert not any((tmp_path / "resize").iterdir())
