"""Bytes from ``http`` and ``https``: checked addresses, time limits, a size limit, and retries.

A URL may come from a list of a stranger, and a web server may redirect a reader anywhere. So every
connection is checked: the name is resolved here, all its addresses must be public, and the socket
is opened to the very address that was checked. That holds for redirects too, and for names whose
address changes between two look-ups.
"""

from __future__ import annotations

import email.utils
import ipaddress
import logging
import random
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import httpcore2
import httpx2

from vlmbatch.errors import ReadError, one_line
from vlmbatch.read.base import check_file_size, copy_within
from vlmbatch.urls import without_credentials

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
HEAD_SECONDS = 10.0
MAX_ATTEMPTS = 4
MAX_WAIT_SECONDS = 30.0
"""A server that asks for a longer pause makes an error row, which ``--retry-errors`` asks again."""

MIN_BYTES_PER_SECOND = 1024
"""A download that is slower than this after a minute is given up: some servers send a byte now and
then for ever.
"""

MAX_REDIRECTS = 10
MAX_CONNECTIONS = 32
KEEP_SECONDS = 5.0
_CHUNK_BYTES = 1 << 16
_SLOW_AFTER_SECONDS = 60.0
_FINAL = (httpx2.TooManyRedirects, httpx2.UnsupportedProtocol, httpx2.DecodingError)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

wait = time.sleep
"""Waits between two tries."""


def fetch(
    url: str,
    sink: BinaryIO,
    max_bytes: int,
    *,
    allow_private: bool,
    max_attempts: int = MAX_ATTEMPTS,
) -> None:
    """Write the bytes behind a URL.

    Args:
        url: ``http`` or ``https``; user and password in it are sent as basic authentication.
        sink: Takes the bytes from its start; emptied before a retry.
        max_bytes: Files with more bytes are refused: before they are read where the server states
            the size, at that byte where it does not.
        allow_private: Whether addresses that are not public are allowed, and the proxy of the
            environment is used.
        max_attempts: Tries, the first one counted.

    Raises:
        ReadError: The bytes cannot be had; one line says why.
    """
    client = _client(allow_private)
    for attempt in range(1, max_attempts + 1):
        sink.seek(0)
        sink.truncate()
        pause = None
        try:
            with client.stream("GET", url) as response:
                if response.status_code == httpx2.codes.OK:
                    stated = response.headers.get("content-length", "")
                    check_file_size(int(stated) if stated.isdigit() else 0, max_bytes)
                    copy_within(steady(response.iter_bytes(_CHUNK_BYTES)), sink, max_bytes)
                    return
                reason = f"HTTP {response.status_code} {response.reason_phrase}".strip()
                pause = _pause(response)
                if (
                    response.status_code != httpx2.codes.TOO_MANY_REQUESTS
                    and not response.is_server_error
                ):
                    raise ReadError(reason)
        except _FINAL as exc:
            raise ReadError(one_line(exc)) from exc
        except httpx2.HTTPError as exc:
            reason = f"{_WORDS.get(type(exc).__name__, 'connection failed')}: {one_line(exc)}"
        except (httpx2.InvalidURL, ValueError, OSError) as exc:
            raise ReadError(one_line(exc)) from exc
        if attempt == max_attempts:
            raise ReadError(f"{reason} ({attempt} {'try' if attempt == 1 else 'tries'})")
        seconds = random.uniform(0.5, 1.0) * 2 ** (attempt - 1) if pause is None else pause
        if seconds > MAX_WAIT_SECONDS:
            raise ReadError(f"{reason}; the server asks to wait {seconds:.0f} s")
        logger.info("%s: %s, trying again in %.1f s", without_credentials(url), reason, seconds)
        wait(seconds)


_WORDS = {
    "ConnectTimeout": "no connection in time",
    "ReadTimeout": "no answer in time",
    "RemoteProtocolError": "broken answer",
}


