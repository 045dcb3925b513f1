"""Measures agree with libraries, published formulas and published examples."""

from __future__ import annotations

import itertools
import sys

import jiwer
import numpy as np
import pytest
import rapidfuzz
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF

from vlmbatch.errors import MissingDependencyError
from vlmbatch.evaluate.measures import MEASURES, Anls, Chrf, ErrorRate, vqa_accuracy
from vlmbatch.evaluate.texts import (
    clean,
    edit_distance,
    normalize,
    normalize_vqa,
    similarity,
    single_spaced,
)

WORDS = st.lists(
    st.sampled_from(["red", "a", "circle", "left", "of", "été", "12", "\n"]), max_size=8
).map(" ".join)
PAIRS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6)


def score(name: str, rows: list[tuple[str | None, list[str]]]) -> float:
    """A measure over rows of (answer, right answers)."""
    measure = MEASURES[name]()
    sums = np.array([measure.row(*row) for row in rows], float).sum(axis=0, keepdims=True)
    return float(measure.combine(sums, len(rows))[0])


@given(st.text(max_size=80), st.text(max_size=80))
def test_the_edit_distance_is_levenshteins(first: str, second: str) -> None:
    assert edit_distance(first, second) == rapidfuzz.distance.Levenshtein.distance(first, second)
    assert similarity(first, second) == pytest.approx(
        rapidfuzz.distance.Levenshtein.normalized_similarity(first, second)
    )


def test_the_edit_distance_of_textbook_words() -> None:
    assert (
        edit_distance("kitten", "sitting"),
        edit_distance("flaw", "lawn"),
        edit_distance("", "abc"),
        edit_distance("abc", ""),
    ) == (3, 2, 3, 3)


@given(PAIRS)
def test_error_rates_of_a_whole_output_are_jiwers(pairs: list[tuple[str, str]]) -> None:
    expected, given_ = (
        [single_spaced(pair[0]) for pair in pairs],
        [single_spaced(pair[1]) for pair in pairs],
    )
    rows: list[tuple[str | None, list[str]]] = [(text, [answer]) for answer, text in pairs]
    if any(expected):
        assert score("wer", rows) == pytest.approx(jiwer.wer(expected, given_))
        assert score("cer", rows) == pytest.approx(jiwer.cer(expected, given_))
    else:
        assert score("wer", rows) == pytest.approx(
            float("nan") if any(given_) else 0.0, nan_ok=True
        )


@given(st.lists(st.tuples(WORDS, st.tuples(WORDS, WORDS)), min_size=1, max_size=6))
def test_chrf_of_a_whole_output_is_sacrebleus(rows: list[tuple[str, tuple[str, str]]]) -> None:
    expected = (
        CHRF()
        .corpus_score(
            [text for text, _ in rows], list(zip(*(answers for _, answers in rows), strict=True))
        )
        .score
    )
    assert score("chrf", [(text, list(answers)) for text, answers in rows]) == pytest.approx(
        expected
    )


def test_the_error_rate_is_that_of_the_closest_right_answer() -> None:
    assert ErrorRate("character").row("the cat", ["a dog", "the cats", "cat"]) == (1.0, 8.0)
    assert ErrorRate("word").row("the cat sat", ["a dog", "the cat"]) == (1.0, 2.0)


def test_where_a_scan_breaks_its_lines_is_no_error() -> None:
    assert (
        score("wer", [("one two\nthree", ["one\ntwo three"])])
        == score("cer", [("one two\nthree", ["one\ntwo  three"])])
        == 0
    )


def test_an_error_row_is_wrong_by_every_measure_whatever_was_expected() -> None:
    for name, worst in {
        "exact": 0,
        "normalized": 0,
        "vqa": 0,
        "anls": 0,
        "cer": 1,
        "wer": 1,
        "chrf": 0,
    }.items():
        assert score(name, [(None, ["a page of text"] * 4)]) == worst, name
    assert score("exact", [(None, [""])]) == score("anls", [(None, [""])]) == 0
    assert score("exact", [("", [""])]) == score("anls", [("", [""])]) == 1


def test_nothing_expected_has_no_error_rate_but_zero() -> None:
    assert score("cer", [("", [""])]) == 0
    assert np.isnan(score("cer", [("something", [""])]))
    assert score("cer", [("ab", [""]), ("cd", ["cd"])]) == 1.0


