"""The bar of ``vlmbatch.run``: on a terminal, in a notebook with and without widgets, and never
where nobody looks.
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.media import write_picture
from tests.processes import start

RUN = """
import vlmbatch
from vlmbatch.engine.scripted import ScriptedEngine

job = vlmbatch.Job(inputs=["photos"], output="out.jsonl", overwrite=True, **JOB)
assert vlmbatch.run(job, engine=ScriptedEngine(), **OPTIONS)["status"] == {"ok": 5}
"""
NOTEBOOK = """
import sys
import types

for name in ("IPython", "IPython.display", "ipykernel", "ipykernel.zmqshell"):
    sys.modules[name] = types.ModuleType(name)
ZMQInteractiveShell = type("ZMQInteractiveShell", (), {})
sys.modules["IPython"].get_ipython = ZMQInteractiveShell
"""
WIDGETS = """
shown = []
sys.modules["IPython.display"].display = shown.append
widgets = sys.modules["ipywidgets"] = types.ModuleType("ipywidgets")


class Widget:
    def __init__(self, children=(), **values):
        self.children, self.value, self.bar_style, self.max = list(children), 0, "", None
        self.layout, self.style = types.SimpleNamespace(width=None), types.SimpleNamespace()
        self.__dict__.update(values)

    def close(self):
        pass


widgets.HTML = widgets.HBox = widgets.FloatProgress = Widget
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(5):
        write_picture(tmp_path / "photos" / f"{number}.png", seed=number)
    return tmp_path


def run(folder: Path, code: str, **filled: str) -> str:
    """What a program writes to a stderr that is no terminal, warnings being errors."""
    for name in ("JOB", "OPTIONS"):
        code = code.replace(name, filled.get(name, "{}"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    return done.stderr


def test_nothing_is_shown_where_nobody_looks(folder: Path) -> None:
    assert run(folder, RUN) == ""
    assert run(folder, NOTEBOOK + RUN, JOB='{"progress": "off"}') == ""
    assert run(folder, NOTEBOOK + RUN, OPTIONS='{"progress": False}') == ""


@pytest.mark.parametrize(
    "asked", [{"JOB": '{"progress": "on"}'}, {"OPTIONS": '{"progress": True}'}]
)
def test_a_bar_can_be_asked_for(folder: Path, asked: dict[str, str]) -> None:
    assert "5/5" in run(folder, RUN, **asked)


@pytest.mark.parametrize("size", [(24, 80), (0, 0)])
def test_a_terminal_has_a_bar_also_if_it_has_no_size(folder: Path, size: tuple[int, int]) -> None:
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, size)
    code = RUN.replace("JOB", "{}").replace("OPTIONS", "{}")
    process = start(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    try:
        while piece := os.read(master, 4096):
            shown += piece
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(master)
    assert process.wait() == 0
    assert b"5/5" in shown


def test_a_notebook_without_widgets_has_a_bar_of_text(folder: Path) -> None:
    assert "5/5" in run(folder, NOTEBOOK + "sys.modules['ipywidgets'] = None\n" + RUN)


def test_a_notebook_has_a_widget(folder: Path) -> None:
    looks = """
(container,) = shown
label, bar, work = container.children
assert (bar.max, bar.value, bar.bar_style) == (5, 5, "success"), vars(bar)
assert "5/5" in work.value, work.value
"""
    assert run(folder, NOTEBOOK + WIDGETS + RUN + looks) == ""
