"""Judging the answers: named checks, each with what was found and what to do about it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Literal

from vlmbatch.core import Completion
from vlmbatch.engine import EngineStats
from vlmbatch.engine.first_difference import tokens_before_difference
from vlmbatch.errors import ItemError, one_line
from vlmbatch.selftest.asking import Round
from vlmbatch.selftest.equality import AnswerPair, Equality, units
from vlmbatch.selftest.trial import CONSTRAINT, TEMPERATURE, Trial

Status = Literal["pass", "warn", "fail", "skip"]
MARGINS = {"float32": 0.02, "bfloat16": 0.5, "float16": 0.3}
"""By dtype, the largest gap between the log-probabilities of two tokens that rounding may change
places of.
"""
UNKNOWN_MARGIN, QUANTIZED_MARGIN = 0.5, 2.0
LOGPROB_CHANGES = {"float32": 0.01, "bfloat16": 0.2, "float16": 0.1}
"""By dtype, the largest change of an equal answer's mean log-probability that rounding explains."""
UNKNOWN_CHANGE, QUANTIZED_CHANGE = 0.2, 0.5
REPORT = "; send the report of --json with a description of the machine"


@dataclasses.dataclass(frozen=True)
class Check:
    """A named check: ``pass``; ``warn``: worth knowing, not broken; ``fail``: broken; ``skip``: not
    made, the reason is ``found``.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


@dataclasses.dataclass(frozen=True)
class Subject:
    """The engine under test, as far as judging depends on it.

    Attributes:
        name, device, dtype: See ``Engine``.
        is_demo: Whether the model is the demo.
    """

    name: str
    device: str
    dtype: str
    is_demo: bool

    @property
    def is_quantized(self) -> bool:
        """True if weights are integers."""
        return bool(re.search(r"int8|q[2-8]", self.dtype.lower()))

    @property
    def margin(self) -> float:
        """Largest gap between two tokens that rounding may change places of."""
        return QUANTIZED_MARGIN if self.is_quantized else MARGINS.get(self.dtype, UNKNOWN_MARGIN)

    @property
    def logprob_change(self) -> float:
        """Largest change of a mean log-probability that rounding explains."""
        if self.is_quantized:
            return QUANTIZED_CHANGE
        return LOGPROB_CHANGES.get(self.dtype, UNKNOWN_CHANGE)

    @property
    def way_out(self) -> str:
        """Advice for an engine that gives wrong words."""
        if self.name == "openai":
            return "ask the server's owner; its model, template or batching is at fault"
        if self.name != "torch":
            return f"use --engine torch until it is mended{REPORT}"
        if self.device.partition(":")[0] in ("cuda", "mps"):
            steps = "try --dtype float32, then --device cpu" if self.dtype != "float32" else ""
            return f"{steps or 'use --device cpu until it is mended'}{REPORT}"
        return f"{'try --dtype float32' if self.dtype != 'float32' else 'reinstall torch'}{REPORT}"


def difference_margin(found: Completion, reference: Completion) -> float:
    """Return the gap, in the reference's eyes, between its token and the other one at the first
    difference; infinite where it cannot be told.
    """
    place = tokens_before_difference(*units(found, reference))
    if place >= min(len(found.logprobs), len(reference.logprobs)):
        return math.inf
    row = reference.logprobs[place]
    other = found.logprobs[place].token
    return min(
        (row.logprob - value for token, value in row.top if token == other), default=math.inf
    )


def check_answers(subject: Subject, rounds: Sequence[Round], trial: Trial) -> Check:
    """Check that every question got one answer, and none an error."""
    lost, doubled = sum(each.lost for each in rounds), sum(each.doubled for each in rounds)
    owed = sum(each.owed for each in rounds)
    good = [one for each in (trial.together, trial.again, trial.separate) for one in each.flat]
    good += [one for each in trial.alone for one in each.flat]
    errors = [one.error for one in good if one.error is not None]
    if lost or doubled:
        parts = [f"{lost} got no answer"] * bool(lost) + [f"{doubled} came twice"] * bool(doubled)
        return Check(
            "answers", "fail", f"of {owed} questions {' and '.join(parts)}", subject.way_out
        )
    if errors:
        first = one_line(errors[0])
        text = f"{len(errors)} of {len(good)} good questions ended in an error: {first}"
        return Check("answers", "fail", text, subject.way_out)
    return Check("answers", "pass", f"one for each of {owed} questions")


def check_known(subject: Subject, trial: Trial, reference: Round | None) -> Check:
    """Compare with the answers that are known."""
    name = "known answers"
    pairs = [
        (scene.name, wanted, one.text or "")
        for scene, found in zip(trial.scenes, trial.together.answers, strict=True)
        for (_, wanted), one in zip(scene.questions, found, strict=True)
    ]
    if subject.is_demo:
        wrong = [
            f"{where}: {text!r}, not {wanted!r}" for where, wanted, text in pairs if text != wanted
        ]
        if not wrong:
            return Check(name, "pass", f"all {len(pairs)} are right")
        text = f"{len(wrong)} of {len(pairs)} are wrong, such as {wrong[0]}"
        return Check(name, "fail", text, subject.way_out)
    if reference is not None:
        return Check(name, "skip", "they are the demo model's; this model is held to the reference")
    right = sum(_says(text, wanted) for _, wanted, text in pairs)
    text = f"{right} of {len(pairs)} answers have the words that are expected"
    if 2 * right >= len(pairs):
        return Check(name, "pass", text)
    return Check(name, "warn", text, "see that the model takes pictures, and that they arrive")


def _says(text: str, wanted: str) -> bool:
    """Whether an answer in other words has the words that matter."""
    words = set(re.findall(r"\w+", text.lower()))
    needed = set(re.findall(r"\w+", wanted.lower())) - {"a", "an", "the", "to", "of", "word"}
    return needed <= words


def check_agreement(
    subject: Subject, name: str, found: Sequence[Completion], reference: Sequence[Completion]
) -> tuple[Check, Equality]:
    """Compare answers with others to the same questions: equal, or different where rounding may
    change places of two tokens.
    """
    equality = Equality.of(
        AnswerPair.of(one, other) for one, other in zip(found, reference, strict=True)
    )
    text = f"{equality.equal} of {equality.answers} answers are equal"
    differing = [
        (one, other)
        for one, other in zip(found, reference, strict=True)
        if one.text is None or one.text != other.text
    ]
    if not differing:
        return Check(name, "pass", text), equality
    text += f", the others differ after {equality.median_before:g} tokens"
    far = [pair for pair in differing if difference_margin(*pair) > subject.margin]
    if not far:
        return Check(name, "pass", f"{text}, where two tokens are as likely"), equality
    text += f": {far[0][0].text!r}, not {far[0][1].text!r}"
    if subject.is_quantized and equality.share_equal >= 0.5:
        return Check(name, "warn", text, "integers change some answers: none keeps all"), equality
    return Check(name, "fail", text, subject.way_out), equality


def check_logprobs(subject: Subject, trial: Trial, reference: Round | None) -> Check:
    """Check that log-probabilities are numbers, and near the reference's."""
    name = "log-probabilities"
    found = trial.together.flat + trial.again.flat
    means = [one.mean_logprob for one in found if one.mean_logprob is not None]
    rows = [row for one in found for row in one.logprobs]
    values = [
        *means,
        *(row.logprob for row in rows),
        *(value for row in rows for _, value in row.top),
    ]
    if not values:
        return Check(name, "skip", "the engine tells none")
    odd = [value for value in values if not math.isfinite(value) or value > 1e-4]
    if odd:
        text = f"{len(odd)} of {len(values)} are no log-probabilities, such as {odd[0]}"
        return Check(name, "fail", text, subject.way_out)
    text = f"{len(values)} finite numbers"
    if reference is None:
        return Check(name, "pass", text)
    changes = [
        abs(one.mean_logprob - other.mean_logprob)
        for one, other in zip(trial.together.flat, reference.flat, strict=True)
        if one.text == other.text
        and one.mean_logprob is not None
        and other.mean_logprob is not None
    ]
    if not changes:
        return Check(name, "pass", text)
    text = f"of equal answers, they change by {max(changes):.2g} at most"
    if max(changes) <= subject.logprob_change:
        return Check(name, "pass", text)
    return Check(name, "fail", f"{text}; {subject.logprob_change:g} is expected", subject.way_out)


