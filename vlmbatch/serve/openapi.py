"""``/openapi.json``: the description of the API."""

from __future__ import annotations

from typing import Any

import vlmbatch
from vlmbatch.serve.schema import CHAT_REQUEST

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {
        name: {"type": "integer"} for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    },
}
CHOICE = {
    "type": "object",
    "required": ["index", "message", "finish_reason"],
    "properties": {
        "index": {"type": "integer"},
        "message": {
            "type": "object",
            "required": ["role", "content"],
            "properties": {"role": {"const": "assistant"}, "content": {"type": "string"}},
        },
        "logprobs": {"type": ["object", "null"]},
        "finish_reason": {"enum": ["stop", "length"]},
    },
}
CHAT_COMPLETION = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {"type": "array", "items": CHOICE},
        "usage": USAGE,
        "processing_time": {"type": "number", "description": "Seconds since the request came."},
        "inference_time": {
            "type": ["number", "null"],
            "description": "Seconds of the phases vision, prefill and decode.",
        },
        "timings": {"type": "object", "description": "Seconds of each phase."},
    },
}
_ERRORS = {
    "400": "The request, a picture or a value is not valid.",
    "401": "No valid key.",
    "403": "The Host or Origin is not allowed.",
    "404": "The model is not here.",
    "408": "The body came too slowly.",
    "413": "The request is too large.",
    "429": "The queue is full; see Retry-After.",
    "503": "The model is being loaded, or the server is about to end.",
    "504": "Not answered in time.",
}


def describe_api() -> dict[str, Any]:
    """Return the description, as OpenAPI 3.1."""
    chat = {
        "summary": "Answer a conversation about pictures and videos.",
        "operationId": "chat",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref("ChatRequest")}},
        },
        "responses": {
            "200": {
                "description": "The answer; with `stream` as events.",
                "content": {
                    "application/json": {"schema": _ref("ChatCompletion")},
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            },
            **_errors(*_ERRORS),
        },
    }
    json_paths = {
        "/": ("State of the server.", "status", ("403",)),
        "/health": ("200 while requests are answered.", "health", ("403", "503")),
        "/v1/models": ("The models.", "models", ("401", "403", "503")),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "vlmbatch", "version": vlmbatch.__version__},
        "paths": {
            **{
                path: {"get": _get(summary, name, "application/json", errors)}
                for path, (summary, name, errors) in json_paths.items()
            },
            "/v1/chat/completions": {"post": chat},
            "/metrics": {
                "get": _get("Metrics for Prometheus.", "metrics", "text/plain", ("401", "403"))
            },
        },
        "components": {
            "schemas": {
                "ChatRequest": CHAT_REQUEST,
                "ChatCompletion": CHAT_COMPLETION,
                "Error": ERROR,
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _get(summary: str, name: str, content: str, errors: tuple[str, ...]) -> dict[str, Any]:
    schema = {"type": "object" if content == "application/json" else "string"}
    found = {"description": "It.", "content": {content: {"schema": schema}}}
    return {
        "summary": summary,
        "operationId": name,
        "responses": {"200": found, **_errors(*errors)},
    }


def _errors(*codes: str) -> dict[str, Any]:
    content = {"application/json": {"schema": _ref("Error")}}
    return {code: {"description": _ERRORS[code], "content": content} for code in codes}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
