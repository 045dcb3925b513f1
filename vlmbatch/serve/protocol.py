"""From the JSON of a chat request to turns, pictures and questions."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import operator
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jsonschema_rs

from vlmbatch.core import Conversation, Part, Question, Role, Turn
from vlmbatch.serve.errors import ApiError
from vlmbatch.serve.media import ClipSampling, Medium
from vlmbatch.serve.schema import CHAT_REQUEST, IGNORED, UNSUPPORTED
from vlmbatch.serve.settings import AnsweringOptions

SHOWN = 120
"""Most characters of a value in an error message."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a message: a text, or a medium that is not decoded yet."""

    text: str = ""
    medium: Medium | None = None

    def part(self) -> Part:
        """Return it as a part of a conversation; decodes it."""
        if self.medium is None:
            return Part("text", self.text)
        return Part(self.medium.kind, pixels=self.medium.pixels(), detail=self.medium.detail)


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A chat request that was understood.

    Attributes:
        model: The model that was asked for.
        messages: The turns before the question, each a role and its pieces.
        questions: The question, once for each answer that is wanted.
        wants_stream: Whether the answer is streamed.
        wants_usage: Whether a stream ends with its usage.
    """

    model: str
    messages: Sequence[tuple[Role, Sequence[Piece]]]
    questions: tuple[Question, ...]
    wants_stream: bool = False
    wants_usage: bool = False

    @property
    def media(self) -> list[Medium]:
        """The pictures and videos, in order; a repeated one is there once."""
        found = (piece.medium for _, pieces in self.messages for piece in pieces)
        return list(dict.fromkeys(medium for medium in found if medium is not None))

    @property
    def fetch(self) -> Callable[[], None] | None:
        """Fetches what is behind URLs; None where there are none."""
        remote = [medium for medium in self.media if medium.is_remote]

        def fetch() -> None:
            for medium in remote:
                medium.fetch()

        return fetch if remote else None

    def conversation(self) -> Conversation:
        """Decode the pictures and return the conversation.

        Raises:
            ReadError, DecodeError: A picture or video cannot be used; ``param`` says which.
        """
        turns = [
            Turn(role, tuple(piece.part() for piece in pieces)) for role, pieces in self.messages
        ]
        return Conversation(tuple(turns))

    def streaming(self, on_text: Callable[[int, str], None]) -> tuple[Question, ...]:
        """Return the questions with a callback that gets the number of the answer and a piece of
        its text.
        """
        return tuple(
            dataclasses.replace(question, on_text=functools.partial(on_text, number))
            for number, question in enumerate(self.questions)
        )


def read_json(data: bytes) -> Any:
    """Parse the body of a request.

    Raises:
        ApiError: It is not JSON.
    """

    def refuse(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    try:
        return json.loads(data.decode("utf-8"), parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 text: {error.reason}") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, f"the body is not JSON: {reason}") from error


def read_chat_request(
    values: Any, options: AnsweringOptions, models: Sequence[str] | None = None
) -> ChatRequest:
    """Understand a chat request.

    Args:
        values: The parsed JSON.
        options: Limits, and the defaults of generation.
        models: The names of the model; None to take any.

    Raises:
        ApiError: It has another form, asks for what there is not, or is over a limit.
    """
    check_schema(values)
    if models is not None and values["model"] not in models:
        raise ApiError(
            404,
            f"the model {_short(values['model'])} is not here; there is {', '.join(models)}",
            param="model",
            code="model_not_found",
        )
    _check_unsupported(values)
    messages = _read_messages(values, options)
    role, pieces = messages[-1]
    last = pieces[-1] if pieces else Piece()
    text = last.text if last.medium is None else ""
    before = pieces[:-1] if pieces and last.medium is None else pieces
    turns = [*messages[:-1], *([(role, before)] if before else [])]
    stream_options = values.get("stream_options") or {}
    return ChatRequest(
        values["model"],
        turns,
        _questions(text, values, options),
        bool(values.get("stream")),
        bool(stream_options.get("include_usage")),
    )


def check_schema(values: Any) -> None:
    """Check a request against the schema.

    Raises:
        ApiError: It does not match; the message names the place.
    """
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object with `model` and `messages`")
    for name in values:
        if name not in CHAT_REQUEST["properties"]:
            known = [each for each in CHAT_REQUEST["properties"] if each not in UNSUPPORTED]
            near = difflib.get_close_matches(name, known, 1, cutoff=0.75)
            advice = f"did you mean {near[0]}?" if near else "leave it out"
            raise ApiError(
                400,
                f"unknown parameter {_short(name)}; {advice}",
                param=str(name)[:SHOWN],
                code="unknown_parameter",
            )
    try:
        error = next(_validator().iter_errors(values), None)
    except ValueError as failure:  # it goes 255 levels deep
        raise ApiError(400, "the body is nested too deeply", code="invalid_value") from failure
    if error is None:
        return
    param = _place(error.instance_path)
    value = _follow(values, error.instance_path)
    *path, keyword = error.schema_path
    raise ApiError(
        400,
        _complaint(str(keyword), _follow(CHAT_REQUEST, path), value, param or "the body"),
        param=param or None,
        code="invalid_value",
        private=_short(value) if isinstance(value, str) else "",
    )


@functools.cache
def _validator() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(CHAT_REQUEST)


def _follow(value: Any, path: Sequence[Any]) -> Any:
    """Return the part of a JSON value that a path leads to."""
    return functools.reduce(operator.getitem, path, value)


def _complaint(keyword: str, schema: Mapping[str, Any], value: Any, where: str) -> str:
    """Say what is wrong, without repeating a picture.

    Args:
        keyword: The keyword of the schema that a value does not match.
        schema: The schema of that value.
        value: The value.
        where: Its place in the request.
    """
    wanted = schema[keyword]
    if keyword == "required":
        missing = [name for name in wanted if name not in value]
        return f"{where} has no {', '.join(map(repr, missing))}"
    if keyword in ("enum", "const"):
        allowed = wanted if keyword == "enum" else [wanted]
        words = ", ".join(json.dumps(each) for each in allowed)
        return f"{where} must be one of {words}, not {_short(value)}"
    if keyword == "type":
        kinds = wanted if isinstance(wanted, list) else [wanted]
        return f"{where} must be {' or '.join(kinds)}, not {_short(value)}"
    limits = {
        "minimum": "at least",
        "maximum": "at most",
        "exclusiveMinimum": "above",
        "minLength": "of length at least",
        "minItems": "of length at least",
        "maxItems": "of length at most",
    }
    if keyword in limits:
        return f"{where} must be {limits[keyword]} {wanted}, not {_short(value)}"
    if keyword == "additionalProperties":
        unknown = [name for name in value if name not in schema["properties"]]
        return f"{where} has the unknown key {_short(unknown[0])}; leave it out"
    return f"{where} is not valid ({keyword}): {_short(value)}"


def _place(path: Sequence[Any]) -> str:
    """Write a path as ``messages[0].content``."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).lstrip(".")


