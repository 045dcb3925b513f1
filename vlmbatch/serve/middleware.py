"""The outermost layer of the application: request ids, keys, the access log, counts.

``receive`` is passed on as it is: a client that goes away is only seen there.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlmbatch.core import Completion
from vlmbatch.run.events import event
from vlmbatch.serve.answers import random_id, to_json
from vlmbatch.serve.errors import ApiError, api_error
from vlmbatch.serve.guard import Guard
from vlmbatch.serve.metrics import Metrics
from vlmbatch.serve.protocol import ChatRequest

logger = logging.getLogger(__name__)
report = logging.getLogger("vlmbatch.report")

QUIET_PATHS = ("/health", "/metrics")
"""Paths that are asked for all the time; they are logged with -v."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHOWN = 200


class RequestLog:
    """Notes about a request for its line in the log.

    Attributes:
        fields: What a JSON line has beside time, level and message.
    """

    def __init__(self, scope: Scope) -> None:
        """Begin with what the request line and its headers say."""
        self.headers = Headers(scope=scope)
        given = self.headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else f"req_{random_id()}"
        client = scope.get("client")
        self.fields: dict[str, Any] = {
            "event": "request",
            "request_id": self.id,
            "method": scope["method"],
            "path": scope["path"][:_SHOWN],
            "client": client[0] if client else None,
        }

    @staticmethod
    def of(scope: MutableMapping[str, Any]) -> RequestLog:
        """Return the notes about a request."""
        found: RequestLog = scope["vlmbatch"]
        return found

    def note_prompt(self, chat: ChatRequest) -> None:
        """Note the size of a request; its words only with -v."""
        self.fields |= {"pictures": len(chat.media), "stream": chat.wants_stream}
        if logger.isEnabledFor(logging.INFO):
            texts = [piece.text for _, pieces in chat.messages for piece in pieces if piece.text]
            texts.append(chat.questions[0].text)
            prompt = " / ".join(text[:_SHOWN] for text in texts)
            fields = event("prompt", request_id=self.id, prompt=prompt)
            logger.info("prompt: %s", prompt, extra=fields)

    def note_answer(self, completions: Sequence[Completion]) -> None:
        """Note the tokens of an answer."""
        self.fields |= {
            "prompt_tokens": completions[0].prompt_tokens,
            "completion_tokens": sum(each.new_tokens or 0 for each in completions),
            "finish_reason": completions[0].finish_reason,
        }

    def note_error(self, error: ApiError) -> None:
        """Note the reason of an error, without what the client has sent."""
        self.fields |= {"error": error.reason, "param": error.param, "code": error.code}

    def log(self, status: int, seconds: float) -> None:
        """Write the line."""
        self.fields |= {"status": status, "seconds": round(seconds, 4)}
        fields = self.fields
        tokens = ""
        if "prompt_tokens" in fields:
            tokens = f" {fields['prompt_tokens']}+{fields['completion_tokens']} tokens"
        reason = f": {fields['error']}" if "error" in fields else ""
        out = logger if fields["path"] in QUIET_PATHS else report
        out.info(
            "%s %s %d %.3f s%s %s%s",
            fields["method"],
            fields["path"].encode("unicode_escape").decode(),
            status,
            seconds,
            tokens,
            self.id,
            reason,
            extra={"fields": fields},
        )


class RequestMiddleware:
    """See the module."""

    def __init__(
        self, app: ASGIApp, guard: Guard, metrics: Metrics, label: Callable[[Scope], str]
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            guard: Refuses requests.
            metrics: Counts responses.
            label: Returns the path that a request is counted under.
        """
        self._app, self._guard, self._metrics, self._label = app, guard, metrics, label

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, unless it is refused."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        log = scope["vlmbatch"] = RequestLog(scope)
        status = 499

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = log.id
            await send(message)

        try:
            try:
                self._guard.check(scope["path"], log.headers)
                await self._app(scope, receive, send_noted)
            except ApiError as error:
                log.note_error(error)
                await _send_error(error, send_noted)
            except Exception as error:
                logger.error("unexpected error, please report it", exc_info=error)
                if status != 499:
                    raise
                found = api_error(error)
                log.note_error(found)
                await _send_error(found, send_noted)
        finally:
            self._metrics.count(self._label(scope), status)
            log.log(status, time.perf_counter() - begun)


async def _send_error(error: ApiError, send: Send) -> None:
    body = to_json(error.body())
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **error.headers,
    }
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def path_label(routes: Sequence[Route]) -> Callable[[Scope], str]:
    """Return a function that names the route of a request; paths of strangers are one name."""

    def label(scope: Scope) -> str:
        for route in routes:
            if route.matches(scope)[0] is not Match.NONE:
                return route.path
        return "other"

    return label
