"""Similar frames: small and local changes, slow ones, and frames that cannot be compared."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vlmbatch.core import UInt8Array
from vlmbatch.errors import DecodeError
from vlmbatch.job import DEFAULT_SKIP_SIMILAR
from vlmbatch.sample.similar import EDGE, FIELD, SimilarFrames, difference


def grey(level: int = 100) -> UInt8Array:
    return np.full((3, EDGE, EDGE), level, np.uint8)


@dataclasses.dataclass(frozen=True)
class Shown:
    """A frame by its thumbnail; None for one that cannot be converted."""

    picture: UInt8Array | None
    stored_size: tuple[int, int] = (640, 480)

    def thumbnail(self, width: int, height: int, form: str) -> UInt8Array:
        assert (width, height, form) == (EDGE, EDGE, "yuv444p")
        if self.picture is None:
            raise DecodeError("broken")
        return self.picture


def judged(*frames: Shown, threshold: float = DEFAULT_SKIP_SIMILAR) -> list[bool]:
    judge = SimilarFrames(threshold)
    return [judge.is_similar(frame) for frame in frames]


def test_the_difference_is_that_of_the_most_different_field() -> None:
    other = grey()
    other[0, :FIELD, 2 * FIELD : 3 * FIELD] += 51
    assert difference(grey(), grey()) == 0
    assert difference(grey(), other) == pytest.approx(0.2)
    assert difference(other, grey()) == pytest.approx(0.2)
    assert difference(grey(0), grey(255)) == 1


def test_a_change_of_colour_alone_is_one() -> None:
    other = grey()
    other[2, 40:60, 40:60] = 180
    assert judged(Shown(grey()), Shown(other)) == [False, False]


def test_noise_is_similar_and_a_small_thing_that_moves_is_not() -> None:
    rng = np.random.default_rng(0)
    noisy = (grey().astype(int) + rng.integers(-8, 9, (3, EDGE, EDGE))).astype(np.uint8)
    moved = grey()
    moved[0, 60:66, 60:66] = 255
    assert judged(Shown(grey()), Shown(noisy)) == [False, True]
    assert judged(Shown(grey()), Shown(moved)) == [False, False]


def test_slow_changes_are_seen_once_they_have_added_up() -> None:
    frames = [Shown(grey(100 + 4 * number)) for number in range(9)]
    assert judged(*frames) == [False, True, True, True, False, True, True, True, False]


def test_a_frame_of_another_size_is_never_similar() -> None:
    assert judged(Shown(grey()), Shown(grey(), (480, 640)), Shown(grey(), (480, 640))) == [
        False,
        False,
        True,
    ]


def test_what_cannot_be_compared_is_kept_and_so_is_what_follows_it() -> None:
    assert judged(Shown(grey()), Shown(None), Shown(grey()), Shown(grey())) == [
        False,
        False,
        False,
        True,
    ]


def test_a_threshold_of_zero_leaves_out_exact_repetitions_only() -> None:
    other = grey()
    other[0, 0, 0] += 1
    assert judged(Shown(grey()), Shown(grey()), Shown(other), threshold=0.0) == [False, True, False]
