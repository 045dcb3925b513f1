"""Recognise, name and redact URLs."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit, urlunsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::[A-Za-z0-9+.-]+)*://")
_SECRET = re.compile(
    r"^(x-(amz|goog|oss|cos)-.*|sig|se|sp|sr|sv|st|skoid|ske|skv|policy|auth|authorization)$"
    r"|signature|token|secret|passw|credential|(api|access|^|[-_])key(-?id)?$",
    re.IGNORECASE,
)
"""Names of query parameters that sign or open a URL, as Amazon, Google, Azure and common services
spell them.
"""


def is_url(text: str) -> bool:
    """Return whether a text is a URL: ``https://…``, ``s3://…``; a drive's ``C://`` is none."""
    return "://" in text and _URL.match(text) is not None


def scheme_of(url: str) -> str:
    """Return the scheme of a URL in small letters: ``https``, ``s3``."""
    return url.partition("://")[0].lower()


def is_web(url: str) -> bool:
    """Return whether a text is an ``http`` or ``https`` URL."""
    return is_url(url) and scheme_of(url) in ("http", "https")


def can_be_written(url: str) -> bool:
    """Return whether a URL can name a store that takes files: no web page, and no chain of file
    systems.
    """
    return not is_web(url) and "::" not in scheme_of(url)


def url_name(url: str) -> str:
    """Return the last part of a URL's path; the host when there is no path. It is never a folder:
    slashes that were written as ``%2F`` are left so.
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() in ("http", "https"):
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, *parts = rest.split("/")
    names = [part for part in parts if part]
    name = names[-1] if names else host.rpartition("@")[2]
    plain = unquote(name, errors="replace") if scheme.lower() in ("http", "https") else name
    return plain if "/" not in plain and plain.isprintable() and plain not in (".", "..") else name


def url_host(url: str) -> str:
    """Return the host or bucket of a URL, without user and password."""
    return url.partition("://")[2].split("/")[0].rpartition("@")[2]


def without_credentials(url: str) -> str:
    """Redact a URL: leave out user, password, fragment and the query parameters that sign it. Other
    texts come back as they are.
    """
    if not is_url(url):
        return url
    if not is_web(url):
        scheme, _, rest = url.partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{scheme_of(url)}://{url_host(url).split('?')[0]}"
    kept = [
        pair
        for pair in parts.query.split("&")
        if not _SECRET.search(unquote(pair.partition("=")[0]))
    ]
    return urlunsplit(
        (parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "&".join(kept), "")
    )
