"""Commands of the pages, run in this process."""

from __future__ import annotations

from tests.cli.conftest import vlmbatch as vlmbatch
