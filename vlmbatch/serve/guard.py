"""Access to the server: keys, and without a key the Host and Origin of a request."""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from vlmbatch.errors import JobError
from vlmbatch.serve.errors import ApiError
from vlmbatch.serve.settings import ServerOptions

OPEN_PATHS = ("/", "/health")
"""Paths that need no key."""


def read_keys(options: ServerOptions) -> tuple[bytes, ...]:
    """Read the keys that clients may send.

    Raises:
        JobError: The variable or file has none.
    """
    found: list[str] = []
    if (name := options.api_key_env) is not None:
        if not (key := os.environ.get(name, "").strip()):
            raise JobError(f"--api-key-env {name}: the variable is not set, or empty")
        found.append(key)
    if (file := options.api_key_file) is not None:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise JobError(f"--api-key-file {file}: {reason}") from error
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise JobError(f"--api-key-file {file}: it has no key; write one a line")
        found += keys
    return tuple(key.encode() for key in found)


class Guard:
    """Refuses requests of those who may not ask."""

    def __init__(self, options: ServerOptions) -> None:
        """Read the keys.

        Raises:
            JobError: The variable or file has none.
        """
        self._keys = read_keys(options)
        names = ("localhost", socket.gethostname(), options.host, *options.allow_host)
        self._hosts = {name.lower() for name in names}

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Check a request.

        A page in a browser must not reach a server on its user's machine: neither from a name that
        was made to point here (DNS rebinding), nor by a form or script of another site.

        Args:
            path: Its path.
            headers: Its headers.

        Raises:
            ApiError: It is refused.
        """
        if self._keys:
            if path not in OPEN_PATHS:
                self._check_key(headers.get("authorization", ""))
            return
        host = headers.get("host", "")
        if not self._is_own(host):
            raise ApiError(
                403,
                f"this server is not called {host[:100]!r}; --allow-host NAME permits it",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise ApiError(
                403,
                f"pages of {origin[:100]!r} may not ask; give the server a key for that",
                code="origin_not_allowed",
            )

    def _check_key(self, header: str) -> None:
        scheme, _, key = header.partition(" ")
        sent = key.strip().encode("utf-8", "replace")
        # Every key is compared, so that the time does not tell which one is nearly right.
        matches = [hmac.compare_digest(sent, each) for each in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401,
                "no valid key; send one as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    def _is_own(self, host: str) -> bool:
        """Return whether a Host header names this server."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)  # an address cannot be made to point elsewhere
        except ValueError:
            return name in self._hosts
        return True