def check_bad(subject: Subject, trial: Trial) -> Check:
    """Check that bad requests end alone."""
    name = "bad pictures"
    if trial.bad_file is None:
        advice = "install Pillow from its wheel: pip install --force-reinstall pillow"
        return Check(name, "fail", "half a JPEG file was read without an error", advice)
    odd = [one.error for one in trial.bad if one.error and not isinstance(one.error, ItemError)]
    if odd:
        return Check(name, "fail", f"one ends in {type(odd[0]).__name__}", subject.way_out)
    found = [one for answers in trial.beside_bad for one in answers]
    killed = [one.error for one in found if one.error is not None]
    if killed:
        text = f"beside {len(trial.bad)} bad requests, {len(killed)} good ones end in an error: "
        return Check(name, "fail", text + one_line(killed[0]), subject.way_out)
    wanted = [one for place in trial.small for one in trial.together.answers[place]]
    agreed, _ = check_agreement(subject, name, found, wanted)
    if agreed.status == "fail":
        return dataclasses.replace(agreed, found=f"beside bad requests {agreed.found}")
    text = f"all {len(found)} good questions beside {len(trial.bad)} bad requests are answered"
    return Check(name, "pass", text)


def check_seeds(subject: Subject, trial: Trial) -> Check:
    """Check that sampling follows its seed, and nothing else."""
    name, sampling = "seeds", trial.sampling
    first, second = ([one.text for one in each] for each in (sampling.first, sampling.second))
    status: Status = "warn" if subject.name == "openai" else "fail"
    advice = (
        "answers of this endpoint with --temperature cannot be repeated"
        if status == "warn"
        else f"do not rely on --seed{REPORT}"
    )
    if None in first:
        return Check(name, "fail", f"sampling ends in an error: {sampling.first[0].error}", advice)
    if first != second:
        differing = next(pair for pair in zip(first, second, strict=True) if pair[0] != pair[1])
        text = f"one seed gave {differing[0]!r}, then {differing[1]!r}"
        return Check(name, status, text, advice)
    if first[0] != sampling.alone.text:
        text = f"a seed gave {first[0]!r} among others, {sampling.alone.text!r} alone"
        return Check(name, status if subject.dtype == "float32" else "warn", text, advice)
    if len(set(first)) == 1:
        text = f"{len(first)} seeds at temperature {TEMPERATURE:g} gave one answer"
        return Check(name, "warn", text, "see that --temperature and --seed reach the model")
    return Check(name, "pass", f"{len(first)} seeds gave the same answers twice, and alone")


