"""File systems behind URLs, through fsspec: opens those that are trusted, and fingerprints files.
Reading and writing is left to the stages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmbatch.errors import JobError, MissingDependencyError, one_line
from vlmbatch.urls import scheme_of, without_credentials

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

TRUSTED = frozenset(
    {
        "memory",
        "file",
        "local",
        "s3",
        "s3a",
        "gs",
        "gcs",
        "az",
        "abfs",
        "abfss",
        "adl",
        "hf",
        "oss",
        "oci",
    }
)
"""Schemes of stores that the user's own settings name. Others (ftp, sftp, smb …) connect to the
URL's host, and nothing checks its address.
"""

_CHANGES = (
    "ETag",
    "etag",
    "md5Hash",
    "blob_id",
    "content_md5",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "modified",
    "created",
)
"""Names in file systems for a value that changes with a file, the surest first."""


def open_store(url: str, *, allow_private: bool) -> tuple[AbstractFileSystem, str]:
    """Open the file system of a URL; return it and the path in it.

    Raises:
        JobError: There is no such scheme, or it connects to hosts that cannot be checked.
        MissingDependencyError: The scheme needs a package that is not installed.
    """
    try:
        import fsspec.core
    except ImportError as exc:
        raise MissingDependencyError(
            "URLs of stores need fsspec: pip install 'vlmbatch[remote]'"
        ) from exc

    shown, scheme = without_credentials(url), scheme_of(url)
    if "::" in scheme:
        raise JobError(f"chains of file systems are not read: {shown}")
    if scheme not in TRUSTED and not allow_private:
        fsspec_known = scheme in fsspec.available_protocols()
        if not fsspec_known:
            raise JobError(
                f"no file system for {scheme}://; "
                f"there are {', '.join(sorted(TRUSTED))}, http and https"
            )
        raise JobError(
            f"{shown}: the address behind {scheme}:// cannot be checked; "
            "--allow-private-urls permits it"
        )
    try:
        found: tuple[AbstractFileSystem, str] = fsspec.core.url_to_fs(url)
    except ImportError as exc:
        raise MissingDependencyError(
            f"{scheme}:// URLs need another package: {one_line(exc)}"
        ) from exc
    except ValueError as exc:
        raise JobError(f"{shown}: {one_line(exc)}") from exc
    except Exception as exc:  # each file system has its own errors for missing keys and the like
        raise JobError(f"{shown} cannot be opened: {one_line(exc)}") from exc
    return found


def file_fingerprint(info: dict[str, Any]) -> str:
    """Return a text that changes with a file, from its file system's description; empty when that
    says nothing.
    """
    tag = next((str(info[key]) for key in _CHANGES if info.get(key)), "")
    return f"{info.get('size')}:{tag}" if tag or info.get("size") is not None else ""
