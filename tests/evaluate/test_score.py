"""Rows and right answers are joined without silent loss, and scores belong to their rows."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import jiwer
import pytest

from tests.write.rows import record
from vlmbatch.errors import JobError, MissingDependencyError
from vlmbatch.evaluate.ids import match_ids
from vlmbatch.evaluate.options import EvalOptions, parse_limits
from vlmbatch.evaluate.reference import Reference, RightAnswers
from vlmbatch.evaluate.report import describe, lines
from vlmbatch.evaluate.score import Evaluation, evaluate
from vlmbatch.write.columns import Row, row_of


def rows(*texts: str | None, prompt: str = "Q", task: str = "vqa") -> list[Row]:
    """Make rows 00000.jpg, 00001.jpg …; None is an error row."""
    return [
        row_of(
            record(
                number,
                text or "",
                prompt=prompt,
                task=task,
                status="ok" if text is not None else "error",
            )
        )
        for number, text in enumerate(texts)
    ]


def right(*answers: str, prompt: str | None = None) -> Reference:
    return Reference(
        {
            (f"{number:05d}.jpg", prompt): RightAnswers([answer])
            for number, answer in enumerate(answers)
        }
    )


def run(
    found: list[Row], reference: Reference, other: list[Row] | None = None, **options: Any
) -> Evaluation:
    return evaluate(
        lambda: found,
        reference,
        EvalOptions(resamples=100, **options),
        None if other is None else lambda: other,
    )


def value(found: Evaluation, metric: str = "exact") -> float | None:
    return found.overall.scores[metric].here.value


def report(found: Evaluation, against: str | None = None) -> str:
    return "\n".join(lines(found, output="OUT", reference="REF", against=against))


def test_missing_and_extra_rows_are_counted_and_named() -> None:
    found = run(
        rows("a", "b", "c"),
        Reference(
            {("00001.jpg", None): RightAnswers(["b"]), ("other.jpg", None): RightAnswers(["x"])}
        ),
        metrics=("exact",),
    )
    assert (
        found.counts.rows,
        found.counts.scored,
        found.counts.extra.count,
        found.missing.count,
    ) == (3, 1, 2, 1)
    assert (found.counts.extra.first, found.missing.first) == (
        ["00000.jpg", "00002.jpg"],
        ["other.jpg"],
    )
    assert found.coverage == 0.5
    assert value(found) == 1.0
    text = report(found)
    assert "2 of 3 rows of OUTPUT not in the reference: 00000.jpg, 00002.jpg" in text
    assert "1 of 2 right answers not in OUTPUT: other.jpg" in text


def test_many_missing_rows_are_named_in_part() -> None:
    found = run(rows("a"), right(*"abcdefghij"), metrics=("exact",))
    assert found.missing.count == 9
    assert len(found.missing.first) == 5
    assert "00005.jpg …" in report(found)


def test_error_rows_are_wrong_and_counted() -> None:
    found = run(rows("a", None, "b"), right("a", "", "b"))
    assert (found.counts.errors, found.overall.errors) == (1, 1)
    assert value(found) == value(found, "anls") == pytest.approx(2 / 3)
    assert "1 error row among these" in report(found)
    assert "(error)" in report(found)


def test_an_answer_to_the_question_is_taken_before_one_to_any_question() -> None:
    reference = Reference(
        {("00000.jpg", "Q"): RightAnswers(["asked"]), ("00000.jpg", None): RightAnswers(["any"])}
    )
    assert (
        value(run(rows("asked") + rows("any", prompt="other"), reference, metrics=("exact",)))
        == 1.0
    )


def test_figures_by_task_and_question_are_those_of_their_rows() -> None:
    output = (
        rows("a", "x", prompt="first")
        + rows("a", "b", "c", prompt="second")
        + rows("x", prompt="third", task="ocr")
    )
    found = run(output, right("a", "b", "c"), max_questions=2)
    assert {task: group.rows for task, group in found.tasks.items()} == {"vqa": 5, "ocr": 1}
    assert found.tasks["vqa"].scores["exact"].here.value == pytest.approx(4 / 5)
    assert {key: group.scores["exact"].here.value for key, group in found.questions.items()} == {
        ("vqa", "second"): 1.0,
        ("vqa", "first"): 0.5,
    }
    assert found.more_questions == 1
    assert found.tasks["ocr"].scores["exact"].here.interval is None  # one row has no spread
    text = report(found)
    assert "all tasks (6 rows)" in text
    assert "1 more question: --max-questions 3 scores each" in text
    assert value(run(output, right("a", "b", "c"), task="ocr")) == 0


def test_corpus_measures_are_over_the_corpus_and_not_means_of_rows() -> None:
    expected, said = ["a", "a long line of text"], ["b", "a long line of text"]
    found = run(rows(*said), right(*expected))
    assert value(found, "cer") == pytest.approx(jiwer.cer(expected, said))
    assert value(found, "cer") != pytest.approx(0.5)


def test_the_interval_holds_the_value() -> None:
    found = run(rows(*("a" if number % 3 else "wrong" for number in range(60))), right(*"a" * 60))
    for name, score in found.overall.scores.items():
        low, high = score.here.interval or (0.0, 0.0)
        assert low < (score.here.value or 0.0) < high, name


def test_the_worst_rows_come_first_and_right_ones_never() -> None:
    found = run(rows("circle", "zzzz", "circles", "circle"), right(*["circle"] * 4), worst=2)
    assert found.worst_by == "anls"
    assert [row.pair.id for row in found.worst] == ["00001.jpg", "00002.jpg"]
    assert run(rows("circle"), right("circle")).worst == ()
    by_rate = run(
        rows("circle", "circle circle circle"),
        right("circle", "circle"),
        metrics=("exact",),
        worst_by="cer",
    )
    assert [(row.pair.id, row.score) for row in by_rate.worst] == [
        ("00001.jpg", pytest.approx(14 / 6))
    ]
    assert set(by_rate.overall.scores) == {"exact", "cer"}


def test_equally_bad_rows_stay_in_the_order_of_output() -> None:
    found = run(rows("z", "z", "z"), right("a", "a", "a"), worst=2, metrics=("exact",))
    assert [row.pair.id for row in found.worst] == ["00000.jpg", "00001.jpg"]


def test_two_outputs_are_compared_over_the_rows_both_have() -> None:
    here, there = rows("a", "b", "x", "d"), rows("a", "x", "x")
    found = run(here, right(*"abcd"), there, metrics=("exact",))
    score = found.overall.scores["exact"]
    assert score.there is not None
    assert score.difference is not None
    assert (score.here.value, score.there.value, score.difference.value) == pytest.approx(
        (2 / 3, 1 / 3, 1 / 3)
    )
    assert (found.counts.only_here.first, found.counts.only_there.count) == (["00003.jpg (Q)"], 0)
    assert found.worst == ()  # no row fell behind
    behind = run(there, right(*"abcd"), here, metrics=("exact",))
    assert [(row.pair.id, row.pair.other) for row in behind.worst] == [("00001.jpg", "b")]
    assert behind.counts.only_there.count == 1
    assert "difference" in report(behind, "OTHER")


def test_a_difference_is_resampled_in_pairs() -> None:
    texts = ["a" if number % 2 else "wrong" for number in range(100)]
    found = run(rows(*texts), right(*"a" * 100), rows(*texts))
    for score in found.overall.scores.values():
        assert score.difference is not None
        assert (score.difference.value, score.difference.interval) == (0.0, (0.0, 0.0))


def test_error_rows_of_the_other_output_are_counted_too() -> None:
    found = run(rows("a", "b"), right("a", "b"), rows(None, "b"))
    assert (found.counts.errors, found.counts.other_errors) == (0, 1)


def test_prompts_are_compared_when_they_are_ignored() -> None:
    here, there = rows("a", "b", prompt="one"), rows("a", "x", prompt="two")
    with pytest.raises(JobError, match="share no row; --ignore-prompt"):
        run(here, right("a", "b"), there)
    score = run(here, right("a", "b"), there, ignore_prompt=True).overall.scores["exact"]
    assert score.difference is not None
    assert score.difference.value == 0.5
    with pytest.raises(JobError, match="several rows of vqa"):
        run(here + there, right("a", "b"), there, ignore_prompt=True)
    with pytest.raises(JobError, match="several rows of vqa"):
        run(here, right("a", "b"), here + there, ignore_prompt=True)


def test_ids_that_do_not_match_are_shown() -> None:
    message = (
        "no id matches: OUTPUT has '00000.jpg', the reference 'b.jpg'; --id-column chooses the "
        "column, --id-prefix puts text before the ids of OUTPUT"
    )
    with pytest.raises(JobError, match=re.escape(message)):
        run(rows("a"), named("b.jpg"))


def named(*names: str) -> Reference:
    """A reference in which each item's answer is its own name."""
    return Reference({(name, None): RightAnswers([name]) for name in names})


