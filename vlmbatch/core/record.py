"""The rows of OUTPUT."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any, Literal

Status = Literal["ok", "error", "similar"]


@dataclasses.dataclass(slots=True)
class Record:
    """A row of OUTPUT: one item and question. The keys are the same in JSONL, Parquet and CSV, in
    this order; columns of ``extra`` follow them.

    ``engine``, ``device``, ``dtype`` and ``revision`` are empty when nothing ran. Counts and
    seconds that the engine does not know are None.
    """

    id: str
    source: str
    index: int
    media: str
    time_seconds: float | None
    end_seconds: float | None
    width: int | None
    height: int | None
    task: str
    prompt: str
    text: str | None
    status: str
    error_type: str | None
    error: str | None
    similar_to: str | None
    finish_reason: str | None
    mean_logprob: float | None
    model: str
    revision: str
    engine: str
    device: str
    dtype: str
    tiles: int | None
    prompt_tokens: int | None
    new_tokens: int | None
    batch_size: int | None
    read_seconds: float | None
    prepare_seconds: float | None
    wait_seconds: float | None
    vision_seconds: float | None
    prefill_seconds: float | None
    decode_seconds: float | None
    compute_seconds: float | None
    run_id: str
    created_at: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """The identity of a row across runs."""
        return self.id, self.task, self.prompt


RECORD_FIELDS: tuple[str, ...] = tuple(
    field.name for field in dataclasses.fields(Record) if field.name != "extra"
)
"""The keys that every row has, in order."""


def utc_now() -> str:
    """Return the time as records have it: UTC, ``2026-01-31T12:00:00.000Z``."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return now.replace("+00:00", "Z")
