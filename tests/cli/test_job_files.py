"""Job files as people and programs write them: any content is a job or one line of error."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.conftest import Command
from vlmbatch.cli.options import parse_settings
from vlmbatch.cli.run import read_job_file
from vlmbatch.errors import JobError
from vlmbatch.job import Job

FIELDS = st.sampled_from(sorted(Job.__dataclass_fields__) + ["quiet", "verbose", "dry-run"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
YAML_TEXT = st.text(st.sampled_from("abxyz01259 \n:-[]{},\"'#&*!|>%@`?~.\t"), max_size=60)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_job_file_may_have_a_byte_order_mark(
    vlmbatch: Command, tmp_path: Path, encoding: str
) -> None:
    (tmp_path / "job.yaml").write_text("inputs: ü.png\nmodel: demo\n", encoding=encoding)
    job, _ = read_job_file(str(tmp_path / "job.yaml"), {})
    assert (job.inputs, job.model) == (("ü.png",), "demo")


@pytest.mark.parametrize("text", ["inputs: " + "[" * 20_000, "limit: 2020-13-45\n", "x: \xff\n"])
def test_what_is_no_job_file_is_one_line(vlmbatch: Command, tmp_path: Path, text: str) -> None:
    (tmp_path / "job.yaml").write_bytes(text.encode("latin-1"))
    result = vlmbatch("run", "job.yaml")
    assert result.returncode == 2
    assert result.stderr.startswith("vlmbatch: job.yaml: ")
    assert len(result.stderr.splitlines()) == 1


@given(values=st.dictionaries(FIELDS, VALUES, max_size=3))
def test_any_values_are_a_job_or_an_error(tmp_path: Path, values: dict[str, object]) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with contextlib.suppress(JobError):
        job, _ = read_job_file(str(tmp_path / "job.yaml"), {})
        assert isinstance(job, Job)


@given(text=YAML_TEXT)
def test_any_text_is_a_job_or_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.yaml").write_text(f"inputs: a\n{text}", encoding="utf-8")
    with contextlib.suppress(JobError):
        job, _ = read_job_file(str(tmp_path / "job.yaml"), {})
        assert isinstance(job, Job)


@given(key=FIELDS, text=YAML_TEXT)
def test_any_setting_is_taken_or_an_error(key: str, text: str) -> None:
    with contextlib.suppress(JobError):
        assert isinstance(Job.from_dict(parse_settings([f"{key}={text}"])), Job)
