"""Sizes and shape of the package: no circles between modules, no file, function or folder that is
too large to read, docstrings that say what a thing is.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import vlmbatch

PACKAGE = Path(vlmbatch.__file__).parent
MODULES = {
    ".".join(("vlmbatch", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_MODULES = 400, 60, 20
ASKING = re.compile(r"(What|Which|How|Who|Where) ")


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports when it runs, anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def test_no_module_imports_itself_by_a_detour() -> None:
    edges = {name: {*imported(path)} - {name} for name, path in MODULES.items()}
    for name in MODULES:
        seen: set[str] = set()
        todo = [*edges[name]]
        while todo:
            step = todo.pop()
            assert step != name, f"{name} imports itself by a detour"
            if step not in seen:
                seen.add(step)
                todo += edges[step]


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_are_short(name: str) -> None:
    text = MODULES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_do_not_ask(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            assert not ASKING.match(ast.get_docstring(node) or ""), ast.get_docstring(node)


def test_no_folder_is_a_heap() -> None:
    for folder in {path.parent for path in MODULES.values()}:
        assert len(list(folder.glob("*.py"))) <= MAX_MODULES, folder
