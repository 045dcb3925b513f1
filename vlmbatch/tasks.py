"""Default prompt of each task, and reading of its answers.

The caption prompt is that of the published SmolVLM and SmolVLM2 model cards. Their prompt for
videos, "Describe this video in detail", asks for more than the 64 tokens of a caption hold, and the
demo model was not trained on it; the cards have no prompt for reading text. So these two are our
own. No wording was measured against another one. `--prompt` replaces it, and every record states
what was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

Task = Literal["caption", "ocr", "vqa"]
TASKS: tuple[Task, ...] = get_args(Task)

DEFAULT_PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "caption": "Can you describe this image?",
        "ocr": "Read all the text in this image.",
        "clip": "Describe what happens in this video in one sentence.",
        "clip-ocr": "Read all the text in this video.",
    }
)
"""Prompt of each task for a picture; the keys with ``clip`` are for a clip or window."""


def default_prompt(task: Task, *, clip: bool = False) -> str | None:
    """Return the prompt of a task, or None for vqa: its questions come from the user.

    Args:
        task: The task.
        clip: Whether the items are clips or windows of a video, not single pictures.
    """
    if task == "vqa":
        return None
    if clip:
        return DEFAULT_PROMPTS["clip" if task == "caption" else "clip-ocr"]
    return DEFAULT_PROMPTS[task]


def parse_answer(task: Task, text: str) -> str:
    """Return the answer as a record has it.

    White space at both ends is removed. A caption or an answer becomes one line; text that was
    read keeps its lines.
    """
    text = text.strip()
    return text if task == "ocr" else " ".join(text.split())