def paths(*ids: str) -> list[Row]:
    return [row_of(record(number, id=id)) for number, id in enumerate(ids)]


def pairs(ids: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    return dict(match_ids(ids, set(names)).by_path_end)


def test_absolute_ids_of_a_reference_are_joined_by_the_end_of_the_path_and_it_is_said() -> None:
    reference = Reference(
        {
            (f"/data/{number:05d}.jpg", None): RightAnswers([text])
            for number, text in enumerate("ab")
        }
    )
    found = run(rows("a", "x", "c"), reference, metrics=("exact",))
    assert (found.counts.scored, value(found)) == (2, 0.5)
    assert found.counts.extra.first == ["00002.jpg"]
    text = report(found)
    assert "no id is the same on both sides: joined 2 ids by the end of the path" in text
    assert "2 ids of the reference begin with /data/" in text
    assert describe(found, EvalOptions())["rows"]["ids_by_path_end"] == 2


def test_so_are_absolute_ids_of_an_output_and_of_the_one_it_is_compared_with() -> None:
    here = paths("/data/a/1.jpg", "/data/b/1.jpg")
    found = run(here, named("a/1.jpg", "b/1.jpg"), paths("a/1.jpg", "b/1.jpg"), metrics=("exact",))
    assert (found.counts.scored, found.counts.only_there.count) == (2, 0)
    assert "2 ids of OUTPUT begin with /data/" in report(found)


def test_ids_are_taken_as_they_are_if_one_of_them_is_known() -> None:
    found = run(rows("a", "b"), named("00000.jpg", "/data/00001.jpg"), metrics=("exact",))
    assert (found.counts.scored, found.counts.extra.first) == (1, ["00001.jpg"])
    assert "by the end of the path" not in report(found)
    with pytest.raises(JobError, match="no id matches"):
        run(rows("a"), named("/data/00000.jpg"), id_prefix="images/")


def test_the_folder_that_most_paths_begin_with_decides_between_equal_names() -> None:
    ids = ["1.jpg", "a/1.jpg", "b/1.jpg"]
    assert pairs(ids, [f"/d/{id}" for id in ids]) == {id: f"/d/{id}" for id in ids}
    assert pairs([f"/d/{id}" for id in ids], ids) == {f"/d/{id}": id for id in ids}
    folders = ["/x/1.jpg", "/x/2.jpg", "/y/3.jpg"]
    assert pairs(["1.jpg", "2.jpg", "3.jpg"], folders) == {
        f"{number}.jpg": folder for number, folder in enumerate(folders, 1)
    }


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (["1.jpg"], ["x/1.jpg", "y/1.jpg"]),
        (["1.jpg", "x/1.jpg"], ["/d/x/1.jpg"]),
        (["1.jpg"], ["/d/11.jpg"]),
        (["x/1.jpg"], ["y/1.jpg"]),
    ],
)
def test_ids_that_could_be_joined_in_several_ways_or_in_none_are_not_joined(
    ids: list[str], names: list[str]
) -> None:
    assert pairs(ids, names) == {}


