"""Modelfiles for Ollama: how it packs and asks a converted model."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.errors import ModelLoadError, PrepareError
from vlmbatch.prepare.chat import ChatTemplate, Message
from vlmbatch.prepare.prompt import special_tokens
from vlmbatch.tasks import TASKS, Task

SYSTEMS: dict[Task, str] = {
    "caption": "Describe the picture in one or two sentences.",
    "ocr": "Read the text in the picture. Answer with the text alone, line by line.",
    "vqa": "Answer the question about the picture. Be brief.",
}
"""The SYSTEM line of each task."""


@dataclasses.dataclass(frozen=True)
class Level:
    """A trade of room for speed.

    Attributes:
        context_share: Part of the model's context that is set aside: pictures, questions and
            answers of one conversation. It decides most of the memory beside the weights.
        new_tokens: Longest answer; that of OCR is ``OCR_TOKENS`` at least.
    """

    context_share: float
    new_tokens: int


LEVELS = {
    "quality": Level(1.0, 1024),
    "balance": Level(0.5, 256),
    "speed": Level(0.25, 64),
}
OCR_TOKENS = 512
MIN_CONTEXT = 2048
"""A photo at full detail takes 1,100 to 1,400 tokens."""
DEFAULT: tuple[Task, str] = ("vqa", "balance")
"""The variant that is named ``Modelfile``."""
_USER, _ANSWER, _SYSTEM = "\x00user\x00", "\x00answer\x00", "\x00system\x00"
_IMAGE = "<image>"


def write_modelfiles(
    folder: Path, text: str, vision: str, checkpoint: Checkpoint, shape: ModelShape
) -> tuple[list[Path], list[str]]:
    """Write ``Modelfile`` and a variant for each task and level.

    Args:
        folder: Folder of the GGUF files.
        text: Name of the language model's file.
        vision: Name of the vision encoder's file.
        checkpoint: The checkpoint.
        shape: Its sizes.

    Returns:
        The files, and the two commands that make and ask a model of Ollama.
    """
    stops, template = _stops(checkpoint), ollama_template(checkpoint)
    written = []
    for task in TASKS:
        for level in LEVELS:
            content = modelfile(text, vision, template, stops, shape.text.context, task, level)
            names = [f"Modelfile.{task}-{level}"]
            if (task, level) == DEFAULT:
                names.insert(0, "Modelfile")
            for name in names:
                temporary = folder / f".{name}.tmp"
                temporary.write_text(content, encoding="utf-8")
                temporary.replace(folder / name)
                written.append(folder / name)
    written.sort(key=lambda path: path.name)
    model = re.sub(r"[^a-z0-9._-]+", "-", Path(text).stem.lower())
    commands = [
        f"ollama create {model} -f {folder / 'Modelfile'}",
        f'ollama run {model} "What is in this picture? ./photo.jpg"',
    ]
    return written, commands


def modelfile(
    text: str,
    vision: str,
    template: str,
    stops: list[str],
    context: int,
    task: Task,
    level: str,
) -> str:
    """Return the content of a Modelfile.

    Args:
        text: The language model's file, relative to the Modelfile.
        vision: The vision encoder's file.
        template: The chat template in Ollama's language.
        stops: Texts that end an answer.
        context: The model's context, in tokens.
        task: What it is for.
        level: A key of ``LEVELS``.
    """
    chosen = LEVELS[level]
    num_ctx = min(context, max(MIN_CONTEXT, int(context * chosen.context_share)))
    new_tokens = max(chosen.new_tokens, OCR_TOKENS if task == "ocr" else 0)
    lines = [
        f"# {task}, {level}",
        f"FROM ./{text}",
        f"FROM ./{vision}",
        f'TEMPLATE """{template}"""',
        f'SYSTEM """{SYSTEMS[task]}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {num_ctx}",
        f"PARAMETER num_predict {min(new_tokens, num_ctx // 2)}",
    ]
    return "\n".join(lines) + "\n"


def ollama_template(checkpoint: Checkpoint) -> str:
    """Return the checkpoint's chat template in Ollama's language: what it writes before and after
    the text of each role. A picture comes first in its turn, where Ollama puts it.

    Raises:
        ModelLoadError: The template is broken, or writes turns in another way.
    """
    chat = ChatTemplate(checkpoint.chat_template(), special_tokens(checkpoint))
    user: Message = ("user", [("image", ""), ("text", _USER)])
    try:
        asked = chat.render([user], opens_answer=False)
        opened = chat.render([user])
        answered = chat.render([user, ("assistant", [("text", _ANSWER)])], opens_answer=False)
        told = chat.render([("system", [("text", _SYSTEM)]), user], opens_answer=False)
    except PrepareError as error:
        raise ModelLoadError(f"the checkpoint's chat template is broken: {error}") from error
    turn = _common_ending(asked, told)
    head = asked.removesuffix(turn)
    system, rest = told.removeprefix(head).removesuffix(turn), opened.removeprefix(asked)
    parts = (
        _around(turn, _IMAGE + _USER),
        _around(answered.removeprefix(asked), _ANSWER),
        _around(system, _SYSTEM),
    )
    if None in parts or not opened.startswith(asked):
        raise ModelLoadError(
            "the checkpoint's chat template does not write one turn after the other, as Ollama's "
            "templates do"
        )
    users, answers, systems = ("{{ .Content }}".join(part) for part in parts if part)
    return (
        f'{head}{{{{ range .Messages }}}}{{{{ if eq .Role "system" }}}}{systems}'
        f'{{{{ else if eq .Role "user" }}}}{users}{{{{ else }}}}{answers}{{{{ end }}}}{{{{ end }}}}'
        f"{rest}"
    )


def _common_ending(one: str, other: str) -> str:
    pairs = zip(reversed(one), reversed(other), strict=False)
    count = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return one[len(one) - count :]


def _around(text: str, content: str) -> tuple[str, str] | None:
    before, found, after = text.partition(content)
    return (before, after) if found else None


def _stops(checkpoint: Checkpoint) -> list[str]:
    """Return the texts of the tokens that end an answer."""
    added = checkpoint.read_json("tokenizer.json", required=True)["added_tokens"]
    ends = checkpoint.end_token_ids()
    return [token["content"] for token in added if token["id"] in ends]
