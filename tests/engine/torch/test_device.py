"""What a device has, and what it computes in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlmbatch.engine.torch import device as devices
from vlmbatch.errors import DeviceError


def group(root: Path, path: str, limit: str, used: int, inactive: int = 0) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\n")


def test_the_tightest_control_group_counts_and_cached_files_do_not(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "self"
    membership.write_text("0::/user/job\n")
    group(root, "user", str(8 << 30), 1 << 30)
    group(root, "user/job", str(4 << 30), 3 << 30, inactive=1 << 30)
    found = devices.cgroup_memory(root, membership)
    assert found == devices.Memory(4 << 30, 2 << 30)


def test_no_limit_is_none(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "self"
    membership.write_text("0::/\n")
    group(root, "", "max", 1 << 30)
    assert devices.cgroup_memory(root, membership) is None
    assert devices.cgroup_memory(tmp_path / "none", tmp_path / "none") is None


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(DeviceError, match=r"no device cuda:99 here; there is .*cpu"):
        devices.find_device("cuda:99")
    assert devices.find_device("cpu").type == "cpu"


def test_auto_is_float32_for_small_models_and_what_the_processor_multiplies_for_large_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    assert devices.find_dtype("auto", cpu, 3_000_000) == torch.float32
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: True)
    assert devices.find_dtype("auto", cpu, 500_000_000) == torch.bfloat16
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: False)
    assert devices.find_dtype("auto", cpu, 500_000_000) == torch.float32
    assert devices.find_dtype("float16", cpu, 1) == torch.float16


def test_out_of_memory_is_known_in_all_its_forms() -> None:
    assert devices.is_out_of_memory(torch.OutOfMemoryError("x"))
    assert devices.is_out_of_memory(MemoryError())
    assert devices.is_out_of_memory(RuntimeError("MPS backend out of memory (…)"))
    assert devices.is_out_of_memory(
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 9 bytes"
        )
    )
    assert not devices.is_out_of_memory(RuntimeError("shape mismatch"))
    assert not devices.is_out_of_memory(ValueError("out of memory"))
