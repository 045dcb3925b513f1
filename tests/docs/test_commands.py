"""Every vlmbatch command in README and docs runs as it stands there, with the demo model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Command

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
USAGE = ROOT / "docs" / "usage.md"
WORK = ("caption", "ocr", "vqa", "video", "batch")
SOME_ERRORS = 3
"""Exit code of a run over the damaged sample."""


def commands(page: Path) -> Iterator[str]:
    """The lines of a page's shell blocks that run vlmbatch; a server is not started."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.S | re.M):
        for line in block.splitlines():
            if re.search(r"\bvlmbatch ", line):
                is_server = " serve" in line or "server.yaml" in line
                yield line + (" --dry-run" if is_server else "")


WITHOUT_PANDAS = """
import sys
class NoPandas:
    def find_spec(self, name, *rest):
        if name == "pandas":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoPandas())
"""


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.S | re.M)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what the pages speak of: samples, photos and a catalogue of some, scans, clips,
    job files.
    """
    samples = ROOT / "sample_data"
    shutil.copytree(samples, tmp_path / "sample_data")
    shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines")
    for source, name in (("images", "photos"), ("scans", "scans"), ("clips", "clips")):
        shutil.copytree(samples / source, tmp_path / name)
    header, row = re.findall(r"^```csv\n(.*)\n(.*)\n```", USAGE.read_text("utf-8"), re.M)[0]
    other = "S-2,photos/corner-star.png,7,A yellow star."
    (tmp_path / "catalogue.csv").write_text("\n".join([header, row, other]) + "\n")
    (tmp_path / "more").mkdir()
    first = min((samples / "images").glob("*.jpg"))
    shutil.copy(first, tmp_path / "more" / "last.jpg")
    shutil.copy(min((samples / "clips").glob("*.mp4")), tmp_path / "clip.mp4")
    return tmp_path


def with_demo_model(command: str) -> str:
    """The command, asking the demo model where the default one would have to be fetched."""
    words = shlex.split(command)
    is_work = any(word in WORK for word in words)
    return command + (" --model demo" if is_work and "--model" not in words else "")


def stdin_of(command: str, folder: Path) -> tuple[str | None, str]:
    """What another program writes into the pipe before vlmbatch, and the rest of the line."""
    before, pipe, rest = command.rpartition(" | ")
    if not pipe:
        return None, command
    done = subprocess.run(
        ["bash", "-c", before], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout, rest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(
    page: Path, folder: Path, vlmbatch: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    for command in commands(page):
        stdin, rest = stdin_of(with_demo_model(command), folder)
        program, *arguments = shlex.split(rest)
        assert program == "vlmbatch"
        named = [
            str(path.relative_to(folder)) if "*" in word else word
            for word in arguments
            for path in (sorted(folder.glob(word)) if "*" in word else [Path()])
        ]
        done = vlmbatch(*named, stdin=stdin)
        if " fetch " in command:  # there is no network here
            assert (done.returncode, "--model demo" in done.stderr) == (1, True), done.stderr
            continue
        expected = SOME_ERRORS if "damaged" in command else 0
        assert done.returncode == expected, f"{command}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_without_pandas_which_no_extra_has(
    page: Path, folder: Path
) -> None:
    for block in python_blocks(page):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_PANDAS + block],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_server_of_a_service_and_of_a_container_starts_as_it_is_written(
    vlmbatch: Command,
) -> None:
    text = (ROOT / "docs" / "server.md").read_text("utf-8")
    service = re.search(r"^ExecStart=\S+/vlmbatch (.+)$", text, re.M)
    container = re.findall(r"^(?:ENTRYPOINT|CMD) (\[.+\])$", text, re.M)
    assert service is not None
    program, *arguments = [word for line in container for word in json.loads(line)]
    assert program == "vlmbatch"
    for command in (service[1].split(), arguments):
        done = vlmbatch(*command, "--dry-run")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "wakes"),
    [(0, False), (3, False), (75, False), (130, False), (1, True), (4, True), (66, True)],
)
def test_the_crontab_prints_only_what_needs_a_person(
    tmp_path: Path, code: int, wakes: bool
) -> None:
    text = (ROOT / "docs" / "resume-and-cron.md").read_text("utf-8")
    line = re.search(r"^15 2 \* \* \* +(.+)$", text, re.M)
    assert line is not None
    command = tmp_path / "bin" / "vlmbatch"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\necho said; exit {code}\n")
    command.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", line[1].replace("/srv/archive", str(tmp_path))],
        capture_output=True,
        text=True,
        env={"PATH": f"{command.parent}:/usr/bin:/bin"},
        check=False,
    )
    expected = f"vlmbatch: exit {code}, see nightly.log\n" if wakes else ""
    assert (done.stdout, done.stderr) == (expected, "")
    assert (tmp_path / "nightly.log").read_text() == "said\n"


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.split()) <= 800
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
