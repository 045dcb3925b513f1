"""The tasks: how each one asks and how its answer is read.

The wording matters with models of this size: each default is a whole sentence that asks for one
thing, as in the conversations that the checkpoints were tuned on. `--prompt` replaces it, and every
record states what was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Task = Literal["caption", "ocr", "vqa"]
TASKS: tuple[Task, ...] = ("caption", "ocr", "vqa")

DEFAULT_PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "caption": "Describe this image in one sentence.",
        "ocr": "Read all the text in this image.",
        "clip": "Describe what happens in this video in one sentence.",
        "clip-ocr": "Read all the text in this video.",
    }
)
"""What is asked when nothing else is: per task for a picture, and with ``clip`` for a clip or
window.
"""


def default_prompt(task: Task, *, clip: bool = False) -> str | None:
    """The prompt of a task, or None for vqa, whose questions are the user's.

    Args:
        task: The task.
        clip: The items are clips or windows of a video, not single pictures.
    """
    if task == "vqa":
        return None
    if clip:
        return DEFAULT_PROMPTS["clip" if task == "caption" else "clip-ocr"]
    return DEFAULT_PROMPTS[task]


def parse_answer(task: Task, text: str) -> str:
    """The answer as it goes into a record: white space around it cut off, and a caption on one
    line.

    Args:
        task: The task. The text of a scan keeps its lines.
        text: What the model said.
    """
    text = text.strip()
    return text if task == "ocr" else " ".join(text.split())
