"""Packages of the extra ``serve``."""

from __future__ import annotations

import importlib.util

from vlmbatch.errors import MissingDependencyError

SERVER = ("starlette", "uvicorn", "prometheus_client", "jsonschema_rs")
BATCH = ("jsonschema_rs",)


def require(modules: tuple[str, ...] = SERVER) -> None:
    """Check that packages are installed; loads nothing.

    Raises:
        MissingDependencyError: One is not; the message names the extra.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"{', '.join(missing)} not installed: pip install 'vlmbatch[serve]'"
        )
