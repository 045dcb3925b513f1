"""Bootstrap percentile intervals: the spread of a figure over resamples (B. Efron, 1979)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

LEVEL = 0.95
_BLOCK = 2**22
"""Number of draws in memory together: 32 MB."""


def resampled_sums(numbers: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Return the column sums of resamples: as many rows as there are, drawn with replacement.

    The rows of a resample are counted, not copied: all columns take one matrix product, and columns
    of two OUTPUTs side by side are resampled as pairs.

    Args:
        numbers: float64, (n, columns), n at least 1.
        resamples: Number of resamples.
        seed: The same seed draws the same rows from tables of the same length.

    Returns:
        float64, (resamples, columns).
    """
    random = np.random.default_rng(seed)
    n = len(numbers)
    sums = np.empty((resamples, numbers.shape[1]))
    step = max(1, _BLOCK // n)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = random.integers(0, n, size=(size, n))
        drawn += np.arange(size)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        sums[start : start + size] = counts.astype(np.float64) @ numbers
    return sums


def interval(values: FloatArray) -> tuple[float, float] | None:
    """Return the interval of the middle 95 % of the finite values; None when there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
