"""The measures: what is kept of a row, and how sums over rows become a score. A new one is a class
and a row in ``MEASURES``.

A row is kept as a few numbers (right or not; edits and length; n-grams that match), never as text,
so that a resample of a million rows is a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from vlmbatch.errors import MissingDependencyError
from vlmbatch.evaluate.bootstrap import FloatArray
from vlmbatch.evaluate.texts import normalize, normalize_vqa, one_line, similarity

VQA_ANSWERS = 4
"""Fewer right answers than this cannot make 1 by the formula of the VQA evaluation: each subset
that leaves one out must hold three that agree.
"""

ANLS_THRESHOLD = 0.5


class Measure(Protocol):
    """One way to score answers.

    Attributes:
        columns: Numbers kept of a row.
        best: The rank of an answer that is right.
    """

    columns: int
    best: float

    def row(self, text: str | None, answers: Sequence[str]) -> Sequence[float]:
        """The numbers of a row: the answer (None for an error row, which is wrong whatever was
        expected) against one right answer or more.
        """

    def combine(self, sums: FloatArray, rows: int) -> FloatArray:
        """Scores from sums over ``rows`` rows: (n, columns) to (n,); NaN where there is nothing to
        measure.
        """

    def rank(self, numbers: Sequence[float]) -> float:
        """How good a row is, more is better."""


class Mean:
    """The mean of a score of each row from 0 to 1."""

    columns, best = 1, 1.0

    def __init__(self, score: Callable[[str, Sequence[str]], float]) -> None:
        self._score = score

    def row(self, text: str | None, answers: Sequence[str]) -> Sequence[float]:
        """The row's score."""
        return (0.0 if text is None else self._score(text, answers),)

    def combine(self, sums: FloatArray, rows: int) -> FloatArray:
        """The mean."""
        return sums[:, 0] / rows if rows else np.full(len(sums), np.nan)

    def rank(self, numbers: Sequence[float]) -> float:
        """The row's score."""
        return numbers[0]


class Anls(Mean):
    """Average normalized Levenshtein similarity: to the closest right answer, and 0 when that is
    under a half (wrong, not misread).

    Source: Biten et al., "Scene Text Visual Question Answering" (ICCV 2019), as the DocVQA
    challenge computes it (https://rrc.cvc.uab.es/?ch=17): case and runs of white space aside, one
    half itself counts. The similarity before the threshold is kept too, to rank rows that are all
    far off.
    """

    columns = 2

    def __init__(self) -> None:
        super().__init__(closest_similarity)

    def row(self, text: str | None, answers: Sequence[str]) -> Sequence[float]:
        """The row's score, and its similarity before the threshold."""
        similar = super().row(text, answers)[0]
        return similar if similar >= ANLS_THRESHOLD else 0.0, similar

    def rank(self, numbers: Sequence[float]) -> float:
        """The similarity before the threshold."""
        return numbers[1]


class ErrorRate:
    """Edits over the length of what was expected, both summed over all rows: the character or word
    error rate of a whole OUTPUT. Needs jiwer.
    """

    columns, best = 2, 0.0

    def __init__(self, unit: str) -> None:
        jiwer: Any = _load("jiwer", "cer and wer")
        self._process = jiwer.process_characters if unit == "character" else jiwer.process_words

    def row(self, text: str | None, answers: Sequence[str]) -> Sequence[float]:
        """Edits to, and length of, the right answer with the lowest error rate."""
        given = one_line(text or "")
        found = [self._count(given, one_line(answer)) for answer in dict.fromkeys(answers)]
        return min(found, key=lambda pair: (pair[0] / max(pair[1], 1.0), -pair[1]))

    def _count(self, given: str, expected: str) -> tuple[float, float]:
        done = self._process(expected, given)
        return float(done.substitutions + done.deletions + done.insertions), float(
            done.hits + done.substitutions + done.deletions
        )

    def combine(self, sums: FloatArray, rows: int) -> FloatArray:
        """Edits over length."""
        edits, length = sums[:, 0], sums[:, 1]
        return (
            np.divide(edits, length, out=np.where(edits > 0, np.nan, 0.0), where=length > 0)
            if rows
            else np.full(len(sums), np.nan)
        )

    def rank(self, numbers: Sequence[float]) -> float:
        """The row's error rate, negative."""
        return -numbers[0] / max(numbers[1], 1.0)


class Chrf:
    """chrF2 from 0 to 100: character n-grams up to six, the right answer that fits best (M.
    Popović, WMT 2015). sacrebleu's, so that it compares.
    """

    columns, best = 18, 100.0

    def __init__(self) -> None:
        self._chrf: Any = _load("sacrebleu.metrics", "chrf").CHRF()

    def row(self, text: str | None, answers: Sequence[str]) -> Sequence[float]:
        """For each order the n-grams of the answer, those of the right answer, and those they
        share.
        """
        # sacrebleu has no public name for a row's counts; its own significance tests take them from
        # here.
        counts: list[float] = self._chrf._extract_corpus_statistics(
            [text or ""], [[answer] for answer in answers]
        )[0]
        return counts

    def combine(self, sums: FloatArray, rows: int) -> FloatArray:
        """The score of the summed counts."""
        if not rows:
            return np.full(len(sums), np.nan)
        return np.array(
            [self._chrf._compute_score_from_stats(counts).score for counts in sums.tolist()]
        )

    def rank(self, numbers: Sequence[float]) -> float:
        """The row's own score."""
        return float(self._chrf._compute_score_from_stats(list(numbers)).score)


def exact(text: str, answers: Sequence[str]) -> float:
    """1 when the answer is one of the right answers, letter for letter."""
    return float(text in answers)


def normalized(text: str, answers: Sequence[str]) -> float:
    """1 when the answer is one of the right answers but for case, punctuation, articles and white
    space.
    """
    return float(normalize(text) in map(normalize, answers))


def vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """The accuracy of visual question answering: min(1, matches / 3), averaged over the sets that
    leave one right answer out.

    Source: Antol et al., "VQA: Visual Question Answering" (ICCV 2015) and
    https://visualqa.org/evaluation.html. The sums are worked out: with m of n right answers
    matching, m sets hold m - 1 of them and n - m sets hold m.
    """
    given = normalize_vqa(text)
    n = len(answers)
    m = sum(normalize_vqa(answer) == given for answer in answers)
    return (m * min(1.0, (m - 1) / 3) + (n - m) * min(1.0, m / 3)) / n


def closest_similarity(text: str, answers: Sequence[str]) -> float:
    """Similarity to the closest right answer, case and runs of white space aside."""
    given = one_line(text).lower()
    return max(similarity(given, one_line(answer).lower()) for answer in dict.fromkeys(answers))


MEASURES: dict[str, Callable[[], Measure]] = {
    "exact": lambda: Mean(exact),
    "normalized": lambda: Mean(normalized),
    "vqa": lambda: Mean(vqa_accuracy),
    "anls": Anls,
    "cer": lambda: ErrorRate("character"),
    "wer": lambda: ErrorRate("word"),
    "chrf": Chrf,
}
"""By name, in the order they are reported."""


def _load(module: str, measures: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingDependencyError(
            f"{measures} need{'' if ' ' in measures else 's'} {package}: pip install 'vlmbatch[eval]'"
        ) from error
