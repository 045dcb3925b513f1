"""Wording that messages and tables share."""

from __future__ import annotations

from vlmbatch.wording import number_of, shortened


def test_one_thing_has_no_plural() -> None:
    assert [number_of(count, "item") for count in (0, 1, 2)] == ["0 items", "1 item", "2 items"]


def test_a_text_is_one_line_and_says_where_it_is_cut() -> None:
    assert shortened(" a\n red  dog ", 9) == "a red dog"
    assert shortened("a red dog", 8) == "a red d…"
