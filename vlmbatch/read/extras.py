"""Kinds of files that need an optional package, and the message when it is not installed."""

from __future__ import annotations

import importlib.util

from vlmbatch.errors import MissingDependencyError

EXTRAS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "pdf": ("PDF files", "pypdfium2", (".pdf",)),
    "heif": ("HEIC files", "pillow_heif", (".heic", ".heif", ".hif")),
}
"""Extra to (what it opens, its module, extensions)."""

REMOTE = {"web URLs": "httpx2", "URLs of stores": "fsspec"}
"""Kinds of URLs that the extra ``remote`` opens, and their modules."""


def missing_for(suffix: str) -> str | None:
    """Return one line that names the package that a file with this extension (small letters, with
    its dot) needs and that is not installed; None when nothing is missing.
    """
    for extra, (what, module, suffixes) in EXTRAS.items():
        if suffix in suffixes and not is_there(module):
            return f"{what} need {module}: pip install 'vlmbatch[{extra}]'"
    return None


def need_remote(what: str) -> None:
    """Check that the package for a kind of URL is installed.

    Args:
        what: A key of ``REMOTE``.

    Raises:
        MissingDependencyError: It is not installed.
    """
    if not is_there(REMOTE[what]):
        raise MissingDependencyError(f"{what} need {REMOTE[what]}: pip install 'vlmbatch[remote]'")


def is_there(module: str) -> bool:
    """Return whether a package is installed; loads nothing."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:
        return False