@pytest.mark.parametrize(
    "matches, accuracy", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_vqa_accuracy_with_ten_answers_has_its_known_values(matches: int, accuracy: float) -> None:
    assert vqa_accuracy("red", ["red"] * matches + ["blue"] * (10 - matches)) == pytest.approx(
        accuracy
    )


@given(st.lists(st.sampled_from(["one", "2", "red"]), min_size=1, max_size=10))
def test_vqa_accuracy_is_the_mean_over_the_sets_that_leave_one_out(answers: list[str]) -> None:
    subsets = list(itertools.combinations(map(normalize_vqa, answers), len(answers) - 1))
    assert vqa_accuracy("1", answers) == pytest.approx(
        sum(min(1, subset.count("1") / 3) for subset in subsets) / len(subsets)
    )


@pytest.mark.parametrize(
    "text, answers, expected",
    [
        (
            "Denver Broncos",
            ["Denver Broncos", "Denver R. Broncos"],
            1.0,
        ),  # these three: the metric card of huggingface/evaluate
        ("12/15/89", ["12/15/88"], 1 - 1 / 8),
        ("Dear dr. Lobo", ["Dear Dr. Lobo", "Dr. Lobo"], 1.0),
        ("ab", ["ax"], 0.5),  # one half counts
        ("abc", ["axy"], 0.0),
        ("  THE\n end ", ["the end"], 1.0),
    ],
)
def test_anls_of_known_answers(text: str, answers: list[str], expected: float) -> None:
    assert score("anls", [(text, answers)]) == pytest.approx(expected)


def test_anls_ranks_rows_by_what_they_are_before_the_threshold() -> None:
    measure = Anls()
    assert measure.rank(measure.row("abcdefgh", ["abcxxxxx"])) == pytest.approx(3 / 8)


@pytest.mark.parametrize(
    "first, second",
    [
        ("A Red circle.", "red circle"),
        ("It’s the U.S.", "its us"),
        ("ice-cream", "ice cream"),
        ("1,000 people", "1000 people"),
        ("¿Qué?", "qué"),
        ("ﬁne", "FINE"),
        ("STRASSE", "straße"),
        ("「猫」", "猫"),
    ],
)
def test_the_same_answer_written_differently(first: str, second: str) -> None:
    assert normalize(first) == normalize(second)


@pytest.mark.parametrize(
    "first, second",
    [
        ("3.5", "35"),
        ("12:30", "1230"),
        ("5", "five"),
        ("C++", "C"),
        ("a", ""),
        ("5 €", "5"),
        ("1,5", "15"),
    ],
)
def test_answers_that_differ(first: str, second: str) -> None:
    assert normalize(first) != normalize(second)


@given(st.text(max_size=40))
def test_normalizing_twice_changes_nothing_more(text: str) -> None:
    once = normalize(clean(text))
    assert normalize(once) == once


def test_numbers_in_words_are_numbers_for_vqa() -> None:
    assert normalize_vqa("There are Two.") == "there are 2"
    assert normalize_vqa("none") == "0"


def test_composed_and_decomposed_letters_are_the_same_text() -> None:
    assert clean("e\u0301te\u0301 ") == "été"
    assert clean("\ud800") == "\\ud800"  # what no file can hold


@pytest.mark.parametrize(
    "name, package", [("cer", "jiwer"), ("wer", "jiwer"), ("chrf", "sacrebleu")]
)
def test_a_missing_package_is_named_with_the_extra_to_install(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (package, "sacrebleu.metrics"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"{package}: pip install 'vlmbatch\[eval\]'"):
        MEASURES[name]()


def test_a_right_answer_has_the_best_rank() -> None:
    for name, make in MEASURES.items():
        measure = make()
        assert measure.rank(measure.row("a red circle", ["a red circle"] * 4)) == pytest.approx(
            measure.best
        ), name
        assert measure.rank(measure.row("blue", ["a red circle"] * 4)) < measure.best, name


def test_nothing_to_measure_is_no_number() -> None:
    for make in MEASURES.values():
        measure = make()
        assert np.isnan(measure.combine(np.zeros((1, measure.columns)), 0)).all()
    assert len(Chrf().combine(np.zeros((0, 18)), 5)) == 0
