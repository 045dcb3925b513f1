"""Normalize texts before they are compared, and measure how different they are."""

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
"""Number words that the VQA evaluation reads as digits."""

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_MARKS = re.compile(r"(?<!\d)[^\w\s]|[^\w\s](?!\d)|_")
_DROPPED = frozenset("'’ʼ.")


def clean(text: str) -> str:
    """Return the text in Unicode's composed form (NFC), without white space at its ends."""
    return (text if text.isascii() else unicodedata.normalize("NFC", clean_text(text))).strip()


def single_spaced(text: str) -> str:
    """Replace every run of white space by one space: line breaks of a scan are no errors."""
    return " ".join(text.split())


@functools.lru_cache(maxsize=65536)
def normalize(text: str) -> str:
    """Remove case, punctuation, articles and white space.

    As the VQA evaluation does (GT-Vision-Lab/VQA, vqaEval.py): apostrophes and full stops are
    removed, other punctuation becomes a space. Punctuation between two digits stays (3.5 is not
    35), except the comma of thousands. Unlike there, this holds for the punctuation of every
    script; symbols such as + and € stay.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _MARKS.sub(_mark, _THOUSANDS.sub("", text))
    words = text.split()
    return " ".join([word for word in words if word not in ARTICLES] or words)


@functools.lru_cache(maxsize=65536)
def normalize_vqa(text: str) -> str:
    """Normalize, with the words from zero to ten as digits, as the VQA evaluation does."""
    return " ".join(NUMBERS.get(word, word) for word in normalize(text).split())


def _mark(match: re.Match[str]) -> str:
    mark = match.group()
    if mark in _DROPPED:
        return ""
    return " " if unicodedata.category(mark).startswith("P") else mark


def edit_distance(first: str, second: str) -> int:
    """Return the Levenshtein distance of two texts.

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
    """Return 1 minus the edit distance over the longer length: 1 for the same text."""
    return (
        1.0
        if first == second
        else 1.0 - edit_distance(first, second) / max(len(first), len(second))
    )
