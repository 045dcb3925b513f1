"""Measures of answers. A new one is a class and a line in ``MEASURES``.

A measure turns a row into a few numbers (right or not; edits and length; matching n-grams), and
sums of these numbers into a score. So a resample of a million rows is a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from vlmbatch.errors import MissingDependencyError
from vlmbatch.evaluate.bootstrap import FloatArray
from vlmbatch.evaluate.texts import normalize, normalize_vqa, similarity, single_spaced

VQA_ANSWERS = 4
"""Least number of right answers for VQA accuracy: with fewer, its formula never reaches 1."""

ANLS_THRESHOLD = 0.5


class Measure(Protocol):
    """One way to score answers.

    Attributes:
        columns: Number of values for each row.
        best: Rank of a right answer.
    """

    columns: int
    best: float

    def row(self, text: str | None, answers: Sequence[str]) -> Sequence[float]:
        """Compare an answer with the right ones; None (an error row) is always wrong.

        Returns:
            ``columns`` numbers.
        """

    def combine(self, sums: FloatArray, rows: int) -> FloatArray:
        """Turn sums over ``rows`` rows into scores: (n, columns) to (n,); NaN for nothing."""

    def rank(self, numbers: Sequence[float]) -> float:
        """Return how good a row is; more is better."""


class Mean:
    """Mean of a score from 0 to 1."""

    columns, best = 1, 1.0

    def __init__(self, score: Callable[[str, Sequence[str]], float]) -> None:
        self._score = score

    def row(self, text: str | None, answers: Sequence[str]) -> Sequence[float]:
        """Return the score."""
        return (0.0 if text is None else self._score(text, answers),)

    def combine(self, sums: FloatArray, rows: int) -> FloatArray:
        """Return the mean."""
        return sums[:, 0] / rows if rows else np.full(len(sums), np.nan)

    def rank(self, numbers: Sequence[float]) -> float:
        """Return the score."""
        return numbers[0]


class Anls(Mean):
    """Average normalized Levenshtein similarity to the closest right answer; 0 below one half.

    Source: Biten et al., "Scene Text Visual Question Answering" (ICCV 2019), as the DocVQA
    challenge computes it (https://rrc.cvc.uab.es/?ch=17): without case and runs of white space, one
    half itself counts. The similarity before the threshold is kept too: it ranks rows that are all
    below it.
    """

    columns = 2

    def __init__(self) -> None:
        super().__init__(closest_similarity)

    def row(self, text: str | None, answers: Sequence[str]) -> Sequence[float]:
        """Return the score, and the similarity before the threshold."""
        similar = super().row(text, answers)[0]
        return similar if similar >= ANLS_THRESHOLD else 0.0, similar

    def rank(self, numbers: Sequence[float]) -> float:
        """Return the similarity before the threshold."""
        return numbers[1]


class ErrorRate:
    """Character or word error rate of a whole OUTPUT: all edits over the expected length.

    Needs jiwer.
    """

    columns, best = 2, 0.0

    def __init__(self, unit: str) -> None:
        jiwer: Any = _load("jiwer", "cer and wer")
        self._process = jiwer.process_characters if unit == "character" else jiwer.process_words

    def row(self, text: str | None, answers: Sequence[str]) -> Sequence[float]:
        """Return edits and length for the right answer with the lowest error rate."""
        given = single_spaced(text or "")
        found = [self._count(given, single_spaced(answer)) for answer in dict.fromkeys(answers)]
        return min(found, key=lambda pair: (pair[0] / max(pair[1], 1.0), -pair[1]))

    def _count(self, given: str, expected: str) -> tuple[float, float]:
        done = self._process(expected, given)
        return float(done.substitutions + done.deletions + done.insertions), float(
            done.hits + done.substitutions + done.deletions
        )

    def combine(self, sums: FloatArray, rows: int) -> FloatArray:
        """Divide edits by length."""
        edits, length = sums[:, 0], sums[:, 1]
        return (
            np.divide(edits, length, out=np.where(edits > 0, np.nan, 0.0), where=length > 0)
            if rows
            else np.full(len(sums), np.nan)
        )

    def rank(self, numbers: Sequence[float]) -> float:
        """Return the negative error rate."""
        return -numbers[0] / max(numbers[1], 1.0)


class Chrf:
    """chrF2 from 0 to 100, of the best right answer (M. Popović, WMT 2015).

    Computed by sacrebleu, so that figures compare with those of papers.
    """

    columns, best = 18, 100.0

    def __init__(self) -> None:
        self._chrf: Any = _load("sacrebleu.metrics", "chrf").CHRF()

    def row(self, text: str | None, answers: Sequence[str]) -> Sequence[float]:
        """Count, for each order, n-grams of the answer, of the right answer, and of both."""
        # sacrebleu has no public name for these counts; its significance tests call this too.
        counts: list[float] = self._chrf._extract_corpus_statistics(
            [text or ""], [[answer] for answer in answers]
        )[0]
        return counts

    def combine(self, sums: FloatArray, rows: int) -> FloatArray:
        """Score the summed counts."""
        if not rows:
            return np.full(len(sums), np.nan)
        return np.array(
            [self._chrf._compute_score_from_stats(counts).score for counts in sums.tolist()]
        )

    def rank(self, numbers: Sequence[float]) -> float:
        """Return the score of the row alone."""
        return float(self._chrf._compute_score_from_stats(list(numbers)).score)


def exact(text: str, answers: Sequence[str]) -> float:
    """Return 1 if the answer is one of the right answers, letter for letter."""
    return float(text in answers)


def normalized(text: str, answers: Sequence[str]) -> float:
    """Return 1 if the answer, normalized, is one of the right answers."""
    return float(normalize(text) in map(normalize, answers))


def vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """Return min(1, matches / 3), averaged over the sets that leave one right answer out.

    Source: Antol et al., "VQA: Visual Question Answering" (ICCV 2015) and
    https://visualqa.org/evaluation.html. If m of n right answers match, m sets hold m - 1 of them
    and n - m sets hold m: that gives the average in closed form.
    """
    given = normalize_vqa(text)
    n = len(answers)
    m = sum(normalize_vqa(answer) == given for answer in answers)
    return (m * min(1.0, (m - 1) / 3) + (n - m) * min(1.0, m / 3)) / n


def closest_similarity(text: str, answers: Sequence[str]) -> float:
    """Return the similarity to the closest right answer, without case and white space."""
    given = single_spaced(text).lower()
    return max(
        similarity(given, single_spaced(answer).lower()) for answer in dict.fromkeys(answers)
    )


MEASURES: dict[str, Callable[[], Measure]] = {
    "exact": lambda: Mean(exact),
    "normalized": lambda: Mean(normalized),
    "vqa": lambda: Mean(vqa_accuracy),
    "anls": Anls,
    "cer": lambda: ErrorRate("character"),
    "wer": lambda: ErrorRate("word"),
    "chrf": Chrf,
}
"""Measures by name, in the order of the report."""


def _load(module: str, measures: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingDependencyError(
            f"{measures} need{'' if ' ' in measures else 's'} {package}: "
            "pip install 'vlmbatch[eval]'"
        ) from error