def fingerprint(url: str, *, allow_private: bool) -> str:
    """Return a text that changes with a file: its ETag, time and size from one HEAD request; empty
    without an answer.
    """
    try:
        response = _client(allow_private).head(url, timeout=HEAD_SECONDS)
    except (ReadError, httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError) as exc:
        logger.debug("%s: no HEAD: %s", without_credentials(url), one_line(exc))
        return ""
    found = [response.headers.get(name, "") for name in ("etag", "last-modified", "content-length")]
    return "|".join(found) if response.status_code == httpx2.codes.OK and any(found) else ""


def steady(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the chunks of a download as long as they come fast enough; raises ``ReadError``."""
    begun, total = time.monotonic(), 0
    for chunk in chunks:
        total += len(chunk)
        seconds = time.monotonic() - begun
        if seconds > _SLOW_AFTER_SECONDS and total < MIN_BYTES_PER_SECOND * seconds:
            raise ReadError(f"too slow: {total:,} bytes in {seconds:.0f} s")
        yield chunk


def _pause(response: httpx2.Response) -> float | None:
    """Return the seconds of ``Retry-After``, a number or a date; None without it."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdigit():
        return float(text[:9])
    try:
        then = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, then.timestamp() - time.time())


def public_addresses(host: str, port: int) -> list[str]:
    """Return the addresses of a host, all of them public, in the order that the system prefers.

    Raises:
        ReadError: There is no such host, or one of its addresses is private, loopback, link-local,
            multicast or reserved.
        httpcore2.ConnectError: The name could not be looked up this time.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        if exc.errno == socket.EAI_AGAIN:
            raise httpcore2.ConnectError(f"cannot look up {host}: {one_line(exc)}") from exc
        raise ReadError(f"no such host: {host}") from exc
    except (OSError, UnicodeError) as exc:
        raise ReadError(f"no such host: {host}") from exc
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if not is_public(address):
            where = host if address == host.strip("[]") else f"{host} is {address}, which"
            raise ReadError(f"{where} is not a public address; --allow-private-urls permits it")
    return addresses


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the open internet. An IPv4 address inside an IPv6 one
    is judged as IPv4.
    """
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = (
            parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        )
        if inner is None and parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if parsed.is_site_local:
            return False
    return parsed.is_global and not (parsed.is_multicast or parsed.is_reserved)


class _CheckedBackend(httpcore2.SyncBackend):
    """Opens sockets to checked addresses only."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first address that answers."""
        failure: Exception = httpcore2.ConnectError(f"no address for {host}")
        for address in public_addresses(host, port):
            try:
                return super().connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as exc:
                failure = exc
        raise failure


class _CheckedTransport(httpx2.HTTPTransport):
    """A transport whose connections are checked."""

    def __init__(self) -> None:
        super().__init__()
        # httpx2 takes no network of ours: its pool is replaced by one that does.
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context(),
            max_connections=MAX_CONNECTIONS,
            keepalive_expiry=KEEP_SECONDS,
            network_backend=_CheckedBackend(),
        )


_guard = threading.Lock()
_clients: dict[bool, httpx2.Client] = {}


def _client(allow_private: bool) -> httpx2.Client:
    """Return the client that all threads share, as it keeps connections open."""
    with _guard:
        if allow_private not in _clients:
            # A size limit counts the bytes that arrive, so they are asked for as they are.
            _clients[allow_private] = httpx2.Client(
                transport=None if allow_private else _CheckedTransport(),
                limits=httpx2.Limits(
                    max_connections=MAX_CONNECTIONS, keepalive_expiry=KEEP_SECONDS
                ),
                timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
                follow_redirects=True,
                max_redirects=MAX_REDIRECTS,
                headers={"user-agent": "vlmbatch", "accept-encoding": "identity"},
            )
        return _clients[allow_private]


def close() -> None:
    """Close the connections that are kept open."""
    with _guard:
        while _clients:
            _clients.popitem()[1].close()
