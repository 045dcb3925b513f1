"""One batch run: queues and threads between reading, the engine and OUTPUT.

The package is callable, because ``vlmbatch.run`` is both this package and the public function: an
import of any of its modules puts the package in the place of the function.
"""

from __future__ import annotations

import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
    """The package, which runs a job when it is called: see ``pipeline.run``."""

    def __call__(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        from vlmbatch.run.pipeline import run

        return run(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
