"""Kinds of files that need a package which not everybody has, and the word for it when it is not
there.
"""

from __future__ import annotations

import importlib.util

from vlmbatch.errors import MissingDependencyError

EXTRAS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "pdf": ("PDF files", "pypdfium2", (".pdf",)),
    "heif": ("HEIC files", "pillow_heif", (".heic", ".heif", ".hif")),
}
"""Extra to (what it opens, its module, extensions)."""

REMOTE = {"web URLs": "httpx2", "URLs of stores": "fsspec"}
"""What the extra ``remote`` opens, and the modules."""


def missing_for(suffix: str) -> str | None:
    """Why a file with this extension (small letters, with its dot) cannot be opened for lack of a
    package, in one line; None when nothing is missing.
    """
    for extra, (what, module, suffixes) in EXTRAS.items():
        if suffix in suffixes and not is_there(module):
            return f"{what} need {module}: pip install 'vlmbatch[{extra}]'"
    return None


def need_remote(what: str) -> None:
    """Raises for lack of the package that opens a kind of URL.

    Args:
        what: A key of ``REMOTE``.

    Raises:
        MissingDependencyError: It is not installed.
    """
    if not is_there(REMOTE[what]):
        raise MissingDependencyError(f"{what} need {REMOTE[what]}: pip install 'vlmbatch[remote]'")


def is_there(module: str) -> bool:
    """Whether a package is installed; loads nothing."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:
        return False
