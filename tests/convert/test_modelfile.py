"""Modelfiles: what Ollama is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.convert import ConvertOptions, convert
from vlmbatch.convert.modelfile import LEVELS, modelfile
from vlmbatch.tasks import TASKS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf")
    convert(find_checkpoint("demo"), "gguf", ConvertOptions(path, "q8_0"))
    return path


def test_there_is_a_modelfile_for_each_task_and_level(folder: Path) -> None:
    names = {path.name for path in folder.glob("Modelfile*")}
    wanted = {f"Modelfile.{task}-{level}" for task in TASKS for level in LEVELS}
    assert names == wanted | {"Modelfile"}
    default = (folder / "Modelfile").read_text()
    assert default == (folder / "Modelfile.vqa-balance").read_text()


def test_both_files_are_named_and_are_there(folder: Path) -> None:
    for path in folder.glob("Modelfile*"):
        named = re.findall(r"^FROM (.+)$", path.read_text(), re.M)
        assert named == ["./demo-Q8_0.gguf", "./mmproj-demo-Q8_0.gguf"]
        assert all((folder / name).is_file() for name in named)


def test_the_template_stops_and_settings_are_the_checkpoints(folder: Path) -> None:
    text = (folder / "Modelfile.ocr-quality").read_text()
    assert 'PARAMETER stop "<end_of_utterance>"' in text
    assert "<|im_start|>{{ range .Messages }}" in text
    assert text.count('"""') == 4
    assert "PARAMETER temperature 0" in text
    assert "PARAMETER num_ctx 2048" in text  # all that the demo model has
    assert "Read the text" in text


def test_levels_trade_context_and_length_for_speed() -> None:
    found = {
        level: {
            name: int(value)
            for name, value in re.findall(
                r"^PARAMETER (num_\w+) (\d+)$",
                modelfile("a.gguf", "b.gguf", ["x"], 8192, "caption", level),
                re.M,
            )
        }
        for level in LEVELS
    }
    assert [found[level]["num_ctx"] for level in LEVELS] == [8192, 4096, 2048]
    assert [found[level]["num_predict"] for level in LEVELS] == [1024, 256, 64]
