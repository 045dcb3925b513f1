"""The days run their commands in this process, in an empty folder."""

from __future__ import annotations

from tests.cli.conftest import _command_leaves_nothing, vlmbatch

__all__ = ["_command_leaves_nothing", "vlmbatch"]
