"""``stats``: figures by day, run and model, since a time, and for Prometheus."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.write.rows import failed, record, store
from vlmbatch.errors import JobError
from vlmbatch.stats import parse_since


@pytest.fixture(params=["jsonl", "csv", "parquet"])
def output(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Rows of three days by two models in three runs, of which one was killed."""
    path = tmp_path / f"out.{request.param}"
    with store(path) as rows:
        for number, (day, run) in enumerate([(1, "a"), (1, "a"), (2, "b"), (2, "b"), (3, "c")]):
            made = failed(number) if number == 3 else record(number)
            made.created_at = f"2026-01-0{day}T12:00:00.000Z"
            made.run_id, made.model = run, "demo" if day < 3 else "big"
            rows.write(made)
    lines = [
        {
            "run_id": run,
            "started_at": f"2026-01-0{day}T11:00:00.000Z",
            "ended_at": f"2026-01-0{day}T13:00:00.000Z",
            "exit_code": code,
            "wall_seconds": 7200.0,
            "rows": 2,
            "status": {"ok": 1, "error": 1},
            "new_tokens": 20,
            "error": None,
        }
        for run, day, code in (("a", 1, 0), ("b", 2, 3), ("z", 2, 66))
    ]
    Path(f"{path}.runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_by_day_run_and_model(vlmbatch: Command, output: Path) -> None:
    said = vlmbatch("stats", output, "--by", "day").stdout.splitlines()
    assert [line.split() for line in said] == [
        ["day", "items", "answers", "ok", "similar", "errors", "tokens", "tiles", "busy", "s"],
        ["2026-01-01", "2", "2", "0", "0", "40", "34", "0.1"],
        ["2026-01-02", "2", "1", "0", "1", "20", "34", "0.1"],
        ["2026-01-03", "1", "1", "0", "0", "20", "17", "0.1"],
    ]
    said = vlmbatch("stats", output, "--by", "run").stdout.splitlines()
    assert [(line.split()[0], *line.split()[-2:]) for line in said[1:]] == [
        ("a", "0", "7200.0"),
        ("b", "3", "7200.0"),
        ("c", "?", "?"),
        ("z", "66", "7200.0"),
    ]
    found = json.loads(vlmbatch("stats", output, "--by", "model", "--json").stdout)
    assert [(group["model"], group["rows"]) for group in found["groups"]] == [
        ("demo (torch, cpu, float32)", 4),
        ("big (torch, cpu, float32)", 1),
    ]
    assert (found["rows"], found["runs"], found["last_run"]["run_id"]) == (5, 3, "z")


def test_since_leaves_out_what_was_before(vlmbatch: Command, output: Path) -> None:
    found = json.loads(vlmbatch("stats", output, "--since", "2026-01-02", "--json").stdout)
    assert (found["rows"], found["status"], found["runs"]) == (3, {"ok": 2, "error": 1}, 2)
    assert json.loads(vlmbatch("stats", output, "--since", "1d", "--json").stdout)["rows"] == 0
    refused = vlmbatch("stats", output, "--since", "yesterday")
    assert refused.returncode == 2
    assert refused.stderr == (
        "vlmbatch: since takes how long ago (7d, 12h, 30m, 2w) or a date (2026-01-31), "
        "not 'yesterday'\n"
    )


def test_periods() -> None:
    now = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)
    assert parse_since("7d", now) == "2026-01-24T12:00:00.000Z"
    assert parse_since("90m", now) == "2026-01-31T10:30:00.000Z"
    assert parse_since("2026-01-31T02:00+02:00") == "2026-01-31T00:00:00.000Z"
    for text in ("", "d", "-1d", "99999999999w", "2026-13-01"):
        with pytest.raises(JobError, match="since takes"):
            parse_since(text, now)


def test_metrics_are_a_file_for_prometheus(vlmbatch: Command, output: Path, tmp_path: Path) -> None:
    done = vlmbatch("stats", output, "--metrics", "vlmbatch.prom")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = (tmp_path / "vlmbatch.prom").read_text()
    values = dict(re.findall(r"^(\w+\{.*\}) (\S+)$", text, re.M))
    label = f'output="{output}"'
    assert values[f'vlmbatch_output_rows{{{label},status="ok"}}'] == "4.0"
    assert values[f'vlmbatch_output_errors{{error_type="DecodeError",{label}}}'] == "1.0"
    assert values[f"vlmbatch_output_new_tokens{{{label}}}"] == "80.0"
    assert values[f"vlmbatch_last_run_exit_code{{{label}}}"] == "66.0"
    ended = datetime.datetime(2026, 1, 2, 13, tzinfo=datetime.UTC).timestamp()
    assert float(values[f"vlmbatch_last_run_end_timestamp_seconds{{{label}}}"]) == ended
    assert [path.name for path in tmp_path.glob("*.prom*")] == ["vlmbatch.prom"]
    assert (tmp_path / "vlmbatch.prom").stat().st_mode & 0o444 == 0o444


def test_metrics_that_cannot_be_written_leave_the_file_as_it_was(
    vlmbatch: Command, output: Path, tmp_path: Path
) -> None:
    refused = vlmbatch("stats", output, "--metrics", "out.txt")
    assert (refused.returncode, "ends in .prom" in refused.stderr) == (2, True)
    done = vlmbatch("stats", output, "--metrics", tmp_path / "none" / "out.prom")
    assert (done.returncode, "out.prom: No such file" in done.stderr) == (1, True)


def test_phases_are_those_of_a_row_and_only_busy_time_is_added_up(
    vlmbatch: Command, output: Path
) -> None:
    said = vlmbatch("stats", output).stdout.splitlines()
    at = said.index("seconds            p50       p95       p99   of a row")
    assert "  decode         0.300     0.300     0.300" in said[at:]
    assert any(line.endswith("tokens/s of the engine's busy time, 0.2 s") for line in said)
    phases = json.loads(vlmbatch("stats", output, "--json").stdout)["phases"]
    assert phases["decode_seconds"]["total"] == pytest.approx(1.5)
