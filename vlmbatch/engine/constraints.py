"""Constrained decoding: which tokens may come next, by llguidance.

A constraint is compiled once for a tokenizer. Each answer then has a state of its own, which
follows its tokens and allows those that lead to a whole answer; the tokens that end an answer are
among them where it is whole. JSON has the white space of Python's ``json.dumps``: free white space
would let a model write blanks until its answer is cut off.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vlmbatch.core import Constraint
from vlmbatch.errors import JobError, MissingDependencyError, PrepareError
from vlmbatch.job import ConstraintOptions
from vlmbatch.prepare.prompt import PromptWriter

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

MAX_COMPILED = 64
"""Number of compiled constraints that are kept."""
_JSON_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def check_constraint(constraint: Constraint) -> None:
    """Check that a constraint can be compiled, without a model.

    Raises:
        JobError: It cannot; the message says why.
        MissingDependencyError: llguidance is not installed.
    """
    _need_library(constraint)
    import llguidance

    try:
        grammar = _grammar(constraint)
    except ValueError as error:
        raise JobError(f"{constraint.kind} cannot be compiled: {error}") from error
    is_wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    if is_wrong:
        raise JobError(f"{constraint.kind} cannot be compiled: {_reason(messages[0])}")


def checked_constraint(options: ConstraintOptions) -> Constraint | None:
    """Return the constraint of a job's answers, which can be compiled; None for any text.

    Raises:
        JobError: A file cannot be read, or the constraint not be compiled.
        MissingDependencyError: llguidance is not installed.
    """
    constraint = options.read_constraint()
    if constraint is not None:
        check_constraint(constraint)
    return constraint


class Constraints:
    """Compiles constraints for the tokenizer of a model. Thread-safe.

    Attributes:
        lead: White space that comes before every answer and is no part of it.
    """

    def __init__(self, writer: PromptWriter, vocabulary: int, end_ids: Collection[int]) -> None:
        """Note the parts of a model; nothing is compiled yet.

        Args:
            writer: Writes its prompts.
            vocabulary: Number of its tokens, as logits have them.
            end_ids: Tokens that end an answer.
        """
        is_word = writer.tokenizer.id_to_token
        ends = [token for token in sorted(end_ids) if token < vocabulary and is_word(token)]
        self._parts = writer.tokenizer, vocabulary, ends
        self.lead = writer.before_answer if writer.before_answer.isspace() else ""
        self._guard = threading.Lock()
        self._compiled = functools.lru_cache(MAX_COMPILED)(self._compile)

    def compile(self, constraint: Constraint) -> LLMatcher:
        """Return the matcher at the beginning of an answer. It belongs to all answers: copy it.

        Raises:
            PrepareError: It cannot be compiled.
            MissingDependencyError: llguidance is not installed.
        """
        with self._guard:
            return self._compiled(constraint)

    def begin(self, constraint: Constraint) -> ConstraintState:
        """Return the state of an answer that has no token yet."""
        return ConstraintState(self, self.compile(constraint).deep_copy())

    @functools.cached_property
    def tokenizer(self) -> LLTokenizer:
        """The tokenizer as llguidance has it."""
        import llguidance

        tokenizer, vocabulary, end_ids = self._parts
        described = json.loads(tokenizer.to_str())
        # A prompt's tokens may include some that the model does not have and an answer never has.
        described["added_tokens"] = [
            token for token in described["added_tokens"] if token["id"] < vocabulary
        ]
        text = json.dumps(described, ensure_ascii=False)
        return llguidance.LLTokenizer(text, n_vocab=vocabulary, eos_token=end_ids)

    @functools.cached_property
    def executor(self) -> LLExecutor:
        """Threads that find the tokens of several answers at a time."""
        import llguidance

        return llguidance.LLExecutor()

    def _compile(self, constraint: Constraint) -> LLMatcher:
        _need_library(constraint)
        import llguidance

        try:
            grammar = _grammar(constraint, self.lead)
        except ValueError as error:
            raise PrepareError(f"{constraint.kind} cannot be compiled: {error}") from error
        matcher = llguidance.LLMatcher(self.tokenizer, grammar, log_level=0)
        if matcher.is_error():
            reason = _reason(matcher.get_error())
            raise PrepareError(f"{constraint.kind} cannot be compiled: {reason}")
        return matcher


class ConstraintState:
    """The constraint of one answer, as far as its tokens have come.

    Attributes:
        constraints: Compiled it.
        matcher: llguidance's own state.
    """

    def __init__(self, constraints: Constraints, matcher: LLMatcher) -> None:
        self.constraints, self.matcher = constraints, matcher

    def take(self, token: int) -> None:
        """Go on with a token that was chosen."""
        self.matcher.consume_token(token)

    @property
    def is_complete(self) -> bool:
        """True if the answer is whole as it is."""
        return bool(self.matcher.is_accepting())

    @property
    def is_over(self) -> bool:
        """True if nothing can follow but the end."""
        return bool(self.matcher.is_stopped())

    @property
    def fault(self) -> str:
        """Reason why the constraint cannot be followed any more; empty as long as it can."""
        return _reason(self.matcher.get_error()) if self.matcher.is_error() else ""

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode the tokens of an answer; a last character that lacks bytes is U+FFFD."""
        text: str = self.constraints.tokenizer.decode_str(list(tokens))
        return text[len(self.constraints.lead) :]