def _short(value: Any) -> str:
    # Not json.dumps of it all: a picture may have many megabytes.
    if isinstance(value, str):
        text = repr(value[:SHOWN])
        return text if len(value) <= SHOWN else f"{text[:-1]}…'"
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return json.dumps(value)[:SHOWN]


def _check_unsupported(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name in IGNORED or value is None or name not in UNSUPPORTED:
            continue
        if value not in UNSUPPORTED[name]:
            raise ApiError(
                400,
                f"{name} is not supported yet: leave it out",
                param=name,
                code="unsupported_parameter",
            )


def _read_messages(
    values: Mapping[str, Any], options: AnsweringOptions
) -> list[tuple[Role, list[Piece]]]:
    """Return role and pieces of each message; a picture behind its question comes before it."""
    sampling = _sampling(values.get("media_io_kwargs") or {})
    seen: dict[tuple[str, str, str | None], Medium] = {}
    found: list[tuple[Role, list[Piece]]] = []
    for number, message in enumerate(values["messages"]):
        role: Role = "system" if message["role"] == "developer" else message["role"]
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        pieces = []
        for place, part in enumerate(parts):
            kind = part["type"]
            param = f"messages[{number}].content[{place}]"
            if kind == "text":
                pieces.append(Piece(part["text"]))
                continue
            if role != "user":
                raise ApiError(400, f"{param}: pictures go with the role user", param=param)
            url, detail = part[kind]["url"], part[kind].get("detail")
            key = (kind, url, detail)
            if key not in seen:
                is_clip = kind == "video_url"
                seen[key] = Medium(
                    url, "clip" if is_clip else "picture", param, options, detail, sampling
                )
            pieces.append(Piece(medium=seen[key]))
            if (
                sum(piece.medium is not None for _, each in found for piece in each)
                + sum(piece.medium is not None for piece in pieces)
                > options.max_images
            ):
                raise ApiError(
                    400,
                    f"more than {options.max_images} pictures and videos (--max-images)",
                    param=param,
                    code="too_many_images",
                )
        found.append((role, _media_first(pieces)))
    if found[-1][0] != "user":
        raise ApiError(
            400,
            "the last message must be the user's: it is what is answered",
            param=f"messages[{len(found) - 1}].role",
        )
    return found


def _media_first(pieces: list[Piece]) -> list[Piece]:
    """Put pictures that all come after the text before it: so the models were trained, and so a
    run asks. A text between pictures keeps its place.
    """
    kinds = [piece.medium is not None for piece in pieces]
    return (
        sorted(pieces, key=lambda piece: piece.medium is None) if kinds == sorted(kinds) else pieces
    )


def _sampling(values: Mapping[str, Any]) -> ClipSampling:
    inner = {**values, **(values.get("video") or {})}
    number = inner.get("num_frames")
    return ClipSampling(inner.get("fps"), None if number is None else int(number))


def _questions(
    text: str, values: Mapping[str, Any], options: AnsweringOptions
) -> tuple[Question, ...]:
    """Return the question once for each answer, each with a seed of its own."""

    def given(name: str, default: Any) -> Any:
        value = values.get(name)
        return default if value is None else value

    limit = given("max_completion_tokens", given("max_tokens", options.max_new_tokens))
    temperature = float(given("temperature", options.temperature))
    wants_logprobs = bool(values.get("logprobs"))
    if values.get("top_logprobs") and not wants_logprobs:
        raise ApiError(
            400, "top_logprobs goes with logprobs: true", param="top_logprobs", code="invalid_value"
        )
    stop = given("stop", ())
    seed = values.get("seed")
    if seed is None:
        seed = options.seed or (random.getrandbits(62) if temperature > 0 else 0)
    return tuple(
        Question(
            text,
            max_new_tokens=int(limit),
            temperature=temperature,
            top_p=float(given("top_p", options.top_p)),
            seed=int(seed) + number,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            logprobs=int(given("top_logprobs", 0)) if wants_logprobs else None,
            ignore_eos=bool(values.get("ignore_eos")),
        )
        for number in range(int(given("n", 1)))
    )
