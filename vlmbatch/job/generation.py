"""Generation options: sampling, answer length and detail of pictures."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from vlmbatch.errors import JobError
from vlmbatch.job.option import check_at_least, option

Detail = Literal["full", "native", "low"]
MAX_SEED = 2**63 - 1
MAX_NEW_TOKENS = {"caption": 64, "ocr": 512, "vqa": 64}
"""Default of ``max_new_tokens`` for each task: a page of text is longer than a caption."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of generation. See the help text of each field."""

    max_new_tokens: int = option(
        None,
        "Longest answer, in tokens. [default: 64; 512 for ocr]",
        metavar="N",
        group="Generation",
    )
    temperature: float = option(0.0, "0 is greedy.", metavar="T", group="Generation")
    top_p: float = option(
        1.0,
        "With a temperature: sample from the most likely tokens that together have this "
        "probability.",
        metavar="P",
        group="Generation",
    )
    seed: int = option(0, "Seed of sampling and of --shuffle.", metavar="N", group="Generation")
    detail: Detail = option(
        "full",
        "full: as the checkpoint's processor does it; native: small images are not enlarged; "
        "low: one tile.",
        group="Generation",
    )

    def generation_identity(self) -> dict[str, Any]:
        """Return the generation settings that an answer depends on."""
        names = ["max_new_tokens", "temperature"]
        if self.temperature > 0:
            names += ["top_p", "seed"]
        return {name: getattr(self, name) for name in names}

    def check_generation(self) -> None:
        """Check the values of this group.

        Raises:
            JobError: A value is not allowed.
        """
        check_at_least(self, max_new_tokens=1, seed=0)
        if self.seed > MAX_SEED:
            raise JobError(f"seed must be at most {MAX_SEED}")
        if not 0 <= self.temperature <= 100:
            raise JobError(f"temperature must be from 0 to 100, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise JobError(f"top_p must be above 0 and at most 1, not {self.top_p}")
