"""Output options: where records go, what to redo, and when to give up."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vlmbatch.errors import JobError
from vlmbatch.job.option import Kind, option
from vlmbatch.urls import can_be_written, is_url, url_name, without_credentials

OUTPUT_SUFFIXES = (".jsonl", ".parquet", ".csv")
SIDECARS_BY_MEDIA = {"image": ("txt",), "video": ("txt", "srt", "vtt")}
"""Allowed values of ``sidecar`` for each kind of media."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Options of OUTPUT. See the help text of each field."""

    output: str | None = option(
        None,
        "Where the records go: .jsonl, .parquet or .csv, also a URL (s3://, gs://, hf:// …); `-` "
        "is JSONL on stdout. [default: INPUTNAME.TASK.jsonl here]",
        flags=("-o",),
        metavar="PATH",
        is_path=True,
        group="",
    )
    staging_dir: str | None = option(
        None,
        "Local folder for the rows of an OUTPUT that is a URL, until they are uploaded. "
        "[default: in the user's cache folder]",
        metavar="DIR",
        is_path=True,
        group="Output",
    )
    overwrite: bool = option(
        False,
        "Start OUTPUT anew, whatever it holds; also replace sidecars that were written from other "
        "OUTPUTs.",
        group="Output",
    )
    overwrite_all: bool = option(
        False,
        "With --sidecar: also replace files of others, and those that were edited. OUTPUT is "
        "continued as without it.",
        group="Output",
    )
    sidecar: Literal["txt", "srt", "vtt"] | None = option(
        None,
        {
            "image": "Also write a text file beside each image: photo.jpg gets photo.txt. Files of "
            "others stay.",
            "video": "Also write texts or subtitles beside each video: clip.mp4 gets clip.srt. "
            "Files of others stay.",
        },
        choices=SIDECARS_BY_MEDIA,
        group="Output",
    )
    sidecar_dir: str | None = option(
        None,
        "Write sidecars here, in the same tree as the ids, instead of beside the sources.",
        metavar="DIR",
        is_path=True,
        group="Output",
    )
    retry_errors: bool = option(False, "Retry the error rows of an earlier run.", group="Output")
    redo: Sequence[str] = option(
        (),
        "Ask again, with the model and settings given now, for these rows of OUTPUT only: cut-off, "
        "errors, edited, stale (of another model or other settings), unsure:X (mean_logprob under "
        "X), ids:FILE; repeatable.",
        metavar="ROWS",
        group="Output",
    )
    prune: bool = option(
        False,
        "Remove rows whose source is gone, but for edited texts.",
        group="Output",
    )
    max_errors: str | None = option(
        None,
        "Stop with exit code 4 when more items than N, or P% of those done (judged from 20 on, and "
        "at the end), are errors.",
        metavar="N|P%",
        group="Output",
    )

    def error_limit(self, done: int, *, is_all: bool = False) -> float:
        """Maximum number of error items before the run stops.

        During a run a percentage applies from 20 items on, so that one early error does not end it.

        Args:
            done: Number of finished items.
            is_all: Whether no more come; then only a percentage is checked.
        """
        if self.max_errors is None:
            return float("inf")
        if self.max_errors.endswith("%"):
            if done < 20 and not is_all:
                return float("inf")
            return float(self.max_errors[:-1]) / 100 * done
        return float("inf") if is_all else float(self.max_errors)

    def check_output(self, media: Kind) -> None:
        """Check the values of this group.

        Raises:
            JobError: A value, or a combination, is not allowed.
        """
        url = self.output if self.output is not None and is_url(self.output) else None
        if url is not None and not can_be_written(url):
            raise JobError(
                "output must be a file, or a URL of a store that can be written such as s3://, "
                f"gs:// or hf://, not {without_credentials(url)}"
            )
        name = url_name(url) if url is not None else self.output
        if name is not None and name != "-" and Path(name).suffix.lower() not in OUTPUT_SUFFIXES:
            raise JobError(
                f"output must end in {', '.join(OUTPUT_SUFFIXES)} or be `-`, "
                f"not {without_credentials(str(self.output))!r}"
            )
        if self.staging_dir is not None and url is None:
            raise JobError(
                "staging_dir goes with an output that is a URL: a file has its journal beside it"
            )
        if self.max_errors is not None and not re.fullmatch(r"\d+|\d+(\.\d+)?%", self.max_errors):
            raise JobError(
                "max_errors must be a number such as 100 or a share such as 5%, "
                f"not {self.max_errors!r}"
            )
        if self.prune and self.output == "-":
            raise JobError("prune removes rows of an OUTPUT that is kept: give a file with -o")
        self._check_redo()
        self._check_sidecar(media)

    def _check_redo(self) -> None:
        for value in self.redo:
            if not re.fullmatch(r"cut-off|errors|edited|stale|unsure:-?\d+(\.\d+)?|ids:.+", value):
                raise JobError(
                    "redo takes cut-off, errors, edited, stale, unsure:X (such as unsure:-0.5) and "
                    f"ids:FILE, not {value!r}"
                )
        if self.redo and (self.overwrite or self.output == "-"):
            raise JobError(
                "redo asks again for rows of an OUTPUT that is kept: leave out overwrite, and give "
                "a file with -o"
            )

    def _check_sidecar(self, media: Kind) -> None:
        if self.overwrite_all and self.sidecar is None:
            raise JobError("overwrite_all replaces sidecars of others: say with sidecar which kind")
        if self.sidecar_dir is not None and self.sidecar is None:
            raise JobError("sidecar_dir goes with sidecar: say which kind of files")
        if self.sidecar is not None and self.sidecar not in SIDECARS_BY_MEDIA[media]:
            raise JobError(f"sidecar {self.sidecar} goes with videos; a picture has a txt")
        if self.sidecar is not None and self.output == "-":
            raise JobError(
                "sidecars are written from OUTPUT, which `-` does not keep: give a file with -o"
            )