def test_prompts_that_do_not_match_are_shown() -> None:
    with pytest.raises(
        JobError, match=r"about 00000.jpg OUTPUT has 'Q' and the reference 'Why.'; --ignore-prompt"
    ):
        run(rows("a"), right("a", prompt="Why?"))


def test_vqa_accuracy_needs_enough_answers() -> None:
    found = run(rows("a"), right("a"))
    assert "vqa" not in found.overall.scores
    assert "4 or more right answers" in found.left_out["vqa"]
    with pytest.raises(JobError, match="vqa needs 4 or more"):
        run(rows("a"), right("a"), metrics=("vqa",))
    with pytest.raises(JobError, match="vqa needs 4 or more"):
        run(rows("a"), right("a"), fail_under={"vqa": 0.5})
    assert (
        value(run(rows("a"), Reference({("00000.jpg", None): RightAnswers(["a"] * 4)})), "vqa")
        == 1.0
    )


def test_metrics_that_need_a_missing_package_are_left_out_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("jiwer", "sacrebleu", "sacrebleu.metrics"):
        monkeypatch.setitem(sys.modules, module, None)
    found = run(rows("a"), right("a"))
    assert set(found.overall.scores) == {"exact", "normalized", "anls"}
    assert "cer left out: cer and wer need jiwer: pip install 'vlmbatch[eval]'" in report(found)
    for asked in ({"metrics": ("cer",)}, {"fail_under": {"chrf": 10.0}}, {"worst_by": "wer"}):
        with pytest.raises(MissingDependencyError, match="pip install"):
            run(rows("a"), right("a"), **asked)


