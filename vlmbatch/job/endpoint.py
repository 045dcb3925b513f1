"""Endpoint options: the address of a server that answers, its key, and what is sent to it."""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Sequence
from typing import Literal

from vlmbatch.errors import JobError
from vlmbatch.job.option import check_at_least, option

ENDPOINT_ENGINE = "openai"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """Options of ``--engine openai``. See the help text of each field."""

    endpoint: str | None = option(
        None,
        "Base URL of a server with OpenAI's chat API, such as http://127.0.0.1:8000/v1, for "
        "--engine openai.",
        metavar="URL",
        group="Model",
    )
    api_key_env: str | None = option(
        None,
        "Environment variable with the key of the --endpoint.",
        metavar="NAME",
        group="Model",
    )
    api_key_file: str | None = option(
        None,
        "File with the key of the --endpoint.",
        metavar="FILE",
        group="Model",
        is_path=True,
    )
    in_flight: int = option(
        16,
        "Requests to the --endpoint at a time; halved when it is busy, and raised again slowly.",
        metavar="N",
        group="Resources",
    )
    request_timeout: float = option(
        600.0,
        "Give up a request to the --endpoint after this time.",
        metavar="SECONDS",
        group="Resources",
    )
    send: Literal["fitted", "original"] = option(
        "fitted",
        "Pictures for the --endpoint. fitted: larger ones are shrunk to what the model uses; "
        "original: in full size.",
        group="Model",
    )
    jpeg_quality: int | None = option(
        None,
        "Send pictures to the --endpoint as JPEG of this quality, 1 to 100. [default: as PNG, "
        "without loss]",
        metavar="Q",
        group="Model",
    )

    @property
    def endpoint_url(self) -> str:
        """The base URL without a slash at its end; ``/v1`` if it names a host alone."""
        url = urllib.parse.urlsplit(self.endpoint or "")
        return f"{url.scheme}://{url.netloc}{url.path.rstrip('/') or '/v1'}"

    def check_endpoint(self, engines: Sequence[str]) -> None:
        """Check the values of this group.

        Args:
            engines: The engines to try.

        Raises:
            JobError: A value is not allowed, or does not go with these engines.
        """
        if ENDPOINT_ENGINE not in engines:
            for field in dataclasses.fields(EndpointOptions):
                if getattr(self, field.name) != field.default:
                    raise JobError(f"{field.name} goes with --engine {ENDPOINT_ENGINE}")
            return
        if self.endpoint is None:
            raise JobError(f"engine {ENDPOINT_ENGINE} asks a server: name it with --endpoint URL")
        _check_url(self.endpoint)
        if self.api_key_env is not None and self.api_key_file is not None:
            raise JobError("api_key_env and api_key_file both name a key: give one of them")
        check_at_least(self, in_flight=1)
        if not self.request_timeout > 0:
            raise JobError(f"request_timeout must be above 0, not {self.request_timeout}")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise JobError(f"jpeg_quality must be from 1 to 100, not {self.jpeg_quality}")


def _check_url(text: str) -> None:
    """Check the URL of an endpoint. Its text is not repeated, as it may hold a key."""
    try:
        url = urllib.parse.urlsplit(text)
        is_url = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise JobError("endpoint must be a URL such as http://127.0.0.1:8000/v1")
    if "@" in url.netloc or url.query or url.fragment:
        raise JobError(
            "endpoint must be a URL without a user, a password, ? and #: name the key with "
            "--api-key-env or --api-key-file"
        )
