"""Closing lines of a run: what was answered, what was left alone, and what to do about it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from typing import Any

from vlmbatch.errors import NothingFound
from vlmbatch.job import Job
from vlmbatch.run.events import event
from vlmbatch.urls import without_credentials
from vlmbatch.wording import number_of

logger = logging.getLogger("vlmbatch")
report = logging.getLogger("vlmbatch.report")

_COUNTS = (
    *("error", "interrupted", "items", "rows", "status", "errors", "kept", "uncommitted"),
    *("tiles", "prompt_tokens", "new_tokens", "wall_seconds", "items_per_second"),
)
"""Figures of a summary that the event of a run's end has."""


def say_sidecars(counts: dict[str, int]) -> None:
    """Say how many sidecars were written, and why others were not."""
    for line in _sidecar_lines(counts):
        report.info("%s", line)


def say_summary(
    job: Job,
    summary: dict[str, Any],
    *,
    exit_code: int,
    interrupted: bool,
    names_output: bool,
) -> None:
    """Say what a run did.

    Args:
        job: The job.
        summary: What OUTPUT.summary.json holds.
        exit_code: The command's.
        interrupted: Whether the run was stopped before its end.
        names_output: Whether the run wrote OUTPUT, so that its name is of use.
    """
    first = _first_line(summary, interrupted=interrupted)
    output = f" -> {without_credentials(job.output_path)}" if names_output else ""
    if exit_code != NothingFound.exit_code or job.log_format == "json":
        report.info(
            *("%s%s%s", "interrupted: " if interrupted else "", first, output),
            extra=event(
                "run_finished",
                exit_code=exit_code,
                output=without_credentials(job.output_path),
                **{name: summary[name] for name in _COUNTS},
            ),
        )
    if job.log_format == "text":  # in JSON each of them is an event, and the counts are above
        for line in failure_lines(summary, job.output_path, task=job.task):
            report.info("%s", line)
    for line in _item_lines(job, summary, interrupted=interrupted):
        report.info("%s", line, extra=event("note"))
    for line in other_file_lines(summary["other_files"]):
        logger.warning("%s", line, extra=event("note"))
    if summary["questions"]:
        logger.warning("%s", summary["questions"]["hint"])
    for line in _advice(summary):
        report.info("%s", line, extra=event("note"))


def _first_line(summary: dict[str, Any], *, interrupted: bool) -> str:
    status, kept, lost = summary["status"], summary["kept"], summary["uncommitted"]
    before = [number_of(kept["rows"] - kept["errors"], "answer")]
    before += [number_of(kept["errors"], "error")] if kept["errors"] else []
    done = f"{' and '.join(before)} done before" if kept["rows"] else ""
    if not summary["rows"] and summary["error"] is None and not interrupted:
        return f"nothing new: {done}" if done else "nothing to do"
    rate = (
        f"{summary['items_per_second']:.2f} items/s, "
        f"{summary['new_tokens_per_second']:.1f} tokens/s"
    )
    rows = summary["rows"]
    parts = [
        f"{number_of(status.get('ok', 0), 'answer')} ok",
        *([f"{status['similar']} similar"] if "similar" in status else []),
        number_of(status.get("error", 0), "error"),
        *([f"only {rows - lost} of these {number_of(rows, 'row')} stored"] if lost else []),
        *([done] if done else []),
    ]
    items = number_of(summary["items"], "item")
    return f"{items} in {summary['wall_seconds']:.1f} s ({rate}): {', '.join(parts)}"


def _item_lines(job: Job, summary: dict[str, Any], *, interrupted: bool) -> Iterator[str]:
    kept, left = summary["kept"], summary["left_alone"]
    if left["other_media"]:
        other, command = ("video", "video") if job.media == "image" else ("image", "caption")
        yield f"{number_of(left['other_media'], other)} left alone (use `vlmbatch {command}`)"
    if left["without_suffix"]:
        pictures = number_of(left["without_suffix"], "picture")
        yield f"{pictures} without a suffix left alone (rename, or give each as INPUT)"
    if kept["errors"]:
        yield (
            f"{number_of(kept['errors'], 'kept error')}: done before and not asked again; "
            "--retry-errors asks again"
        )
    if kept.get("edited"):
        texts = number_of(kept["edited"], "text")
        yield f"{texts} edited in OUTPUT kept (--redo edited asks again)"
    yield from _gone_lines(summary["gone"])
    if summary["found"] == 0 and summary["error"] is None and not interrupted:
        yield (
            "no images found"
            if job.media == "image"
            else "no videos found, or nothing of them was asked for"
        )
    if left["not_in_output"]:
        answers = number_of(left["not_in_output"], "answer")
        yield f"{answers} not in OUTPUT yet: the command without --redo asks for them"
    if left["without_question"]:
        file = f" in {job.questions_file}" if job.questions_file else ""
        yield f"{number_of(left['without_question'], 'item')} without a question{file}"