def test_limits_are_held_from_the_side_that_is_worse() -> None:
    found = run(rows("a", "x"), right("a", "b"))
    assert found.below({"exact": 0.5, "cer": 0.5, "coverage": 1.0}) == []
    assert found.below({"exact": 0.51}) == ["exact is 0.5000, under 0.51"]
    assert found.below({"cer": 0.4}) == ["cer is 0.5000, over 0.4"]
    assert run(rows("a"), right("a", "b")).below({"coverage": 1.0}) == [
        "coverage is 0.5000, under 1"
    ]
    assert run([], right("a")).below({"exact": 0.1, "cer": 0.9}) == [
        "exact is nothing, under 0.1",
        "cer is nothing, over 0.9",
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("exact", "is not a number"),
        ("exact=x", "is not a number"),
        ("exact=nan", "is not a number"),
        ("f1=1", "METRIC=VALUE"),
    ],
)
def test_limits_that_cannot_be_understood(text: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        parse_limits((text,))
    with pytest.raises(JobError, match="twice"):
        parse_limits(("cer=1", "cer=2"))


@pytest.mark.parametrize(
    "options",
    [{"metrics": ("bleu",)}, {"resamples": 5}, {"worst": -1}, {"seed": -1}, {"worst_by": "f1"}],
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(JobError):
        EvalOptions(**options)


def test_the_json_says_what_the_table_says() -> None:
    options = EvalOptions(resamples=100)
    found = evaluate(lambda: rows("a", "x"), right("a", "b"), options, lambda: rows("a", "b"))
    made = describe(found, options, output="OUT", reference="REF", against="OTHER")
    assert made["rows"]["scored"] == 2
    assert made["all"]["scores"]["exact"]["value"] == 0.5
    assert made["all"]["scores"]["exact"]["difference"]["value"] == -0.5
    assert made["questions"][0]["prompt"] == "Q"
    worst = made["worst"][0]
    assert (worst["id"], worst["prompt"], worst["score"], worst["text"], worst["answers"]) == (
        "00001.jpg",
        "Q",
        0.0,
        "x",
        ["b"],
    )
    assert (worst["against_score"], worst["against_text"]) == (1.0, "b")
