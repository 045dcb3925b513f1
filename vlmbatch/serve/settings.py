"""Options of ``serve`` and ``batch``: limits for what strangers send, address, keys, times."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, Self

from vlmbatch.errors import JobError
from vlmbatch.job import EngineOptions, option
from vlmbatch.job.endpoint import ENDPOINT_ENGINE, EndpointOptions
from vlmbatch.job.keys import by_field
from vlmbatch.job.model import LISTED_ENGINES, LOCAL_ENGINES
from vlmbatch.job.option import check_at_least
from vlmbatch.job.paths import expand_homes
from vlmbatch.job.reporting import ReportingOptions
from vlmbatch.values import check_types, parse_size

_TEXTS = ("max_memory", "max_file_size", "max_body_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """Limits for pictures and videos in a request. See the help text of each field."""

    max_pixels: int = option(
        100_000_000, "Refuse larger pictures before decoding.", metavar="N", group="Limits"
    )
    max_file_size: str = option(
        "256MiB", "Refuse larger pictures and videos.", metavar="SIZE", group="Limits"
    )
    max_images: int = option(
        16, "Refuse requests with more pictures and videos.", metavar="N", group="Limits"
    )
    allow_private_urls: bool = option(
        False,
        "Also fetch from private and other non-public addresses, by http too, and through the "
        "system's proxy.",
        group="Limits",
    )

    @property
    def max_file_bytes(self) -> int:
        """``max_file_size`` in bytes."""
        return parse_size(self.max_file_size)

    def check_limits(self) -> None:
        """Check the values of this group.

        Raises:
            JobError: A value is not allowed.
        """
        check_at_least(self, max_pixels=1, max_images=0)
        if self.max_file_bytes < 1:
            raise JobError(f"max_file_size must be above 0, not {self.max_file_size!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of a server alone. See the help text of each field."""

    host: str = option("127.0.0.1", "Address to listen on.", metavar="ADDRESS", group="Server")
    port: int = option(8000, "Port to listen on; 0 takes a free one.", metavar="N", group="Server")
    api_key_env: str | None = option(
        None,
        "Environment variable with the key that clients must send.",
        metavar="NAME",
        group="Server",
    )
    api_key_file: str | None = option(
        None,
        "File with the keys that clients may send, one a line.",
        metavar="FILE",
        is_path=True,
        group="Server",
    )
    no_auth: bool = option(
        False, "Listen on other addresses than this machine's own without a key.", group="Server"
    )
    allow_host: tuple[str, ...] = option(
        (),
        "Without a key: a name of this server that clients may use; repeatable. [default: "
        "localhost, this machine's name, and addresses]",
        metavar="NAME",
        group="Server",
    )
    max_queued: int = option(
        128, "Requests that may wait; one more gets a 429.", metavar="N", group="Limits"
    )
    max_body_size: str = option(
        "64MiB", "Refuse larger requests before reading them.", metavar="SIZE", group="Limits"
    )
    timeout: float = option(
        600.0, "Give up a request after this time.", metavar="SECONDS", group="Server"
    )
    drain: float = option(
        30.0,
        "Time that open requests have after SIGTERM; those left are cancelled.",
        metavar="SECONDS",
        group="Server",
    )
    keep_alive: float = option(
        10.0,
        "Send a comment when a stream has been silent for this time.",
        metavar="SECONDS",
        group="Server",
    )

    @property
    def max_body_bytes(self) -> int:
        """``max_body_size`` in bytes."""
        return parse_size(self.max_body_size)

    @property
    def has_key(self) -> bool:
        """True if clients must send a key."""
        return self.api_key_env is not None or self.api_key_file is not None

    @property
    def is_local(self) -> bool:
        """True if only this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    def check_server(self) -> None:
        """Check the values of this group.

        Raises:
            JobError: A value is not allowed.
        """
        check_at_least(self, port=0, max_queued=1, drain=0)
        if self.port > 65535:
            raise JobError(f"port must be at most 65535, not {self.port}")
        for name in ("timeout", "keep_alive"):
            if not getattr(self, name) > 0:
                raise JobError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.max_body_bytes < 1:
            raise JobError(f"max_body_size must be above 0, not {self.max_body_size!r}")
        if self.no_auth and self.has_key:
            raise JobError("no_auth asks for no key: leave out api_key_env and api_key_file")
        if not (self.is_local or self.has_key or self.no_auth):
            raise JobError(
                f"{self.host} can be reached by others: give --api-key-env or --api-key-file, "
                "or --no-auth if everybody may ask"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnsweringOptions(ReportingOptions, EngineOptions, MediaLimits):
    """Options that ``serve`` and ``batch`` share: the engine, the limits, the log."""

    max_new_tokens: int = option(
        512,
        "Longest answer, in tokens, of requests that do not say it.",
        metavar="N",
        group="Generation",
    )
    seed: int = option(
        0,
        "Seed of sampling of requests that do not say it; 0: another one for each.",
        metavar="N",
        group="Generation",
    )

    def _check(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default == () and isinstance(value, list | str):
                listed = (value,) if isinstance(value, str) else tuple(value)
                object.__setattr__(self, field.name, listed)
            elif field.name in _TEXTS and type(value) is int:
                object.__setattr__(self, field.name, str(value))
            elif field.name in ("batch_size", "read_workers") and value == "auto":
                object.__setattr__(self, field.name, None)
        expand_homes(self)
        check_types(self)
        self.check_engine()
        self.check_limits()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the options from a mapping, such as a YAML file's.

        Raises:
            JobError: An unknown key (the nearest known one is named) or a value that is not
                allowed.
        """
        return cls(**by_field(values, cls))

    def to_dict(self) -> dict[str, Any]:
        """Return every setting, as YAML and JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values.pop("progress")
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeJob(ServerOptions, AnsweringOptions):
    """All options of a server. Checked when it is made.

    Raises:
        JobError: A value is not allowed; the message says which are.
    """

    engine: str = option(
        EngineOptions.engine,
        f"{LOCAL_ENGINES} {LISTED_ENGINES}",
        metavar="NAME[,NAME]",
        group="Model",
    )

    def __post_init__(self) -> None:
        self._check()
        self.check_server()

    def to_dict(self) -> dict[str, Any]:
        """Return every setting of a server; without those of an endpoint, which it never asks."""
        own = {field.name for field in dataclasses.fields(ServerOptions)}
        others = {field.name for field in dataclasses.fields(EndpointOptions)} - own
        return {name: value for name, value in super().to_dict().items() if name not in others}

    def check_endpoint(self, engines: Sequence[str]) -> None:
        """Refuse options of an endpoint: the keys of a server are those of its own clients.

        Raises:
            JobError: One is given.
        """
        if ENDPOINT_ENGINE in engines or self.endpoint is not None:
            raise JobError(
                f"serve answers with a model of this machine, not with engine {ENDPOINT_ENGINE}: "
                "let clients ask the endpoint itself"
            )
        own = {field.name for field in dataclasses.fields(ServerOptions)}
        for field in dataclasses.fields(EndpointOptions):
            if field.name not in own and getattr(self, field.name) != field.default:
                raise JobError(f"{field.name} goes with --engine {ENDPOINT_ENGINE}, not with serve")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchJob(AnsweringOptions):
    """All options of ``batch``. Checked when it is made.

    Raises:
        JobError: A value is not allowed; the message says which are.
    """

    requests: str = ""
    output: str = option(
        "",
        "OUTPUT, a .jsonl file. [required]",
        flags=("-o",),
        metavar="PATH",
        group="Output",
        is_path=True,
    )
    overwrite: bool = option(
        False, "Start anew: the answers that OUTPUT has do not count.", group="Output"
    )
    retry_errors: bool = option(False, "Ask again where OUTPUT has an error.", group="Output")
    allow_empty: bool = option(
        False, "A file without requests is no error (otherwise exit code 66).", group="Output"
    )

    def __post_init__(self) -> None:
        self._check()
        if not self.output:
            raise JobError("batch needs an OUTPUT: give a .jsonl file with -o")
        if not self.output.lower().endswith(".jsonl"):
            raise JobError(f"output must end in .jsonl, not {self.output!r}")
