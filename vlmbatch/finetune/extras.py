"""Check for the optional packages of fine-tuning before any work begins."""

from __future__ import annotations

import importlib.util

from vlmbatch.errors import MissingDependencyError

NEEDED = ("peft", "accelerate")


def require(*, optimizer: str = "adamw") -> None:
    """Check that the packages of the extra ``finetune`` are installed.

    Args:
        optimizer: ``adamw8bit`` also needs bitsandbytes.

    Raises:
        MissingDependencyError: One is missing.
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
    """Return whether matplotlib, which draws the curves, is installed."""
    return importlib.util.find_spec("matplotlib") is not None
