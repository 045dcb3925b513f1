"""Subtitles, read back by parsers that are not ours."""

from __future__ import annotations

import html
import io
import itertools

import pytest
import srt as srt_parser
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.write.sidecars.subtitles import (
    Cue,
    fitted,
    make_cues,
    srt,
    text_lines,
    transcript,
    vtt,
)

Read = list[tuple[int, int, str]]


def read_srt(text: str) -> Read:
    return [
        (round(s.start.total_seconds() * 1000), round(s.end.total_seconds() * 1000), s.content)
        for s in srt_parser.parse(text, ignore_errors=False)
    ]


def read_vtt(text: str) -> Read:
    captions = webvtt.from_buffer(io.StringIO(text))
    return [
        (c.start_time.in_milliseconds(), c.end_time.in_milliseconds(), html.unescape(c.raw_text))
        for c in captions
    ]


def test_cues_are_joined_cut_and_left_out() -> None:
    spans = [
        (0.0, 1.0, "A dog."),
        (1.0, 2.0, "A dog."),  # goes on
        (2.0, 4.0, "A cat."),  # runs into the next
        (3.0, 5.0, "A bird."),
        (5.0, 6.0, " \n "),  # nothing
        (7.0, 8.0, "A bird."),  # not known in between
        (8.0, 8.0, "never shown"),
        (8.0001, 8.5, "A bird."),
        (9.0, 10.0009, "one"),  # two answers about one stretch
        (9.0, 10.0009, "two\n\nlines"),
    ]
    assert list(make_cues(spans)) == [
        Cue(0, 2000, ("A dog.",)),
        Cue(2000, 3000, ("A cat.",)),
        Cue(3000, 5000, ("A bird.",)),
        Cue(7000, 8500, ("A bird.",)),
        Cue(9000, 10000, ("one", "two", "lines")),
    ]


def test_times_are_whole_milliseconds_never_past_the_end() -> None:
    assert list(make_cues([(1.001, 2.9999, "x")])) == [Cue(1001, 2999, ("x",))]
    assert "101:01:01,001 --> 101:01:02,000" in srt([Cue(363_661_001, 363_662_000, ("x",))])


def test_the_three_forms() -> None:
    cues = [Cue(0, 1500, ("Fish & <chips>",)), Cue(61_000, 3_600_250, ("1 --> 2", "& more"))]
    assert (
        srt(cues) == "1\n00:00:00,000 --> 00:00:01,500\nFish & <chips>\n\n"
        "2\n00:01:01,000 --> 01:00:00,250\n1 -> 2\n& more\n"
    )
    assert vtt(cues) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nFish &amp; &lt;chips&gt;\n\n"
        "00:01:01.000 --> 01:00:00.250\n1 --&gt; 2\n&amp; more\n"
    )
    assert (
        transcript(cues) == "[00:00:00.000 --> 00:00:01.500] Fish & <chips>\n"
        "[00:01:01.000 --> 01:00:00.250] 1 --> 2 & more\n"
    )
    assert (srt([]), vtt([]), transcript([])) == ("", "WEBVTT\n", "")


awkward = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["a\n\nb", "00:00:01,000 --> 00:00:02,000", "7\n\n8", "<i>x</i> &amp;", "\u2028\u2028x", "NOTE"]
)


@pytest.mark.parametrize(("write", "read"), [(srt, read_srt), (vtt, read_vtt)])
@settings(max_examples=60)
@given(texts=st.lists(st.tuples(st.floats(0.0005, 3), st.floats(0, 5), awkward), max_size=8))
def test_any_texts_come_back_in_order_without_overlap(
    write: object, read: object, texts: list[tuple[float, float, str]]
) -> None:
    spans, now = [], 0.0
    for step, length, text in texts:
        spans.append((now, now + length, text))
        now += step
    cues = list(make_cues(spans))
    last = max((end for _, end, _ in spans), default=0.0)
    assert all(cue.start_ms < cue.end_ms <= last * 1000 + 1e-5 for cue in cues)
    assert all(one.end_ms <= two.start_ms for one, two in itertools.pairwise(cues))
    assert all(
        one.lines != two.lines or one.end_ms < two.start_ms for one, two in itertools.pairwise(cues)
    )
    found = read(write(cues))  # type: ignore[operator]
    arrow = "->" if write is srt else "-->"
    assert found == [
        (cue.start_ms, cue.end_ms, "\n".join(cue.lines).replace("-->", arrow)) for cue in cues
    ]


def test_no_line_of_a_text_is_blank() -> None:
    assert text_lines("\n a \r\n\r\n\x0b\u2028b\0\x85 \n") == ["a", "b"]
    assert text_lines("") == []


@settings(max_examples=60)
@given(
    lines=st.lists(st.lists(st.text("abcdef", min_size=1, max_size=60), min_size=1), min_size=1),
    start=st.integers(0, 1000),
    length=st.integers(1, 100_000),
)
def test_cues_are_shown_in_two_lines_of_42_characters(
    lines: list[list[str]], start: int, length: int
) -> None:
    whole = Cue(start, start + length, tuple(map(" ".join, lines)))
    parts = list(fitted([whole]))
    assert (parts[0].start_ms, parts[-1].end_ms) == (start, start + length)
    assert all(cue.start_ms < cue.end_ms for cue in parts)
    assert all(one.end_ms == two.start_ms for one, two in itertools.pairwise(parts))
    if length >= sum(len(word) for line in lines for word in line) * 2:
        assert all(len(cue.lines) <= 2 for cue in parts)
        assert all(len(line) <= 42 for cue in parts for line in cue.lines)
    said = "".join(line for cue in parts for line in cue.lines)
    assert said.replace(" ", "") == "".join(word for line in lines for word in line)


def test_a_short_cue_stays_as_it_is() -> None:
    assert list(fitted([Cue(0, 1000, ("A dog.", "A cat."))])) == [
        Cue(0, 1000, ("A dog.", "A cat."))
    ]
