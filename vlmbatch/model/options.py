"""Options of a loaded model and of its answers, as keywords. Their defaults are those of a job."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from vlmbatch.core import Constraint, Question
from vlmbatch.engine.constraints import check_constraint, checked_constraint
from vlmbatch.engine.options import make_question
from vlmbatch.errors import JobError
from vlmbatch.job import ConstraintOptions, Detail, EngineOptions
from vlmbatch.job.constraint import CONSTRAINTS, schema_constraint, split_choices
from vlmbatch.job.keys import nearest, note_keywords
from vlmbatch.values import check_types


class AnswerSettings(TypedDict, total=False):
    """Options of an answer.

    Attributes:
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 is greedy.
        top_p: With a temperature: sample from the most likely tokens that together have this
            probability.
        seed: Seed of sampling.
        stop: A string, or several, that end the answer and are not part of it.
        schema: A JSON Schema, or a file with one, under which the answer is valid.
        regex: A regular expression that matches the answer as a whole.
        choices: Texts one of which is the answer.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: str | Sequence[str]
    schema: Mapping[str, Any] | str | os.PathLike[str]
    regex: str
    choices: str | Sequence[str]


class ModelSettings(TypedDict, total=False):
    """Options of a loaded model, and of its answers where a call gives none.

    Attributes:
        revision: Branch, tag or commit of a hub id.
        engine: ``torch``, ``transformers``, ``onnx``, ``llama-server`` or ``openai``, or a list,
            such as ``torch,transformers``, of which the first that opens is taken.
        provider: Execution provider of ``onnx``.
        llama_server, mmproj: The program and the file of pictures of ``llama-server``.
        endpoint: Base URL of the server that ``openai`` asks.
        api_key_env, api_key_file: Environment variable, or file, with its key.
        in_flight, request_timeout: Requests to it at a time, and their longest time in seconds.
        send, jpeg_quality: Size and form of the pictures for it.
        cache_dir: Folder for what is measured once on a machine.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        quantize: ``none``, ``int8``, ``q4`` (onnx), ``q8_0``, ``q5_0`` or ``q4_0`` (llama-server).
        detail: ``full`` as the checkpoint's processor does it, ``native`` does not enlarge small
            pictures, ``low`` is one tile.
        max_memory: Memory limit for weights and batches, such as ``6GiB``.
        memory_fraction: Share of the free memory that may be used.
        batch_size: Sequences decoded together.
        threads: Threads that compute.
        read_workers: Threads that read and prepare.
        max_new_tokens, temperature, top_p, seed: See ``AnswerSettings``.
    """

    revision: str | None
    engine: str
    provider: str | None
    llama_server: str | None
    mmproj: str | None
    endpoint: str | None
    api_key_env: str | None
    api_key_file: str | None
    in_flight: int
    request_timeout: float
    send: Literal["fitted", "original"]
    jpeg_quality: int | None
    cache_dir: str | None
    device: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    quantize: Literal["none", "int8", "q4", "q8_0", "q5_0", "q4_0"]
    detail: Detail
    max_memory: str | None
    memory_fraction: float
    batch_size: int | None
    threads: int | None
    read_workers: int | None
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Answering:
    """Checked options of the answers of one call.

    Attributes:
        options: Those that a job has, too.
        stop: Strings that end an answer.
        constraint: What an answer must satisfy.
    """

    options: EngineOptions
    stop: tuple[str, ...] = ()
    constraint: Constraint | None = None

    def question(self, text: str) -> Question:
        """Make a question with these options."""
        question = make_question(text, self.options, constraint=self.constraint)
        return dataclasses.replace(question, stop=self.stop)


def engine_options(model: str, settings: Mapping[str, Any]) -> EngineOptions:
    """Check the options that a model is opened with.

    Raises:
        JobError: One is not known, or its value is not allowed.
    """
    _check_names(settings, ModelSettings.__annotations__)
    return _checked(EngineOptions(**{"max_new_tokens": 1, **settings, "model": model}))


def answering(
    base: EngineOptions, settings: Mapping[str, Any], default_max_new_tokens: int | None
) -> Answering:
    """Check the options of a call; a constraint can be compiled.

    Args:
        base: The model's, for what the call does not give.
        settings: The call's.
        default_max_new_tokens: Of this kind of call; None for the model's.

    Raises:
        JobError: One is not known, or its value is not allowed.
    """
    _check_names(settings, AnswerSettings.__annotations__)
    values = dict(settings)
    if default_max_new_tokens is not None:
        values.setdefault("max_new_tokens", default_max_new_tokens)
    stop = values.pop("stop", ())
    stops = (stop,) if isinstance(stop, str) else tuple(stop) if _is_list(stop) else ("",)
    if not all(isinstance(text, str) and text for text in stops):
        raise JobError(f"stop must be a text or several, none of them empty, not {stop!r}")
    constraint = _constraint({name: values.pop(name) for name in CONSTRAINTS if name in values})
    if constraint is not None and stops:
        raise JobError(f"stop does not go with {constraint.kind}: the constraint ends the answer")
    return Answering(_checked(dataclasses.replace(base, **values)), stops, constraint)


def _constraint(given: Mapping[str, Any]) -> Constraint | None:
    """Return the constraint of answers, which can be compiled; None for any text."""
    schema = given.get("schema")
    values = dict(given)
    if isinstance(schema, Mapping):
        values["schema"] = "given"
    elif isinstance(schema, os.PathLike):
        values["schema"] = os.fspath(schema)
    if "choices" in values:
        values["choices"] = split_choices(values["choices"])
    options = ConstraintOptions(**values)
    check_types(options)
    options.check_constraint()
    if not isinstance(schema, Mapping):
        return checked_constraint(options)
    constraint = schema_constraint(dict(schema))
    check_constraint(constraint)
    return constraint


def _checked(options: EngineOptions) -> EngineOptions:
    try:
        check_types(options)
        options.check_engine()
    except JobError as error:
        note_keywords(error, EngineOptions)
        raise
    return options


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _check_names(settings: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in settings:
        if name not in known:
            near = nearest(name, known)
            hint = f"; did you mean {near}?" if near else f"; there are {', '.join(known)}"
            raise JobError(f"no option is called {name}{hint}")
