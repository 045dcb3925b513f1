"""The days run their commands in this process, in an empty folder, with the demo model and one tile
a picture.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tests.cli.conftest import Command, _command_leaves_nothing, vlmbatch

__all__ = ["_command_leaves_nothing", "vlmbatch"]

Work = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def work(vlmbatch: Command) -> Work:
    """Run a work command, which must end with 0 or with the code that is expected."""

    def call(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = vlmbatch(*arguments, "--model", "demo", "--detail", "low")
        assert done.returncode == code, done.stderr
        return done

    return call


@pytest.fixture
def tool(vlmbatch: Command) -> Work:
    """Run another command, which must end with 0 or with the code that is expected."""

    def call(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = vlmbatch(*arguments)
        assert done.returncode == code, done.stderr
        return done

    return call


def shape(path: Path, colour: str, form: str = "circle") -> Path:
    """Draw a shape on white, as the demo model knows them."""
    picture = Image.new("RGB", (96, 96), "white")
    draw = ImageDraw.Draw(picture)
    (draw.ellipse if form == "circle" else draw.rectangle)((24, 24, 72, 72), fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def page(*words: str) -> Image.Image:
    """Return a page with words one below the other."""
    picture = Image.new("RGB", (96, 96), "white")
    draw = ImageDraw.Draw(picture)
    for number, word in enumerate(words):
        draw.text((12, 16 + 24 * number), word, fill="black", font_size=20)
    return picture


def rows(path: Path) -> list[dict[str, Any]]:
    """Read an OUTPUT, or another file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
