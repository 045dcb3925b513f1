"""``/metrics``: counts, sizes and times of the server, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import prometheus_client
import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vlmbatch.core import Completion
from vlmbatch.serve.service import ChatService

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST

_FIRST_TOKEN = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_BETWEEN_TOKENS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_REQUEST = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = prometheus_client.CollectorRegistry()
        self._requests = prometheus_client.Counter(
            "vlmbatch_requests", "Requests.", ["path", "status"], registry=self._registry
        )
        self._gone = prometheus_client.Counter(
            "vlmbatch_clients_gone",
            "Chat requests whose client went away before the answer.",
            registry=self._registry,
        )
        self._prompt_tokens = prometheus_client.Counter(
            "vlmbatch_prompt_tokens",
            "Tokens of prompts: computed, or kept from an earlier request.",
            ["source"],
            registry=self._registry,
        )
        self._first_token, self._between_tokens, self._seconds = (
            prometheus_client.Histogram(name, text, buckets=buckets, registry=self._registry)
            for name, text, buckets in (
                (
                    "vlmbatch_time_to_first_token_seconds",
                    "From the arrival of a request to the first token of an answer.",
                    _FIRST_TOKEN,
                ),
                (
                    "vlmbatch_time_between_tokens_seconds",
                    "Mean time from a token of an answer to the next.",
                    _BETWEEN_TOKENS,
                ),
                (
                    "vlmbatch_request_seconds",
                    "From the arrival of a chat request to the end of its answer.",
                    _REQUEST,
                ),
            )
        )

    def watch(self, service: ChatService) -> None:
        """Add the figures of an engine and its dispatcher."""
        self._registry.register(_EngineCollector(service))

    def count(self, path: str, status: int) -> None:
        """Count a response."""
        self._requests.labels(path, str(status)).inc()

    def count_gone(self) -> None:
        """Count a client that went away."""
        self._gone.inc()

    def observe(self, completions: Sequence[Completion], seconds: float) -> None:
        """Note the times of an answered chat request.

        Args:
            completions: Its answers.
            seconds: Time since it came.
        """
        self._seconds.observe(seconds)
        cached = completions[0].cached_tokens or 0
        self._prompt_tokens.labels("cache").inc(cached)
        self._prompt_tokens.labels("computed").inc((completions[0].prompt_tokens or 0) - cached)
        for completion in completions:
            decode = completion.timing.decode_seconds
            if decode is None or completion.error is not None:
                continue
            self._first_token.observe(max(0.0, seconds - decode))
            if (tokens := completion.new_tokens or 0) > 1:
                self._between_tokens.observe(decode / (tokens - 1))

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)


class _EngineCollector(Collector):
    """Figures that are read when they are asked for."""

    def __init__(self, service: ChatService) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """Yield the figures."""
        stats, dispatcher = self._service.engine.stats, self._service.dispatcher
        memory = GaugeMetricFamily("vlmbatch_memory_bytes", "Memory in use.", labels=["kind"])
        memory.add_metric(["resident"], psutil.Process().memory_info().rss)
        if stats.peak_device_bytes is not None:
            memory.add_metric(["device_peak"], stats.peak_device_bytes)
        yield memory
        for name, text, value in (
            ("queue_length", "Requests that wait for the engine.", dispatcher.num_waiting),
            ("requests_running", "Requests that the engine has taken.", dispatcher.num_running),
            ("sequences_alive", "Answers that are being generated.", dispatcher.num_sequences),
        ):
            yield GaugeMetricFamily(f"vlmbatch_{name}", text, value)
        tokens = CounterMetricFamily("vlmbatch_tokens", "Tokens computed.", labels=["phase"])
        tokens.add_metric(["prefill"], stats.prefill_tokens)
        tokens.add_metric(["decode"], stats.decode_tokens)
        yield tokens
        tiles = CounterMetricFamily("vlmbatch_tiles", "Tiles of pictures.", labels=["source"])
        tiles.add_metric(["encoded"], stats.tiles)
        tiles.add_metric(["cache"], stats.tiles_reused)
        yield tiles
        for name, text, seconds in (
            ("busy_seconds", "Wall time of computing and scheduling.", stats.busy_seconds),
            ("out_of_memory_events", "Out-of-memory errors so far.", len(stats.oom_events)),
        ):
            yield CounterMetricFamily(f"vlmbatch_{name}", text, seconds)
