"""Retries: failures that are tried again, for how long, and failures that end the run."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import time

from vlmbatch.engine.openai.answer import Answer, NoLongerWanted
from vlmbatch.engine.openai.client import EndpointClient, Interrupted, Refused, Unreachable
from vlmbatch.engine.openai.concurrency import ConcurrencyLimit
from vlmbatch.engine.openai.dialect import Dialect
from vlmbatch.errors import EngineError, GenerateError

logger = logging.getLogger(__name__)

BUSY = (429, 503)
ENDING = (401, 403, 404)
AGAIN = (408, 409, 425)
ADVICE = {
    401: "name the key with --api-key-env NAME or --api-key-file FILE",
    403: "the key may not ask this model",
    404: "check --endpoint, which ends in /v1 for most servers, and --model",
}
"""Advice for answers that end the run."""


@dataclasses.dataclass(frozen=True)
class RetryLimits:
    """Limits of retries and of waiting for the endpoint.

    Attributes:
        first_seconds: First wait between two tries; each further one is twice as long.
        longest_seconds: Longest wait that it does not ask for by itself.
        tries: Requests for one answer, when it fails (5xx but 503).
        gone_seconds: Time without a connection after which the run ends.
        busy_seconds: Time without any answer, while it is busy, after which the run ends.
        failures: Questions that fail one after the other, with none answered, before the run ends.
    """

    first_seconds: float = 0.5
    longest_seconds: float = 30.0
    tries: int = 4
    gone_seconds: float = 60.0
    busy_seconds: float = 600.0
    failures: int = 20

    def wait_seconds(self, tries: int, asked: float | None) -> float:
        """Return the wait after so many tries.

        Args:
            tries: Tries so far.
            asked: ``Retry-After``; None without it.
        """
        own = min(self.longest_seconds, self.first_seconds * 2.0 ** min(tries - 1, 16))
        return max(own * random.uniform(0.75, 1.0), min(asked or 0.0, self.busy_seconds))


RETRY_LIMITS = RetryLimits()


class CircuitBreaker:
    """Ends the run when the endpoint is gone, and says at once that it cannot be reached."""

    def __init__(self, limits: RetryLimits, url: str) -> None:
        """Take the limits, and the endpoint's URL for messages."""
        self._limits, self._url = limits, url
        self._since: dict[str, float] = {}
        self._failures = 0

    def answered(self) -> None:
        """Note an answer, or a refusal of one question alone."""
        self.connected()
        self._since.clear()
        self._failures = 0

    def connected(self) -> None:
        """Note that the endpoint is there."""
        if self._since.pop("gone", None) is not None:
            logger.warning("%s: connected again", self._url)

    def unreachable(self, error: Exception) -> None:
        """Note a missing connection.

        Raises:
            EngineError: There has been none for too long.
        """
        if "gone" not in self._since:
            seconds = self._limits.gone_seconds
            logger.warning("%s: %s; trying again for %.0f s", self._url, error, seconds)
        self._check("gone", self._limits.gone_seconds, f"the endpoint is gone: {error}")

    def busy(self, error: Exception) -> None:
        """Note that it is busy.

        Raises:
            EngineError: It has been for too long.
        """
        self._check("busy", self._limits.busy_seconds, str(error))

    def failed(self, error: Exception) -> None:
        """Note a question that could not be answered.

        Raises:
            EngineError: So it was with all of the last ones.
        """
        self._failures += 1
        if self._failures >= self._limits.failures:
            raise EngineError(
                f"the last {self._failures} questions all failed: {error}; run the same command "
                "again to go on"
            ) from error

    def _check(self, kind: str, limit: float, reason: str) -> None:
        seconds = time.monotonic() - self._since.setdefault(kind, time.monotonic())
        if seconds >= limit:
            raise EngineError(f"{reason}, for {seconds:.0f} s; run the same command again to go on")


class RetryingClient:
    """Asks one endpoint until it has answered. Used inside one event loop."""

    def __init__(
        self,
        client: EndpointClient,
        concurrency: ConcurrencyLimit,
        model: str,
        dialect: Dialect,
        limits: RetryLimits,
    ) -> None:
        """Take what asking needs.

        Args:
            client: Sends a request.
            concurrency: Limits the requests in flight.
            model: Name of the model.
            dialect: What the endpoint takes; it learns.
            limits: Limits of trying again.
        """
        self._client, self._concurrency, self._model = client, concurrency, model
        self._dialect, self._limits = dialect, limits
        self._breaker = CircuitBreaker(limits, client.url)

    async def ask(self, answer: Answer) -> None:
        """Ask until the answer is whole, or no longer wanted.

        A request that may have been answered is sent once more: every question has one answer.

        Raises:
            GenerateError: The endpoint cannot answer this question.
            EngineError: It is gone, or answers nobody.
        """
        tries = 0
        is_interrupted = False
        while True:
            asked_seconds = None
            try:
                if await self._try(answer):
                    return
                continue
            except Unreachable as error:
                self._breaker.unreachable(error)
                problem: Exception = error
            except Interrupted as error:
                self._breaker.connected()
                if is_interrupted:
                    self._breaker.failed(error)
                    raise GenerateError(f"{error}; asked twice") from error
                is_interrupted = True
                problem = error
            except Refused as error:
                problem, asked_seconds = error, error.retry_after
                is_busy = error.status in BUSY
                if not is_busy and tries + 1 >= self._limits.tries:
                    self._breaker.failed(error)
                    raise GenerateError(f"{error}; asked {tries + 1} times") from error
            tries += 1
            seconds = self._limits.wait_seconds(tries, asked_seconds)
            logger.info("%s; trying again in %.1f s", problem, seconds)
            await asyncio.sleep(seconds)

    async def _try(self, answer: Answer) -> bool:
        """Ask once. Return False to ask again at once, with other parameters.

        Raises:
            Refused: It may be tried again.
            Unreachable, Interrupted: See ``EndpointClient``.
            GenerateError: It cannot be answered.
            EngineError: Nothing can.
        """
        loop = asyncio.get_running_loop()
        async with self._concurrency.slot():
            begun = loop.time()
            answer.begin()
            body = answer.body(self._model, self._dialect)
            try:
                await self._client.complete(body, answer.take)
                if not answer.is_whole:
                    raise Interrupted("the answer ends in the middle")
            except NoLongerWanted:
                pass
            except GenerateError:
                self._breaker.answered()
                raise
            except Unreachable:
                self._concurrency.halve(begun)
                raise
            except Refused as error:
                if self._dialect.learn(error, body):
                    return False
                self._judge(error, begun)
                raise
            self._concurrency.grow()
            self._breaker.answered()
            return True

    def _judge(self, error: Refused, begun: float) -> None:
        """Return if the request may be tried again.

        Raises:
            GenerateError: This question cannot be answered.
            EngineError: None can.
        """
        self._breaker.connected()
        if error.status in BUSY:
            self._concurrency.halve(begun)
            if error.retry_after is not None:
                self._concurrency.pause(min(error.retry_after, self._limits.busy_seconds))
            self._breaker.busy(error)
        elif error.status in ENDING:
            raise EngineError(f"{error}: {ADVICE[error.status]}") from error
        elif error.status < 400:
            raise EngineError(f"{error}: name the address that it leads to with --endpoint")
        elif error.status < 500 and error.status not in AGAIN:
            self._breaker.answered()
            raise GenerateError(str(error)) from error
