"""The JSON Schema of a chat request. Requests are checked against it, and ``/openapi.json``
publishes it.
"""

from __future__ import annotations

from typing import Any

MAX_ANSWERS = 64
MAX_TOP_LOGPROBS = 20
MAX_STOPS = 16
MAX_FRAMES = 256
"""More frames than any context of the family holds."""

IGNORED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
)
"""Parameters of OpenAI's that change no answer."""

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "structured_outputs": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "top_k": (0, -1),
    "min_p": (0,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
}
"""Parameters that this server does not have yet, and their values that ask for nothing."""


def _nullable(kind: str, **rest: Any) -> dict[str, Any]:
    return {"type": [kind, "null"], **rest}


_URL = {"type": "string", "description": "A data: URL, or an https: URL."}
IMAGE_URL = {
    "type": "object",
    "required": ["url"],
    "properties": {
        "url": _URL,
        "detail": {
            "enum": ["auto", "low", "high", None],
            "description": "low: one tile; high: all tiles of the checkpoint's processor; auto: "
            "the server's --detail.",
        },
    },
}
VIDEO_URL = {"type": "object", "required": ["url"], "properties": {"url": _URL}}


def _needs(kind: str) -> dict[str, Any]:
    return {"if": {"properties": {"type": {"const": kind}}}, "then": {"required": [kind]}}


PART = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"enum": ["text", "image_url", "video_url"]},
        "text": {"type": "string"},
        "image_url": IMAGE_URL,
        "video_url": VIDEO_URL,
    },
    "allOf": [_needs(kind) for kind in ("text", "image_url", "video_url")],
}
MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {"type": ["string", "array"], "items": PART},
        "name": _nullable("string"),
        "tool_calls": {"enum": [None, []]},
        "function_call": {"const": None},
        "audio": {"const": None},
    },
}
_SAMPLING = {
    "fps": _nullable("number", exclusiveMinimum=0, maximum=1000),
    "num_frames": _nullable("integer", minimum=1, maximum=MAX_FRAMES),
}

CHAT_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["model", "messages"],
    "additionalProperties": False,
    "properties": {
        "model": {"type": "string", "description": "The id that /v1/models states."},
        "messages": {"type": "array", "minItems": 1, "items": MESSAGE},
        "max_tokens": _nullable("integer", minimum=1),
        "max_completion_tokens": _nullable("integer", minimum=1),
        "temperature": _nullable("number", minimum=0, maximum=2),
        "top_p": _nullable("number", exclusiveMinimum=0, maximum=1),
        "seed": _nullable("integer", minimum=-(2**63), maximum=2**63 - 1),
        "n": _nullable("integer", minimum=1, maximum=MAX_ANSWERS),
        "stop": {
            "type": ["string", "array", "null"],
            "minLength": 1,
            "maxItems": MAX_STOPS,
            "items": {"type": "string", "minLength": 1},
        },
        "logprobs": _nullable("boolean"),
        "top_logprobs": _nullable("integer", minimum=0, maximum=MAX_TOP_LOGPROBS),
        "ignore_eos": {
            **_nullable("boolean"),
            "description": "Go on after the token that ends an answer, for measurements.",
        },
        "stream": _nullable("boolean"),
        "stream_options": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": {
                "include_usage": _nullable("boolean"),
                "include_obfuscation": _nullable("boolean"),
            },
        },
        "media_io_kwargs": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "description": "Sampling of videos: fps, num_frames (at most so many), or both; the "
            "checkpoint's own rule without them.",
            "properties": {
                **_SAMPLING,
                "video": {
                    "type": ["object", "null"],
                    "additionalProperties": False,
                    "properties": _SAMPLING,
                },
            },
        },
        **{name: {"description": "Has no effect."} for name in IGNORED},
        **{name: {"description": "Not supported yet."} for name in UNSUPPORTED},
    },
}
