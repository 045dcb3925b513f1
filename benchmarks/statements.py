"""Count the statements of Python files: a measure of size that formatting does not change.

    python -m benchmarks.statements vlmbatch
    python -m benchmarks.statements vlmbatch --by-folder

Docstrings and imports are not counted.
"""

from __future__ import annotations

import argparse
import ast
import collections
from pathlib import Path


def count_statements(source: str) -> int:
    """Count the statements of a module's source, without docstrings and imports."""
    return sum(
        isinstance(node, ast.stmt)
        and not isinstance(node, ast.Import | ast.ImportFrom)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in ast.walk(ast.parse(source))
    )


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--by-folder", action="store_true", help="a line for each folder")
    options = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    for path in sorted(options.folder.rglob("*.py")):
        counts[str(path.parent)] += count_statements(path.read_text(encoding="utf-8"))
    for folder, count in sorted(counts.items()) if options.by_folder else ():
        print(f"{count:6,}  {folder}")
    print(f"{counts.total():6,}  {options.folder}")


if __name__ == "__main__":
    main()