def check_stop(subject: Subject, trial: Trial) -> Check:
    """Check that a stop string ends an answer before it."""
    name, found = "stop strings", trial.stopped
    if found is None:
        return Check(name, "skip", "no answer is long enough to be stopped")
    whole = trial.again.answers[trial.busiest][0].text or ""
    wanted = whole[: whole.index(trial.stop)].strip()
    if found.text == wanted and found.finish_reason == "stop":
        return Check(name, "pass", f"an answer ends before {trial.stop!r}")
    if found.text is not None and trial.stop not in found.text and not whole.startswith(found.text):
        return Check(name, "warn", f"other words came: {found.text!r}", subject.way_out)
    text = f"{trial.stop!r} gave {found.text!r}, not {wanted!r}"
    return Check(name, "fail", text, subject.way_out)


def check_form(subject: Subject, trial: Trial) -> Check:
    """Check that answers satisfy the constraint that is asked for."""
    name = "constraints"
    if trial.constrained is None:
        text = "the engine has no --regex, or llguidance is not installed"
        return Check(name, "skip", text, "the torch engine has, with 'vlmbatch[constraints]'")
    found = trial.constrained.flat[::2]
    wrong = [one for one in found if not re.fullmatch(CONSTRAINT.text, one.text or "")]
    if not wrong:
        return Check(name, "pass", f"{len(found)} answers satisfy their constraint")
    shown = repr(wrong[0].text) if wrong[0].error is None else one_line(wrong[0].error)
    text = f"{len(wrong)} of {len(found)} answers do not match {CONSTRAINT.text}: {shown}"
    return Check(name, "fail", text, subject.way_out)


def check_trial(
    subject: Subject, trial: Trial, reference: Round | None, missing: str
) -> Iterator[tuple[Check, Equality | None]]:
    """Make all checks of answers.

    Args:
        subject: The engine.
        trial: Its answers.
        reference: The reference's; None without one.
        missing: The reason for having none.
    """
    yield check_answers(subject, trial.rounds, trial), None
    yield check_known(subject, trial, reference), None
    if reference is None:
        yield Check("reference", "skip", missing), None
    else:
        yield check_agreement(subject, "reference", trial.together.flat, reference.flat)
    yield check_agreement(subject, "the same again", trial.again.flat, trial.together.flat)
    first = [answers[0] for answers in trial.together.answers]
    alone = [each.flat[0] for each in trial.alone]
    yield check_agreement(subject, "one and many", first, alone)
    shared = trial.together.answers[trial.busiest]
    yield check_agreement(subject, "many questions", shared, trial.separate.flat)
    yield check_bad(subject, trial), None
    yield check_seeds(subject, trial), None
    yield check_stop(subject, trial), None
    yield check_form(subject, trial), None
    if trial.constrained is not None:
        beside = [first[place] for place in trial.small[1::2]]
        yield check_agreement(subject, "beside constraints", trial.constrained.flat[1::2], beside)
    yield check_logprobs(subject, trial, reference), None


def check_kernels(stats: EngineStats) -> Check | None:
    """Check that decode steps are recorded and layers compiled, where an engine does that."""
    if not stats.graphs and not stats.fused:
        return None
    notes = [*stats.graphs.get("notes", ()), *stats.fused.get("notes", ())]
    if not notes:
        replayed = stats.graphs.get("replayed", 0)
        text = f"{stats.graphs.get('recorded', 0)} decode steps are recorded, {replayed} replayed"
        return Check("kernels", "pass", text)
    advice = f"the words are right, decoding is slower{REPORT}"
    return Check("kernels", "warn", "; ".join(notes), advice)
