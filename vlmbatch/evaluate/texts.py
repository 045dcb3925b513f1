"""Texts on their way to a comparison: the same text written differently made the same, and how far
two texts are apart.
"""

from __future__ import annotations

import functools
import re
import unicodedata

from vlmbatch.write.columns import clean_text

ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
"""Numbers that the VQA evaluation reads as digits."""

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_MARKS = re.compile(r"(?<!\d)[^\w\s]|[^\w\s](?!\d)|_")
_DROPPED = frozenset("'’ʼ.")


def clean(text: str) -> str:
    """The text in Unicode's composed form (NFC), without white space at its ends: é is é, however a
    file writes it.
    """
    return (text if text.isascii() else unicodedata.normalize("NFC", clean_text(text))).strip()


def one_line(text: str) -> str:
    """The text with every run of white space as one space: where a scan breaks its lines is no
    error.
    """
    return " ".join(text.split())


@functools.lru_cache(maxsize=65536)
def normalize(text: str) -> str:
    """The text without what does not change an answer: case, punctuation, articles and white space.

    After the VQA evaluation (GT-Vision-Lab/VQA, vqaEval.py): apostrophes and full stops go, other
    punctuation becomes a space, and between two digits it stays (3.5 is not 35), but for the comma
    of thousands. Here for the punctuation of every script; symbols such as + and € stay.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _MARKS.sub(_mark, _THOUSANDS.sub("", text))
    words = text.split()
    return " ".join([word for word in words if word not in ARTICLES] or words)


@functools.lru_cache(maxsize=65536)
def normalize_vqa(text: str) -> str:
    """``normalize``, with the numbers from zero to ten as digits and ``none`` as 0, as the VQA
    evaluation has them.
    """
    return " ".join(NUMBERS.get(word, word) for word in normalize(text).split())


def _mark(match: re.Match[str]) -> str:
    mark = match.group()
    if mark in _DROPPED:
        return ""
    return " " if unicodedata.category(mark).startswith("P") else mark


def edit_distance(first: str, second: str) -> int:
    """The least number of characters to insert, delete or replace to make one text the other
    (Levenshtein).

    Bit-parallel: a column of the table is two integers. H. Hyyrö, "A bit-vector algorithm for
    computing Levenshtein and Damerau edit distances", Nordic Journal of Computing 10 (2003), after
    G. Myers, Journal of the ACM 46 (1999).
    """
    if not first or not second:
        return len(first) + len(second)
    places: dict[str, int] = {}
    for position, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << position
    mask, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    rises, falls, distance = mask, 0, len(first)
    for character in second:
        match = places.get(character, 0)
        diagonal = (((match & rises) + rises) ^ rises) | match | falls
        right_rises = falls | ~(diagonal | rises)
        right_falls = diagonal & rises
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises = right_rises << 1 | 1
        rises = (right_falls << 1 | ~(diagonal | right_rises)) & mask
        falls = right_rises & diagonal & mask
    return distance


def similarity(first: str, second: str) -> float:
    """1 less the edit distance over the length of the longer text: 1 for the same text, 0 for
    nothing in common.
    """
    return (
        1.0
        if first == second
        else 1.0 - edit_distance(first, second) / max(len(first), len(second))
    )
