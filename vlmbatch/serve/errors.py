"""Errors of the API, in OpenAI's form."""

from __future__ import annotations

import concurrent.futures
import re
from typing import Any

from vlmbatch.errors import EngineError, ItemError, one_line
from vlmbatch.serve.dispatcher import ClosedError, QueueFullError

RETRY_SECONDS = 1
"""``Retry-After`` of a full queue, which moves on with every answer."""

_QUOTED = re.compile(r"b?['\"].*['\"]")
"""All from the first quote to the last one: decoders show the beginning of a file."""
_URL = re.compile(r"\b(https?://|data:)\S+", re.IGNORECASE)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: The HTTP status.
        message: What is wrong, then what to do.
        param: The parameter that is wrong, such as ``messages[0].content``.
        code: A word for programs.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        private: str = "",
    ) -> None:
        """Take an error.

        Args:
            status, message, param, code, headers: See the class.
            private: Part of the message that the client has sent; the log leaves it out.
        """
        super().__init__(message)
        self._private = private
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @property
    def reason(self) -> str:
        """The message for a log: without values and URLs of the client, which may be prompts or
        pictures.
        """
        text = self.message.replace(self._private, "…") if self._private else self.message
        return _URL.sub("…", " ".join(text.split()))

    def body(self) -> dict[str, Any]:
        """Return the JSON of the response."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        values = {
            "message": self.message,
            "type": kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": values}


def api_error(error: BaseException) -> ApiError:
    """Translate an error of the dispatcher or an engine."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        headers = {"retry-after": str(RETRY_SECONDS)}
        return ApiError(429, f"{error}; try again later", code="queue_full", headers=headers)
    if isinstance(error, ClosedError | concurrent.futures.CancelledError):
        return draining()
    if isinstance(error, ItemError):
        param = getattr(error, "param", None)
        text = one_line(error)
        quoted = _QUOTED.search(text)
        private = quoted[0] if quoted else ""
        return ApiError(400, text, param=param, code="invalid_request", private=private)
    if isinstance(error, EngineError):
        return ApiError(503, one_line(error), code="engine_ended", headers={"retry-after": "10"})
    return ApiError(500, f"unexpected error: {type(error).__name__}", code="internal_error")


def draining() -> ApiError:
    """Return the error of a server that is about to end."""
    return ApiError(
        503,
        "the server is about to end; ask another one",
        code="draining",
        headers={"retry-after": "10"},
    )


def loading() -> ApiError:
    """Return the error of a server whose model is not loaded yet."""
    return ApiError(
        503,
        "the model is being loaded; try again in a few seconds",
        code="loading",
        headers={"retry-after": "2"},
    )
