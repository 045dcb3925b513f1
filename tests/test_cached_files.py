"""Files in the folder for caches that are of no use any more."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.cli.conftest import photos as photos
from tests.cli.conftest import vlmbatch as vlmbatch
from vlmbatch.cached_files import SOURCE, leftovers, note_checkpoint, note_files, note_use
from vlmbatch.checkpoint import find_checkpoint

DAY = 86400


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def make_converted(cache: Path, checkpoint: Path, name: str = "mine-f32") -> Path:
    folder = cache / "gguf" / name
    folder.mkdir(parents=True)
    (folder / "mine.gguf").write_bytes(b"x" * 1000)
    note_checkpoint(folder, checkpoint, find_checkpoint(str(checkpoint)).revision)
    return folder


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


def found(cache: Path, days: float = 30) -> dict[str, str]:
    return {each.path.name: each.reason for each in leftovers(cache, days)}


def test_a_converted_model_is_kept_while_its_checkpoint_is_as_it_was(
    tiny: Path, tmp_path: Path, cache: Path
) -> None:
    checkpoint = shutil.copytree(tiny, tmp_path / "model")
    make_converted(cache, checkpoint)
    assert found(cache) == {}
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": 1}')
    assert "has changed" in found(cache)["mine-f32"]
    shutil.rmtree(checkpoint)
    assert "is gone" in found(cache)["mine-f32"]


def test_files_that_were_made_of_files_go_with_them(tmp_path: Path, cache: Path) -> None:
    source, folder = tmp_path / "a.gguf", cache / "gguf" / "a-one-tile"
    source.write_bytes(b"one")
    folder.mkdir(parents=True)
    note_files(folder, [source])
    assert found(cache) == {}
    source.write_bytes(b"another")
    assert list(found(cache)) == ["a-one-tile"]


def test_what_is_used_is_kept_and_what_is_not_used_goes(tiny: Path, cache: Path) -> None:
    folder = make_converted(cache, tiny)
    age(folder / SOURCE, 40)
    assert found(cache) == {"mine-f32": "not used for 40 days"}
    assert found(cache, days=50) == {}
    note_use(folder)
    assert found(cache) == {}


def test_old_libraries_earlier_versions_and_killed_conversions_go(cache: Path) -> None:
    (cache / "onnx" / "old-int8").mkdir(parents=True)
    (cache / "onnx" / ".converting-now").mkdir()
    killed = cache / "onnx" / ".converting-killed"
    killed.mkdir()
    age(killed, 2)
    (cache / "native").mkdir()
    for name, days in (("new.so", 1), ("old.so", 31)):
        (cache / "native" / name).write_bytes(b"x")
        age(cache / "native" / name, days)
    (cache / "kernels").mkdir()
    assert found(cache) == {
        "old-int8": "made by an earlier version",
        ".converting-killed": "left by a conversion that was killed",
        "old.so": "not used for 31 days",
    }


def test_the_command_says_what_it_removes(vlmbatch: Command, tiny: Path, cache: Path) -> None:
    folder = make_converted(cache, tiny)
    age(folder / SOURCE, 3)
    line = ("models", "clean", "--cache-dir", cache)
    kept = vlmbatch(*line)
    assert (kept.returncode, kept.stdout) == (0, f"0.0 MB removed from {cache}\n")
    said = vlmbatch(*line, "--older-than", "2", "--dry-run")
    assert f"{folder}: 0.0 MB, not used for 3 days" in said.stdout
    assert folder.is_dir()
    assert vlmbatch(*line, "--older-than", "2").returncode == 0
    assert not folder.exists()


def test_a_real_conversion_is_kept_and_its_use_is_noted(
    vlmbatch: Command, tiny: Path, photos: Path, cache: Path, tmp_path: Path
) -> None:
    line = ("caption", photos, "--model", tiny, "--engine", "llama-server", "--detail", "low")
    more = ("--threads", "1", "--max-new-tokens", "2", "--cache-dir", cache, "-o", "out.jsonl")
    assert vlmbatch(*line, *more).returncode == 0
    sources = sorted((cache / "gguf").glob(f"*/{SOURCE}"))
    assert len(sources) == 2  # the converted model, and its files of one tile
    for source in sources:
        age(source, 40)
    assert len(found(cache)) == 2
    assert vlmbatch(*line, *more, "--overwrite").returncode == 0
    assert found(cache) == {}
