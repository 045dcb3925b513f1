"""Reporting options: progress and log lines."""

from __future__ import annotations

import dataclasses
from typing import Literal

from vlmbatch.job.option import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportingOptions:
    """Options of reporting. See the help text of each field."""

    progress: Literal["auto", "on", "off"] = option(
        "auto", "Progress bar; auto: on a terminal.", group="Reporting"
    )
    log_format: Literal["text", "json"] = option(
        "text", "Format of the log lines on stderr.", group="Reporting"
    )