def num_words(vocabulary: int) -> int:
    """Number of 32-bit words that have a bit for every token."""
    return -(-vocabulary // 32)


def next_bits(
    states: Sequence[ConstraintState | None], vocabulary: int
) -> npt.NDArray[np.int32] | None:
    """Return the tokens that may come next, see ``fill_bits``; None if no answer is constrained."""
    if not any(states):
        return None
    bits = np.empty((len(states), num_words(vocabulary)), np.int32)
    fill_bits(states, bits)
    return bits


def fill_bits(states: Sequence[ConstraintState | None], bits: npt.NDArray[np.int32]) -> None:
    """Set a bit for each token that may come next, the lowest bit first: all of them where an
    answer is not constrained, in rows without an answer, and where the constraint has a fault.

    Args:
        states: The states of the answers.
        bits: (rows, words), contiguous.
    """
    bits.fill(-1)
    begun = [(row, state) for row, state in enumerate(states) if state is not None]
    if begun:
        executor = begun[0][1].constraints.executor
        matchers = [(state.matcher, row) for row, state in begun]
        executor.unsafe_compute_mask_ptr(matchers, bits.ctypes.data, bits[0].nbytes, len(bits))
        for row, state in begun:
            if state.matcher.is_error():
                bits[row] = -1


def _need_library(constraint: Constraint) -> None:
    if importlib.util.find_spec("llguidance") is None:
        raise MissingDependencyError(
            f"--{constraint.kind} needs llguidance: pip install 'vlmbatch[constraints]'"
        )


def _grammar(constraint: Constraint, lead: str = "") -> str:
    """Return a constraint in llguidance's dialect of Lark.

    Raises:
        ValueError: The text of the constraint is not valid text, or not JSON where it should be.
    """
    import llguidance

    constraint.text.encode()  # half a surrogate pair is no text
    if constraint.kind == "regex" and _ends_in_escape(constraint.text):
        raise ValueError("it ends in a backslash that escapes nothing")
    before = f"{json.dumps(lead, ensure_ascii=False)} " if lead else ""
    if constraint.kind == "regex":
        expression = llguidance.regex_to_lark(constraint.text, "")
        return f"start: WHOLE\nWHOLE: {before}/{expression}/"
    value: Any = json.loads(constraint.text)
    if constraint.kind == "choices":
        texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in value)
        return f"start: WHOLE\nWHOLE: {before}({texts})"
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    own = {**_JSON_SPACES, **value.get("x-guidance", {})}
    schema = json.dumps({**value, "x-guidance": own}, ensure_ascii=False)
    return f"start: {before}body\nbody: %json {schema}"


def _ends_in_escape(expression: str) -> bool:
    return (len(expression) - len(expression.rstrip("\\"))) % 2 == 1


def _reason(message: str) -> str:
    """Return what is wrong, of a message of llguidance: without its place in our grammar and the
    state of the parser.
    """
    lines = [line.strip() for line in message.partition("<state>")[0].splitlines()]
    found = next((line for line in lines if line.startswith("error: ")), "")
    if not found:
        found = lines[0].partition("failed to compile JSON schema: ")[2] or lines[0]
        found = re.sub(r"^(at )?\d+\(\d+\): ", "", found.rpartition("(in regex): ")[2])
    return found.removeprefix("error: ")
