"""``batch``: a file of OpenAI batch requests to a file of their answers, through the same
dispatcher as the server.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import queue
import time
import uuid
from pathlib import Path
from typing import Any

from vlmbatch.engine import Engine, EngineChoice, EnginePlan
from vlmbatch.errors import EngineError, JobError, NothingFound
from vlmbatch.run.events import event, events
from vlmbatch.run.summary import NAMED_FAILURES
from vlmbatch.serve.answers import ReplyMaker
from vlmbatch.serve.batch.output import BatchOutput, read_requests
from vlmbatch.serve.dispatcher import OpenEngine
from vlmbatch.serve.errors import ApiError, api_error
from vlmbatch.serve.protocol import read_chat_request, read_json
from vlmbatch.serve.service import ChatService
from vlmbatch.serve.settings import BatchJob
from vlmbatch.serve.ticket import Ticket
from vlmbatch.wording import number_of

report = logging.getLogger("vlmbatch.report")

AHEAD = 256
"""Most requests that are under way."""

AHEAD_BYTES = 256 << 20
"""Most bytes of requests that are under way; a single larger one is taken."""

URL = "/v1/chat/completions"
SAY_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the file.

    Attributes:
        index: Its place among the lines.
        key: Its ``custom_id``, or a name made of its number where it has none.
        custom_id: Its ``custom_id``.
        line: Its text.
    """

    index: int
    key: str
    custom_id: str | None
    line: str

    @property
    def size(self) -> int:
        """Length of the text."""
        return len(self.line)


@dataclasses.dataclass
class BatchCounts:
    """Counts of a run: answered, errors, and lines kept from earlier runs with their errors.

    Attributes:
        kinds: Errors by their code.
        failures: Id and error of the first requests of each code.
    """

    ok: int = 0
    errors: int = 0
    kept: int = 0
    kept_errors: int = 0
    kinds: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: dict[str, list[dict[str, str]]] = dataclasses.field(default_factory=dict)

    def add_error(self, code: str, name: str, reason: str) -> None:
        """Count an error, and keep its reason if it is one of the first of its code."""
        self.errors += 1
        self.kinds[code] = self.kinds.get(code, 0) + 1
        named = self.failures.setdefault(code, [])
        if len(named) < NAMED_FAILURES:
            named.append({"id": name, "error": reason})


