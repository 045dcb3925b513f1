"""What a process may use of the processor follows from its affinity and its control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlmbatch.processor import ProcessorShare, processor_share


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.fixture
def groups(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "cgroup", tmp_path / "membership"


def test_the_tightest_of_nested_quotas_counts(groups: tuple[Path, Path]) -> None:
    root, membership = groups
    membership.write_text("0::/pod/container\n")
    write_group(root, cpu__max="max 100000")
    write_group(root / "pod", cpu__max="150000 100000")
    write_group(root / "pod" / "container", cpu__max="400000 100000")
    assert processor_share(*groups).quota == 1.5


def test_a_container_sees_its_group_at_the_mount_point(groups: tuple[Path, Path]) -> None:
    root, membership = groups
    membership.write_text("0::/\n")
    write_group(root, cpu__max="50000 100000")
    assert processor_share(*groups).quota == 0.5


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_version_1_has_quotas_too(groups: tuple[Path, Path], mount: str) -> None:
    root, membership = groups
    membership.write_text("5:memory:/\n3:cpu,cpuacct:/docker/abc\n1:cpuset:/\n")
    write_group(root / mount, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    write_group(
        root / mount / "docker" / "abc", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000"
    )
    assert processor_share(*groups).quota == 2.0


@pytest.mark.parametrize("text", ["max 100000", "", "none", "1 0"])
def test_no_limit_and_files_that_say_nothing_are_no_quota(
    groups: tuple[Path, Path], text: str
) -> None:
    root, membership = groups
    membership.write_text("0::/\n")
    write_group(root, cpu__max=text)
    assert processor_share(*groups).quota is None


def test_without_control_groups_the_affinity_counts(groups: tuple[Path, Path]) -> None:
    share = processor_share(*groups)
    assert share.quota is None
    assert share.cores == len(os.sched_getaffinity(0))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_a_process_on_one_core_has_one_thread() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from vlmbatch.processor import processor_share as share; print(share().threads)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


@pytest.mark.parametrize(
    ("share", "threads", "text"),
    [
        (ProcessorShare(64, 2.0, 64), 2, "64 cores, quota of 2"),
        (ProcessorShare(64, 1.5, 64), 2, "64 cores, quota of 1.5"),
        (ProcessorShare(4, 0.25, 64), 1, "4 of 64 cores, quota of 0.25"),
        (ProcessorShare(2, 8.0, 2), 2, "2 cores, quota of 8"),
        (ProcessorShare(1, None, 1), 1, "1 core"),
    ],
)
def test_threads_fill_the_share(share: ProcessorShare, threads: int, text: str) -> None:
    assert share.threads == threads
    assert share.describe() == text