def other_file_lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield what becomes of rows when other files have their ids.

    Args:
        found: What ``Writer.other_files`` gives.
    """
    for outcome, its in found.items():
        id, was, now = (without_credentials(its["example"][name]) for name in ("id", "was", "now"))
        files = f"{number_of(its['files'], 'file')} {'has' if its['files'] == 1 else 'have'}"
        yield (
            f"{files} the id of another one, whose row is replaced ({id}: was {was}, is {now} now)"
            if outcome == "replaced"
            else f"{files} the id of another one, whose corrected text is kept ({id}: it is of "
            f"{was}, and {now} gets no row)"
        ) + "; another OUTPUT or their common folder as INPUT keeps both"


def _gone_lines(gone: dict[str, Any]) -> Iterator[str]:
    if gone.get("rows"):
        what = f"{number_of(gone['rows'], 'answer')} about files that are gone"
        yield f"{what} removed" if gone["pruned"] else f"{what} kept (--prune removes them)"
    if gone.get("sidecars"):
        yield f"{number_of(gone['sidecars'], 'sidecar')} of files that are gone removed"
    if gone.get("edited"):
        yield f"{number_of(gone['edited'], 'edited text')} about files that are gone kept"


def failure_lines(figures: dict[str, Any], output: str, task: str = "") -> Iterator[str]:
    """Yield each kind of error with its first items, and the command that lists all of them.

    Args:
        figures: What ``RowStats.describe`` gives.
        output: OUTPUT.
        task: The task of the rows, where they are not all that OUTPUT has.
    """
    is_partial = False
    for kind, number in figures["errors"].items():
        yield f"  {number} x {kind}"
        named = figures["failures"][kind]
        for failure in named:
            yield f"    {failure['id']}: {failure['error']}"
        is_partial |= number > len(named)
    if is_partial and output != "-":
        name = shlex.quote(without_credentials(output))
        rows = "--status error" + (f" --task {task}" if task else "")
        yield f"  all of them: vlmbatch export {name} --to csv --columns id,error {rows} -o -"


def _advice(summary: dict[str, Any]) -> Iterator[str]:
    if summary["cut_off"]["answers"]:
        yield summary["cut_off"]["hint"]
    if summary["sidecars"]:
        yield from _sidecar_lines(summary["sidecars"])
    if "similar" in summary["status"]:
        frames, answers = summary["items"], summary["status"]["similar"]
        yield (
            f"{summary['similar_items']} of {number_of(frames, 'frame')} resembled an earlier one: "
            f"so many encodes and {number_of(answers, 'answer')} saved"
        )
    native, full, low = (summary[f"{name}_tiles"] for name in ("native", "full", "low"))
    if native and native <= 0.75 * full:
        yield (f"small pictures were enlarged to {full} tiles; --detail native would take {native}")
    if summary["job"]["media"] == "video" and low and full >= 2 * low:
        yield (
            f"{number_of(low, 'frame')} took {full} tiles; --detail low takes one tile a frame, "
            "which is enough where no small text matters"
        )
    for oom in summary["engine"].get("oom_events", [])[:3]:
        yield f"out of memory in {oom['phase']} with {oom['size']}: {oom['action']}"


def _sidecar_lines(counts: dict[str, int]) -> Iterator[str]:
    same = f" ({counts['unchanged']} more are as they were)" if counts["unchanged"] else ""
    yield f"{number_of(counts['written'], 'sidecar')} written{same}"
    if counts["kept"]:
        yield (
            f"{number_of(counts['kept'], 'file')} there that we did not write, or that was changed "
            "since: kept (--overwrite-all replaces)"
        )
    if counts["kept_ours"]:
        yield (
            f"{number_of(counts['kept_ours'], 'sidecar')} written from another OUTPUT: kept "
            "(--overwrite replaces)"
        )
    if counts["renamed"]:
        yield (
            f"{number_of(counts['renamed'], 'sidecar')} named after the whole file, because "
            "another one has the shorter name"
        )
    if counts["no_place"]:
        yield (
            f"{number_of(counts['no_place'], 'item')} without a file on this disk to stand beside; "
            "use --sidecar-dir DIR"
        )