class Batch:
    """One run over a file of requests. ``stop`` ends it from anywhere.

    Attributes:
        counts: Counts so far.
        interrupted: Whether it was stopped.
    """

    def __init__(self, job: BatchJob, engine: Engine | None = None) -> None:
        """Check what can be checked without a model, and open OUTPUT.

        Args:
            job: The options.
            engine: An open engine, in place of the one that the options name.

        Raises:
            JobError: The file is missing, or the engine cannot honour an option.
            ModelLoadError: The checkpoint is missing.
            OutputError: OUTPUT cannot be written, or was made with other settings.
        """
        self._job, self._engine = job, engine
        self._path = Path(job.requests)
        if not self._path.is_file():
            raise JobError(f"no such file: {job.requests}")
        if self._path.resolve() == Path(job.output).resolve():
            raise JobError(f"OUTPUT is the file of requests: {job.output}; give another one")
        self._choice = None if engine else EngineChoice(job)
        if engine:
            self._begin(EnginePlan.of(engine))
        elif self._choice:
            self._choice.settle(self._begin)
            if self._output.has_answers:
                self._choice.keep()
        self.counts = BatchCounts()
        self.interrupted = False
        self._seen: set[str] = set()
        self._service: ChatService | None = None
        self._done: queue.SimpleQueue[tuple[Entry, Ticket] | None] = queue.SimpleQueue()
        self._open: dict[Ticket, Entry] = {}
        self._open_bytes = 0
        self._said_at = time.monotonic()

    def _begin(self, plan: EnginePlan) -> None:
        """Open OUTPUT for the answers of an engine."""
        job = self._job
        self._plan = plan
        identity = {
            "engine": plan.name,
            "model": plan.model,
            "revision": plan.revision,
            "detail": job.detail,
            "tasks": {"batch": job.generation_identity()},
        }
        if job.quantize != "none":
            identity["quantize"] = job.quantize
        self._output = BatchOutput(Path(job.output), identity, overwrite=job.overwrite)

    def _begin_again(self, plan: EnginePlan) -> None:
        """Open OUTPUT, which has no answers, for those of another engine."""
        self._output.close()
        self._begin(plan)

    def _open_service(self) -> ChatService:
        """Return the service, with the model loaded if it is not yet."""
        if self._service is None:
            engine: Engine | OpenEngine | None = self._engine
            if engine is None:
                assert self._choice is not None
                report.info("loading %s", self._plan.model)
                engine = functools.partial(
                    self._choice.open, reuse_prefixes=True, taken=self._begin_again
                )
            self._service = ChatService(engine, self._job)
        return self._service

    def stop(self) -> None:
        """End soon: commit what is finished. May be called from a signal handler."""
        self.interrupted = True
        self._done.put(None)

    def start(self) -> int:
        """Run to the end. Return the exit code.

        Raises:
            VlmbatchError: The run could not go on; what was finished is committed.
        """
        try:
            try:
                if self._choice and self._choice.has_others:
                    self._open_service()  # OUTPUT becomes that of the first that opens
                self._ask()
                while not self._done.empty():  # after a stop
                    self._take()
            finally:
                if self._service is not None:
                    self._service.close()
        finally:
            self._output.close()
        if self.interrupted:
            return 130
        return 3 if self.counts.errors + self.counts.kept_errors else 0

    def _ask(self) -> None:
        for index, (number, line) in enumerate(read_requests(self._path)):
            entry, values = _parse(index, number, line)
            if self.interrupted:
                return
            is_first = entry.key not in self._seen
            if not is_first:
                error = ApiError(400, f"the custom_id {entry.custom_id!r} is there already")
                entry = dataclasses.replace(entry, key=f"\0line {number}")
                self._write_error(entry, error)
                continue
            self._seen.add(entry.key)
            if self._output.is_done(entry.key, line, retry_errors=self._job.retry_errors):
                self.counts.kept += 1
                self.counts.kept_errors += self._output.keep(entry.key, line, index)
                continue
            self._submit(entry, values)
            while self._open and (len(self._open) >= AHEAD or self._open_bytes >= AHEAD_BYTES):
                self._take()
                if self.interrupted:
                    return
        while self._open and not self.interrupted:
            self._take()
        if not self._seen and not self._job.allow_empty:
            raise NothingFound(f"{self._path} has no requests; --allow-empty permits that")

    def _submit(self, entry: Entry, values: Any) -> None:
        """Begin to answer a request; what is wrong with it is its answer."""
        try:
            if isinstance(values, ApiError):
                raise values
            chat = read_chat_request(values["body"], self._job, [self._plan.model])
            if chat.wants_stream:
                raise ApiError(400, "stream does not go with a batch: leave it out", param="stream")
        except ApiError as error:
            self._write_error(entry, error)
            return
        ticket = self._open_service().submit(chat)
        self._open[ticket] = entry
        self._open_bytes += entry.size
        ticket.done.add_done_callback(lambda _: self._done.put((entry, ticket)))

    def _take(self) -> None:
        """Wait for an answer, and write it."""
        try:
            found = self._done.get(timeout=1.0)
        except queue.Empty:
            self._output.tick()
            self._say()
            return
        if found is None:
            return
        entry, ticket = found
        self._open.pop(ticket)
        self._open_bytes -= entry.size
        try:
            body = ReplyMaker(self._plan.model).whole(ticket.done.result())
        except EngineError:
            raise
        except Exception as error:
            self._write_error(entry, api_error(error))
            return
        self.counts.ok += 1
        self._write(entry, 200, body, None)
        self._say()

    def _write_error(self, entry: Entry, error: ApiError) -> None:
        code = error.code or "invalid_request"
        name = entry.custom_id or entry.key.lstrip("\0")
        self.counts.add_error(code, name, error.reason)
        events.info(
            *("%s: %s", name, error.reason),
            extra=event(
                "request_error", id=name, status=error.status, code=code, error=error.reason
            ),
        )
        reason = {"code": code, "message": error.message}
        self._write(entry, error.status, error.body(), reason)

    def _write(
        self, entry: Entry, status: int, body: dict[str, Any], error: dict[str, Any] | None
    ) -> None:
        row = {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": entry.custom_id,
            "response": {
                "status_code": status,
                "request_id": f"req_{uuid.uuid4().hex}",
                "body": body,
            },
            "error": error,
        }
        self._output.write(entry.key, entry.line, entry.index, row)

    def _say(self) -> None:
        """Say now and then how far it is."""
        if time.monotonic() - self._said_at >= SAY_SECONDS:
            self._said_at = time.monotonic()
            report.info("%d answered, %d errors", self.counts.ok, self.counts.errors)


def _parse(index: int, number: int, line: str) -> tuple[Entry, Any]:
    """Read a line. A broken one has an ``ApiError`` in place of its values."""
    nameless = Entry(index, f"\0line {number}", None, line)
    try:
        values = read_json(line.encode("utf-8", "surrogateescape"))
        if not isinstance(values, dict) or not isinstance(values.get("custom_id"), str):
            raise ApiError(400, f"line {number} has no custom_id, a text")
    except ApiError as error:
        return nameless, error
    entry = dataclasses.replace(nameless, key=values["custom_id"], custom_id=values["custom_id"])
    method, url = values.get("method"), values.get("url")
    if method != "POST" or url != URL:
        shown = json.dumps([method, url])[:200]
        return entry, ApiError(400, f"a batch takes POST {URL}, not {shown}", param="url")
    if "body" not in values:
        return entry, ApiError(400, "the request has no body", param="body")
    return entry, values


def describe(counts: BatchCounts, output: str) -> str:
    """Return the closing line of a run."""
    errors = ""
    if counts.kept_errors:
        errors = f" ({number_of(counts.kept_errors, 'error')}; --retry-errors asks again)"
    kept = f", {counts.kept} kept{errors}" if counts.kept else ""
    return f"{counts.ok} answered, {counts.errors} errors{kept}: {output}"
