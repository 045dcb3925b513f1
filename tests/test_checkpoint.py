"""Checkpoints as users have them: complete, half fetched, or as git leaves them without LFS."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.checkpoints import write_tiny_checkpoint
from vlmbatch.checkpoint import LFS_POINTER, Checkpoint, find_checkpoint
from vlmbatch.errors import ModelLoadError
from vlmbatch.prepare import Preparer

POINTER = (
    LFS_POINTER + b"\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e\n"
)


def with_pointer(folder: Path, name: str) -> Checkpoint:
    """Replace a file by what `git clone` writes where Git LFS is not installed."""
    (folder / name).write_bytes(POINTER + b"size 2030268\n")
    return find_checkpoint(str(folder))


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_a_git_lfs_pointer_in_place_of_weights_is_named(tmp_path: Path, shards: bool) -> None:
    folder = write_tiny_checkpoint(tmp_path / "cloned", shards=shards)
    name = sorted(path.name for path in folder.glob("*.safetensors"))[-1]
    message = rf"{name} is a Git LFS pointer, not the file itself: run `git lfs pull` in .*cloned"
    with pytest.raises(ModelLoadError, match=message):
        with_pointer(folder, name).weight_files()


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_so_is_one_in_place_of_another_file(tmp_path: Path, tiny: Path, name: str) -> None:
    folder = tmp_path / "cloned"
    shutil.copytree(tiny, folder)
    with pytest.raises(ModelLoadError, match=rf"{name} is a Git LFS pointer.*`git lfs pull`"):
        Preparer.from_checkpoint(with_pointer(folder, name))


def test_a_complete_copy_in_the_cache_is_used_without_a_network(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository, revision = tmp_path / "models--owner--model", "a" * 40
    folder = repository / "snapshots" / revision
    shutil.copytree(tiny, folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    found = find_checkpoint("owner/model")
    assert (found.folder, found.name, found.revision) == (folder, "owner/model", revision)


@pytest.mark.parametrize("name, hint", [("Demo", "; did you mean demo?"), ("cat", "nor `demo`")])
def test_a_name_near_demo_is_asked_about(name: str, hint: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        find_checkpoint(name)
    assert str(caught.value).endswith(hint)
