"""What is a URL, what it is called, and how it is written down: without what it lets its owner do."""

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
    """Whether a text is a URL: ``https://…``, ``s3://…``; a drive's ``C://`` is none."""
    return "://" in text and _URL.match(text) is not None


def scheme_of(url: str) -> str:
    """What stands before ``://``, in small letters."""
    return url.partition("://")[0].lower()


def is_web(url: str) -> bool:
    """Whether a text is an ``http`` or ``https`` URL."""
    return is_url(url) and scheme_of(url) in ("http", "https")


def can_be_written(url: str) -> bool:
    """Whether a URL names a store that files are put into, if there is such a store: no web page,
    and no chain of file systems.
    """
    return not is_web(url) and "::" not in scheme_of(url)


def url_name(url: str) -> str:
    """The last part of a URL's path; the host when there is no path. Never a folder: slashes that
    were written as ``%2F`` are left so.
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
    """The host or bucket of a URL, without user and password."""
    return url.partition("://")[2].split("/")[0].rpartition("@")[2]


def without_credentials(url: str) -> str:
    """A URL that can be shown and kept: user, password, fragment and the query parameters that sign
    it left out. Other texts come back as they are.
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
