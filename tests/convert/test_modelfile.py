"""Modelfiles: what Ollama is told."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.checkpoints import CHAT_TEMPLATE, GRANITE_DOCLING_TEMPLATE
from vlmbatch.checkpoint import Checkpoint, find_checkpoint
from vlmbatch.convert import ConvertOptions, convert
from vlmbatch.convert.modelfile import LEVELS, modelfile, ollama_template
from vlmbatch.errors import ModelLoadError
from vlmbatch.prepare.chat import ChatTemplate
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
    assert 'TEMPLATE """<|im_start|>{{ range .Messages }}' in text
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
                modelfile("a.gguf", "b.gguf", "t", ["x"], 8192, "caption", level),
                re.M,
            )
        }
        for level in LEVELS
    }
    assert [found[level]["num_ctx"] for level in LEVELS] == [8192, 4096, 2048]
    assert [found[level]["num_predict"] for level in LEVELS] == [1024, 256, 64]


def rendered(template: str, messages: list[tuple[str, str]]) -> str:
    """What Ollama makes of a template that only knows roles and their texts."""
    head, each, rest = re.split(r"{{ range .Messages }}|{{ end }}{{ end }}", template)
    cases = re.split(r'{{ (?:if|else if) eq .Role "(\w+)" }}|{{ (else) }}', each)[1:]
    by_role = {
        "assistant" if is_else else role: text
        for role, is_else, text in zip(cases[::3], cases[1::3], cases[2::3], strict=True)
    }
    turns = [by_role[role].replace("{{ .Content }}", text) for role, text in messages]
    return "".join([head, *turns, rest])


def with_template(tiny: Path, folder: Path, template: str) -> Checkpoint:
    shutil.copytree(tiny, folder)
    for path in folder.glob("chat_template*"):
        path.unlink()
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return find_checkpoint(str(folder))


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, GRANITE_DOCLING_TEMPLATE])
def test_the_template_is_the_checkpoint_s_own(tiny: Path, tmp_path: Path, template: str) -> None:
    found = ollama_template(with_template(tiny, tmp_path / "model", template))
    own = ChatTemplate(template, {}).render(
        [
            ("system", [("text", "Be brief.")]),
            ("user", [("image", ""), ("text", "What?")]),
            ("assistant", [("text", "A dog.")]),
            ("user", [("image", ""), ("text", "And this?")]),
        ]
    )
    messages = [
        ("system", "Be brief."),
        ("user", "<image>What?"),  # Ollama puts the picture there
        ("assistant", "A dog."),
        ("user", "<image>And this?"),
    ]
    assert rendered(found, messages) == own


def test_a_template_that_ollama_cannot_write_is_named(tiny: Path, tmp_path: Path) -> None:
    checkpoint = with_template(tiny, tmp_path / "model", "{{ messages | length }}")
    with pytest.raises(ModelLoadError, match="one turn after the other, as Ollama's"):
        ollama_template(checkpoint)
