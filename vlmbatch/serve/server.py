"""Listen, load the model, answer until told to end, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from vlmbatch.engine import Engine, EnginePlan, plan_engine
from vlmbatch.errors import EngineError, VlmbatchError, one_line
from vlmbatch.run.events import event
from vlmbatch.serve.app import Application
from vlmbatch.serve.service import ChatService
from vlmbatch.serve.settings import ServeJob

report = logging.getLogger("vlmbatch.report")

KEEP_ALIVE_SECONDS = 75
"""Clients keep connections for up to a minute; one that is closed under a request is an error."""

WATCH_SECONDS = 0.2
GRACE_SECONDS = 5
"""Time that connections have to end by themselves after their requests."""


class AddressError(VlmbatchError):
    """The address cannot be listened on."""


class HttpServer(uvicorn.Server):
    """uvicorn, but the first signal begins to drain; a second one ends the process at once."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None]) -> None:
        """Take the function to call at the first signal."""
        super().__init__(config)
        self._drain = drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain."""
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        self._drain()


class Server:
    """A server from its first to its last moment."""

    def __init__(self, options: ServeJob, engine: Engine | None = None) -> None:
        """Check everything that can be checked without the model, and listen.

        Args:
            options: The options.
            engine: An open engine, in place of the one that the options name.

        Raises:
            JobError: A key cannot be read, or the engine cannot honour an option.
            ModelLoadError: The checkpoint is missing.
            AddressError: The address is taken, or not this machine's.
        """
        self._options = options
        self._plan = EnginePlan.of(engine) if engine else plan_engine(options)
        self._app = Application(options)
        self._failure: BaseException | None = None
        self._is_ending = threading.Event()
        self.socket = listen(options.host, options.port)
        host, port = self.socket.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        config = uvicorn.Config(
            self._app.asgi,
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
            lifespan="off",
            server_header=False,
            ws="none",
        )
        self._http = HttpServer(config, self.stop)

    def stop(self) -> None:
        """Begin to drain; from any thread or signal handler."""
        self._is_ending.set()

    def run(self) -> None:
        """Serve until stopped. On the main thread signals stop it.

        Raises:
            VlmbatchError: The model could not be loaded, or the engine has ended.
        """
        fields = event("listening", url=self.url, model=self._plan.model)
        report.info("listening on %s; loading %s", self.url, self._plan.model, extra=fields)
        threads = [
            threading.Thread(target=self._open, name="load", daemon=True),
            threading.Thread(target=self._end, name="end", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            with asyncio.Runner(loop_factory=self._http.config.get_loop_factory()) as runner:
                runner.run(self._http.serve(sockets=[self.socket]))
        finally:
            self.stop()
            threads[1].join()
            self.socket.close()
        if self._failure is not None:
            raise self._failure
        report.info("ended", extra=event("ended"))

    def _open(self) -> None:
        """Load the model, then watch that the engine lives."""
        try:
            open_engine = self._plan.open_reusing or self._plan.open
            service = ChatService(open_engine, self._options, self._options.max_queued)
        except BaseException as error:
            self._failure = error
            self.stop()
            return
        self._app.open(service)
        engine = service.engine
        report.info(
            *("ready: %s on %s, %s", engine.model, engine.device, engine.dtype),
            extra=event(
                "ready",
                model=engine.model,
                engine=engine.name,
                device=engine.device,
                dtype=engine.dtype,
            ),
        )
        while not self._is_ending.is_set():
            if service.dispatcher.died.wait(WATCH_SECONDS):
                failure = service.dispatcher.failure
                reason = one_line(failure) if failure else "unknown"
                self._failure = EngineError(f"the engine has ended: {reason}")
                self.stop()

    def _end(self) -> None:
        """Drain once told to, then end the HTTP server."""
        self._is_ending.wait()
        self._app.is_draining = True
        service = self._app.service
        if self._failure is None:
            self._say_stopping(service)
        if service is not None:
            service.dispatcher.close(self._options.drain if self._failure is None else 0.0)
        self._http.should_exit = True
        if service is not None:
            service.engine.close()

    def _say_stopping(self, service: ChatService | None) -> None:
        """Say that no more requests are taken, and how long open ones have."""
        dispatcher = service.dispatcher if service is not None else None
        num_open = dispatcher.num_waiting + dispatcher.num_running if dispatcher else 0
        seconds = self._options.drain
        detail = ""
        if num_open:
            have = "open request has" if num_open == 1 else "open requests have"
            detail = f": {num_open} {have} {seconds:g} s (again: at once)"
        fields = event("stopping", open_requests=num_open, drain_seconds=seconds)
        report.info("stopping%s", detail, extra=fields)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        AddressError: The address is taken, or not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(2048)
        except BaseException:
            found.close()
            raise
    except OSError as error:
        raise AddressError(
            f"cannot listen on {host} port {port}: {one_line(error)}; give another --port or --host"
        ) from error
    return found
