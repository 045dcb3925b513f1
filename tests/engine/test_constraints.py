"""Constraints: every way through the allowed tokens ends in a text that satisfies them."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import numpy as np
import pytest

from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Constraint
from vlmbatch.engine.constraints import (
    Constraints,
    ConstraintState,
    check_constraint,
    fill_bits,
    next_bits,
    num_words,
)
from vlmbatch.errors import JobError, MissingDependencyError, PrepareError
from vlmbatch.prepare import Preparer

CHECKPOINT = find_checkpoint("demo")
PADDED = 607
"""More tokens than the tokenizer has, as in checkpoints whose matrices are padded."""
(END,) = CHECKPOINT.end_token_ids()

THING = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["a  b", "é", None]},
        "marks": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "count", "kind", "marks"],
    "additionalProperties": False,
}


def schema(value: Any) -> Constraint:
    return Constraint("schema", json.dumps(value))


def choices(*texts: str) -> Constraint:
    return Constraint("choices", json.dumps(texts, ensure_ascii=False))


def regex(text: str) -> Constraint:
    return Constraint("regex", text)


@pytest.fixture(scope="module")
def constraints() -> Constraints:
    return Constraints(Preparer.from_checkpoint(CHECKPOINT).writer, PADDED, {END})


def allowed(state: ConstraintState) -> list[int]:
    bits = next_bits([state], PADDED)
    assert bits is not None
    row = np.unpackbits(bits[0].view(np.uint8), bitorder="little")
    return [int(token) for token in np.flatnonzero(row)]


def random_answer(constraints: Constraints, constraint: Constraint, seed: int) -> str:
    """An answer of tokens drawn from those allowed, that ends as soon as it may at every second
    chance.
    """
    drawn, state, tokens = random.Random(seed), constraints.begin(constraint), list[int]()
    while True:
        here = allowed(state)
        assert here
        assert (END in here) == state.is_complete
        if END in here and (drawn.random() < 0.5 or here == [END]):
            state.take(END)
            assert state.is_over
            return state.decode(tokens)
        tokens.append(drawn.choice([token for token in here if token != END]))
        state.take(tokens[-1])
        assert not state.fault
        assert len(tokens) < 2000


@pytest.mark.parametrize(
    "expression",
    [
        "a|bc", "a/b", "[0-9]{3}-[a-f]+", "(?i)yes|no", "^x$", " two  spaces ", '"q"\\.', "é[^x]ü",
        "a\nb", "(red|green)( and (red|green))?", "x{2,4}", r"\d\w\s", "(a|aa)b?",
    ],
)  # fmt: skip
def test_an_expression_matches_every_answer_as_a_whole(
    constraints: Constraints, expression: str
) -> None:
    for seed in range(8):
        found = random_answer(constraints, regex(expression), seed)
        assert re.fullmatch(expression, found), found


def test_every_choice_can_be_had_and_nothing_else(constraints: Constraints) -> None:
    texts = ("red", "red wine", "é\"x\\'", "日本 🙂", "a/b|c")
    found = {random_answer(constraints, choices(*texts), seed) for seed in range(60)}
    assert found == set(texts)


@pytest.mark.parametrize(
    "value",
    [THING, {"$ref": "#/$defs/t", "$defs": {"t": THING}}, {"type": "string", "pattern": "^a+b$"}],
)
def test_every_answer_is_json_that_is_valid_under_the_schema(
    constraints: Constraints, value: dict[str, Any]
) -> None:
    for seed in range(6):
        found = json.loads(random_answer(constraints, schema(value), seed))
        assert jsonschema.Draft202012Validator(value).is_valid(found)


def test_end_tokens_that_the_tokenizer_lacks_are_left_out() -> None:
    writer = Preparer.from_checkpoint(CHECKPOINT).writer
    lacking = Constraints(writer, PADDED, {END, PADDED - 1, 10**6})
    assert random_answer(lacking, choices("red", "blue"), 1) in ("red", "blue")


def test_json_is_written_as_python_writes_it(constraints: Constraints) -> None:
    value = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": [1, 2]}}}
    fixed = {**value, "required": ["a", "b"], "additionalProperties": False}
    assert random_answer(constraints, schema(fixed), 0) == '{"a": 1, "b": [1, 2]}'


def test_rows_without_a_form_may_choose_every_token(constraints: Constraints) -> None:
    assert next_bits([None, None], PADDED) is None
    bits = np.zeros((4, num_words(PADDED)), np.int32)
    state = constraints.begin(choices("red"))
    fill_bits([None, state, None], bits)
    assert (bits[[0, 2, 3]] == -1).all()
    assert bits[1].tolist() == next_bits([state], PADDED)[0].tolist()  # type: ignore[index]
    assert max(allowed(state)) < CHECKPOINT.tokenizer().get_vocab_size()


def test_a_form_that_cannot_be_followed_says_so_and_masks_nothing(constraints: Constraints) -> None:
    state = constraints.begin(choices("red"))
    state.take(END)
    assert state.fault
    assert "\n" not in state.fault
    assert len(allowed(state)) == 32 * num_words(PADDED)


def test_answers_do_not_share_their_place(constraints: Constraints) -> None:
    first, second = (constraints.begin(choices("red", "blue")) for _ in range(2))
    before = allowed(second)
    first.take(before[0])
    assert allowed(second) == before != allowed(first)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (regex("a("), "regex cannot be compiled: unclosed group"),
        (regex("a)|(b"), "unopened group"),
        (regex("(?=x)a"), "look-around, including look-ahead"),
        (regex(r"\bfoo"), "lookarounds not supported"),
        (regex("x\\"), "regex cannot be compiled: it ends in a backslash"),
        (regex("\udcff"), "surrogates not allowed"),
        (Constraint("schema", "{"), "Expecting property name"),
        (Constraint("schema", "[]"), "it is no JSON object"),
        (schema({"type": "foo"}), "schema cannot be compiled: Invalid type: foo"),
        (schema({"type": "string", "format": "foo"}), "Unknown format: foo"),
        (schema({"not": {}}), 'Unimplemented keys: ["not"]'),
        (schema({"$ref": "http://x/y"}), "http://x/y"),
        (
            schema({"type": "string", "minLength": 5, "maxLength": 2}),
            "minLength (5) is greater than maxLength (2)",
        ),
        (schema({"type": "string", "pattern": "a("}), "unclosed group"),
        (choices("a\x7f"), "choices cannot be compiled"),
    ],
)
def test_what_cannot_be_compiled_is_said_in_one_line(
    constraints: Constraints, constraint: Constraint, message: str
) -> None:
    with pytest.raises(JobError) as refused:
        check_constraint(constraint)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "WHOLE" not in str(refused.value)
    with pytest.raises(PrepareError, match=re.escape(str(refused.value))):
        constraints.begin(constraint)


def test_a_package_that_is_missing_is_named_with_its_extra(
    constraints: Constraints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"--regex needs .*vlmbatch\[constraints\]"):
        check_constraint(regex("a"))
    with pytest.raises(MissingDependencyError):
        constraints.begin(regex("not compiled before"))
