"""Models of the Idefics3 family from the command line: pictures and frames, no clips."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.engine.idefics3 import docling_options, write_idefics3
from tests.media import write_picture, write_video
from vlmbatch.bench.shapes import SHAPES
from vlmbatch.checkpoint import IDEFICS3_MODELS


@pytest.fixture(scope="module")
def docling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idefics3(tmp_path_factory.mktemp("models") / "docling", **docling_options())


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("engine", ["torch", "transformers"])
def test_pictures_and_frames_are_answered(
    vlmbatch: Command, docling: Path, tmp_path: Path, engine: str
) -> None:
    write_picture(tmp_path / "in" / "a.png", 70, 40)
    write_video(tmp_path / "in" / "b.mp4")
    options = ("--model", docling, "--engine", engine, "--max-new-tokens", 3)
    assert vlmbatch("caption", "in", *options, "-o", "a.jsonl").returncode == 0
    found = vlmbatch("video", "in", "--fps", 1, *options, "-o", "b.jsonl")
    assert found.returncode == 0, found.stderr
    assert [row["id"] for row in rows(tmp_path / "a.jsonl")] == ["a.png"]
    assert [row["media"] for row in rows(tmp_path / "b.jsonl")] == ["frame"] * 3


@pytest.mark.parametrize("engine", ["torch", "transformers"])
@pytest.mark.parametrize("per", [["--per", "clip"], ["--per", "window", "--window", "2"]])
def test_clips_and_windows_are_bad_usage(
    vlmbatch: Command, docling: Path, tmp_path: Path, per: list[str], engine: str
) -> None:
    write_video(tmp_path / "a.mp4")
    result = vlmbatch("video", "a.mp4", *per, "--model", docling, "--engine", engine)
    assert result.returncode == 2
    assert "takes pictures, no video: leave out --per" in result.stderr
    assert not list(tmp_path.glob("*.jsonl"))


def test_models_list_and_info_know_the_family(vlmbatch: Command, docling: Path) -> None:
    listed = vlmbatch("models", "list").stdout
    for name in IDEFICS3_MODELS:
        (line,) = [line for line in listed.splitlines() if line.startswith(f"{name} ")]
        assert re.search(r" \d+(\.\d)? [GM]iB +pictures +not fetched$", line), line
    info = json.loads(vlmbatch("models", "info", docling, "--json").stdout)
    assert (info["type"], info["takes"]) == ("idefics3", "pictures")
    assert "model granite-docling-258M" in vlmbatch("doctor").stdout


def test_bench_makes_random_weights_in_their_shapes(vlmbatch: Command) -> None:
    """Those of other shapes than the SmolVLM2 ones."""
    text = vlmbatch("bench", "--help").stdout
    for name in ("smolvlm-256m", "smolvlm-500m", "smolvlm-2.2b", "smoldocling", "granite-docling"):
        assert name in text
        assert SHAPES[name]["model_type"] == "idefics3"
