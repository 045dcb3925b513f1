"""The bootstrap resamples whole rows, and its intervals are as wide as theory says."""

from __future__ import annotations

import numpy as np
import pytest

from vlmbatch.evaluate import bootstrap
from vlmbatch.evaluate.bootstrap import interval, resampled_sums


def test_sums_are_those_of_rows_drawn_with_replacement() -> None:
    numbers = np.random.default_rng(1).normal(size=(50, 3))
    drawn = np.random.default_rng(7).integers(0, 50, size=(200, 50))
    assert resampled_sums(numbers, 200, seed=7) == pytest.approx(numbers[drawn].sum(axis=1))


def test_large_tables_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(1).normal(size=(40, 2))
    whole = resampled_sums(numbers, 100, seed=3)
    monkeypatch.setattr(bootstrap, "_BLOCK", 90)
    assert resampled_sums(numbers, 100, seed=3) == pytest.approx(whole)


def test_the_columns_of_a_row_stay_together() -> None:
    values = np.random.default_rng(0).integers(0, 2, size=100).astype(float)
    sums = resampled_sums(np.stack([values, 1 - values], axis=1), 100, seed=0)
    assert (sums.sum(axis=1) == 100).all()
    assert len(np.unique(sums[:, 0])) > 5


def test_the_interval_of_a_share_is_what_the_normal_distribution_makes_it() -> None:
    values = np.repeat([0.0, 1.0], [1200, 2800])[:, None]
    low, high = interval(resampled_sums(values, 2000, seed=0)[:, 0] / 4000) or (0.0, 0.0)
    spread = 1.96 * (0.7 * 0.3 / 4000) ** 0.5
    assert (low, high) == pytest.approx((0.7 - spread, 0.7 + spread), abs=spread / 10)


def test_the_same_seed_gives_the_same_interval_and_another_one_another() -> None:
    values = np.arange(30.0)[:, None]
    assert (resampled_sums(values, 100, 5) == resampled_sums(values, 100, 5)).all()
    assert (resampled_sums(values, 100, 5) != resampled_sums(values, 100, 6)).any()


def test_what_is_no_number_is_left_out_of_an_interval() -> None:
    assert interval(np.array([np.nan, 1.0, 1.0, np.inf])) == (1.0, 1.0)
    assert interval(np.array([np.nan])) is None
