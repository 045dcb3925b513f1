"""The HTTP application: routes to replies. See ``protocol`` and ``answers`` for the JSON."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

import vlmbatch
from vlmbatch.core import Completion
from vlmbatch.errors import EngineError
from vlmbatch.serve.answers import ReplyMaker, model_of, to_json
from vlmbatch.serve.body import read_body
from vlmbatch.serve.dispatcher import QueueFullError
from vlmbatch.serve.errors import ApiError, api_error, draining, loading
from vlmbatch.serve.guard import Guard
from vlmbatch.serve.metrics import CONTENT_TYPE, Metrics
from vlmbatch.serve.middleware import RequestLog, RequestMiddleware, path_label
from vlmbatch.serve.openapi import describe_api
from vlmbatch.serve.protocol import ChatRequest, read_json
from vlmbatch.serve.service import ChatService
from vlmbatch.serve.settings import ServeJob
from vlmbatch.serve.streaming import AnswerStream, LoopCalls, StreamReply
from vlmbatch.serve.ticket import Ticket

logger = logging.getLogger(__name__)

SMALL_BODY = 1 << 16
"""Bodies up to this size are parsed at once, larger ones on another thread."""


class Application:
    """The state behind the routes.

    Attributes:
        options: The options.
        metrics: Counts and times.
        service: Answers, once the model is loaded.
        is_draining: Whether no more requests are taken.
    """

    def __init__(self, options: ServeJob) -> None:
        """Set up without a model.

        Raises:
            JobError: A key was to be read and is not there.
        """
        self.options = options
        self.metrics = Metrics()
        self.service: ChatService | None = None
        self.is_draining = False
        self._reading = 0
        self._calls: LoopCalls | None = None
        self._parsers = concurrent.futures.ThreadPoolExecutor(2, "parse")
        self.asgi = self._make_asgi(Guard(options))

    def open(self, service: ChatService) -> None:
        """Begin to answer."""
        self.metrics.watch(service)
        self.service = service

    def _make_asgi(self, guard: Guard) -> ASGIApp:
        routes = [
            Route("/", self.status),
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/metrics", self.metrics_text),
            Route("/openapi.json", self.openapi),
        ]
        app = Starlette(
            routes=routes,
            exception_handlers={
                ApiError: _error_response,
                HTTPException: _http_error,
            },
        )
        return RequestMiddleware(app, guard, self.metrics, path_label(routes))

    @property
    def state(self) -> str:
        """``loading``, ``ok``, ``draining`` or ``failed``."""
        if self.is_draining:
            return "draining"
        if self.service is None:
            return "loading"
        return "ok" if self.service.dispatcher.failure is None else "failed"

    async def status(self, request: Request) -> Response:
        """``GET /``."""
        found: dict[str, Any] = {
            "name": "vlmbatch",
            "version": vlmbatch.__version__,
            "status": self.state,
            "model": self.options.model,
        }
        if self.service is not None:
            engine, dispatcher = self.service.engine, self.service.dispatcher
            names = ("revision", "device", "dtype")
            found |= {"engine": engine.name} | {name: getattr(engine, name) for name in names}
            found |= {"waiting": dispatcher.num_waiting, "running": dispatcher.num_running}
        return _json(found)

    async def health(self, request: Request) -> Response:
        """``GET /health``: 200 while requests are answered, 503 otherwise."""
        return _json({"status": self.state}, 200 if self.state == "ok" else 503)

    async def models(self, request: Request) -> Response:
        """``GET /v1/models``."""
        return _json({"object": "list", "data": [model_of(self._running().engine.model)]})

    async def model(self, request: Request) -> Response:
        """``GET /v1/models/ID``."""
        name = request.path_params["model"]
        if name != self._running().engine.model:
            raise ApiError(404, f"the model {name[:100]!r} is not here", code="model_not_found")
        return _json(model_of(name))

    async def metrics_text(self, request: Request) -> Response:
        """``GET /metrics``."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        """``GET /openapi.json``."""
        return _json(describe_api())

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        begun = time.perf_counter()
        service = self._running()
        dispatcher = service.dispatcher
        if dispatcher.num_waiting + self._reading >= self.options.max_queued:
            raise api_error(QueueFullError(f"{dispatcher.num_waiting} requests are waiting"))
        self._reading += 1
        try:
            body = await read_body(request, self.options.max_body_bytes)
            chat = await self._parse(service, body)
            del body
        finally:
            self._reading -= 1
        RequestLog.of(request.scope).note_prompt(chat)
        gone = asyncio.create_task(_client_gone(request))
        is_streaming = False
        try:
            if chat.wants_stream:
                response = await self._stream(service, chat, gone, begun, request)
                is_streaming = isinstance(response, StreamReply)
                return response
            return await self._whole(service, chat, gone, begun, request)
        finally:
            if not is_streaming:
                gone.cancel()

    async def _parse(self, service: ChatService, body: bytes) -> ChatRequest:
        if len(body) <= SMALL_BODY:
            return service.read(read_json(body))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._parsers, lambda: service.read(read_json(body)))

    async def _whole(
        self,
        service: ChatService,
        chat: ChatRequest,
        gone: asyncio.Task[None],
        begun: float,
        request: Request,
    ) -> Response:
        """Answer in one piece."""
        ticket = self._submit(service, chat)
        completions = await self._wait(ticket.done, ticket, gone, begun)
        if completions is None:
            return Response(status_code=499)  # nobody reads it
        seconds = time.perf_counter() - begun
        self._note(request, completions, seconds)
        return _json(ReplyMaker(service.engine.model).whole(completions, seconds))

    async def _stream(
        self,
        service: ChatService,
        chat: ChatRequest,
        gone: asyncio.Task[None],
        begun: float,
        request: Request,
    ) -> Response:
        """Answer in pieces, once the request is prepared: what is wrong with it is a 400."""
        self._calls = self._calls or LoopCalls(asyncio.get_running_loop())
        stream = AnswerStream(self._calls, len(chat.questions))
        ticket = self._submit(service, chat, stream)
        if await self._wait(ticket.ready, ticket, gone, begun) is None:
            return Response(status_code=499)
        left = self.options.timeout - (time.perf_counter() - begun)
        return StreamReply(
            stream,
            ticket,
            gone,
            ReplyMaker(service.engine.model),
            wants_usage=chat.wants_usage,
            keep_alive_seconds=self.options.keep_alive,
            timeout_seconds=left,
            on_done=lambda found: self._note(request, found, time.perf_counter() - begun),
            on_gone=self.metrics.count_gone,
            on_failed=RequestLog.of(request.scope).note_error,
        )

    def _submit(
        self, service: ChatService, chat: ChatRequest, stream: AnswerStream | None = None
    ) -> Ticket:
        try:
            return service.submit(chat, None if stream is None else stream.put)
        except Exception as error:
            raise api_error(error) from error

    async def _wait(
        self,
        future: concurrent.futures.Future[Any],
        ticket: Ticket,
        gone: asyncio.Task[None],
        begun: float,
    ) -> Any:
        """Wait for a future of a ticket. None if the client went away.

        Raises:
            ApiError: It failed, or took too long.
        """
        found = asyncio.wrap_future(future)
        left = self.options.timeout - (time.perf_counter() - begun)
        try:
            await asyncio.wait({found, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if found.done():
                return found.result()
            if gone.done():
                self.metrics.count_gone()
                return None
            raise timed_out(self.options.timeout)
        except asyncio.CancelledError as error:
            if not found.cancelled():
                raise
            raise draining() from error
        except Exception as error:
            raise api_error(error) from error
        finally:
            if not found.done():
                ticket.cancel()
                found.cancel()

    def _note(self, request: Request, completions: list[Completion], seconds: float) -> None:
        self.metrics.observe(completions, seconds)
        RequestLog.of(request.scope).note_answer(completions)

    def _running(self) -> ChatService:
        """Return the service.

        Raises:
            ApiError: The model is being loaded, or the server is about to end.
        """
        if self.is_draining:
            raise draining()
        if self.service is None:
            raise loading()
        if (failure := self.service.dispatcher.failure) is not None:
            raise api_error(EngineError(f"the engine has ended: {failure}"))
        return self.service


def timed_out(seconds: float) -> ApiError:
    """Return the error of a request that took too long."""
    return ApiError(
        504,
        f"not answered within {seconds:g} s (--timeout)",
        code="timeout",
        headers={"x-should-retry": "false"},
    )


async def _client_gone(request: Request) -> None:
    """Return when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(value: Mapping[str, Any], status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")


async def _error_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    RequestLog.of(request.scope).note_error(error)
    return Response(
        to_json(error.body()), error.status, error.headers, media_type="application/json"
    )


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer for a path or method that there is not."""
    assert isinstance(error, HTTPException)
    what = "method" if error.status_code == 405 else "path"
    message = f"no such {what}: {request.method} {request.url.path[:200]}"
    found = ApiError(error.status_code, message, headers=dict(error.headers or {}))
    return await _error_response(request, found)
