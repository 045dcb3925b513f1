"""The text of an answer while its tokens come: pieces join to the text, and none is taken back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlmbatch.core import Question
from vlmbatch.engine.answer_text import AnswerText

WORDS = st.text(st.sampled_from("ab \n.é🙂"), max_size=24)
STOPS = st.lists(st.text(st.sampled_from("ab \n.é🙂"), min_size=1, max_size=4), max_size=3)
CUTS = st.lists(st.integers(0, 100), max_size=12)


def split(text: str, cuts: Sequence[int]) -> list[bytes]:
    """The bytes of a text, cut anywhere, also within a character."""
    whole = text.encode()
    places = sorted({cut % (len(whole) + 1) for cut in cuts} | {0, len(whole)})
    return [whole[begin:end] for begin, end in itertools.pairwise(places)]


class Listener:
    """Follows an answer whose tokens are pieces of bytes."""

    def __init__(self, tokens: Sequence[bytes], stop: Sequence[str] = (), fails_at: int = -1):
        self.tokens, self.fails_at = tokens, fails_at
        self.pieces: list[str] = []
        self.answer = AnswerText(Question("?", stop=tuple(stop), on_text=self.hear), self.decode)
        self.used = 0

    def hear(self, piece: str) -> None:
        self.pieces.append(piece)
        if len(self.pieces) == self.fails_at:
            raise RuntimeError("nobody listens any more")

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.tokens[number] for number in ids).decode(errors="replace")

    def follow(self) -> str:
        """Follow the tokens to the end of the answer; give its text."""
        for number in range(len(self.tokens)):
            self.used = number + 1
            is_last = self.used == len(self.tokens)
            self.answer.follow(range(self.used), is_last=is_last)
            if self.answer.is_stopped or self.answer.is_broken:
                break
        return self.answer.text(range(self.used))


@settings(max_examples=400)
@given(WORDS, STOPS, CUTS)
@example("abé", ["bé"], [2, 3])  # half a character behind the beginning of a stop string
@example("a\n.b", ["\n.b"], [1, 2, 3])
@example("ab  \n", [], [1, 2, 3, 4])
def test_pieces_join_to_the_text_and_hold_no_stop(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    tokens = split(text, cuts)
    listener = Listener(tokens, stops)
    found = listener.follow()
    assert "".join(listener.pieces) == found == found.strip()
    assert all(piece for piece in listener.pieces)
    assert not any(stop in found for stop in stops)
    # The answer ends with the first token that completes a stop string.
    for count in range(1, len(tokens) + 1):
        known = b"".join(tokens[:count]).decode(errors="replace")
        places = [known.find(stop) for stop in stops if stop in known]
        if places:
            assert (listener.used, listener.answer.is_stopped) == (count, True)
            assert found == known[: min(places)].strip()
            break
    else:
        assert not listener.answer.is_stopped
        assert found == text.strip()


@settings(max_examples=200)
@given(WORDS, st.text(st.sampled_from("ab \né"), min_size=1, max_size=4), CUTS)
def test_an_answer_is_what_stands_before_its_first_stop_string(
    text: str, stop: str, cuts: list[int]
) -> None:
    assert Listener(split(text, cuts), [stop]).follow() == text.split(stop)[0].strip()


@settings(max_examples=100)
@given(WORDS, CUTS, st.integers(1, 4))
def test_a_listener_that_raises_hears_nothing_more(text: str, cuts: list[int], at: int) -> None:
    heard = Listener(split(text, cuts))
    heard.follow()
    listener = Listener(split(text, cuts), fails_at=at)
    found = listener.follow()
    assert listener.pieces == heard.pieces[:at]
    assert listener.answer.is_broken == (len(heard.pieces) >= at)
    assert found.startswith("".join(listener.pieces))


def test_what_may_still_change_is_held_back() -> None:
    listener = Listener([b" I", b" s", b"\xc3", b"\xa9", b" ", b"\n", b"EN", b"d", b" \n"], ["END"])
    heard = []
    for count in range(1, 10):
        listener.answer.follow(range(count), is_last=count == 9)
        heard.append("".join(listener.pieces))
    assert heard == ["I", "I s", "I s", "I sé", "I sé", "I sé", "I sé", *["I sé \nENd"] * 2]


@pytest.mark.parametrize("stop", [(), ("x",)])
def test_without_a_listener_stops_alone_are_looked_for(stop: tuple[str, ...]) -> None:
    answer = AnswerText(Question("?", stop=stop), lambda ids: "abx"[: len(ids)])
    assert answer.is_needed == bool(stop)
    answer.follow(range(3), is_last=False)
    assert answer.is_stopped == bool(stop)
    assert answer.text(range(3)) == ("ab" if stop else "abx")
