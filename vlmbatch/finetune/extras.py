"""The packages that fine-tuning needs besides vlmbatch's own, looked for before any work begins."""

from __future__ import annotations

import importlib.util

from vlmbatch.errors import MissingDependencyError

NEEDED = ("transformers", "peft", "accelerate")


def require(*, optimizer: str = "adamw") -> None:
    """Checks that the packages of the extra ``finetune`` are there.

    Args:
        optimizer: ``adamw8bit`` needs bitsandbytes besides.

    Raises:
        MissingDependencyError: One is not.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"fine-tuning needs {' and '.join(missing)}: pip install 'vlmbatch[finetune]'"
        )
    if optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            "the optimizer adamw8bit needs bitsandbytes: pip install 'vlmbatch[finetune-8bit]'"
        )


def has_matplotlib() -> bool:
    """Whether curves can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None
