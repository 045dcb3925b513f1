"""What a device has, and what it computes in."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


OUT_OF_MEMORY = [
    "MPS backend out of memory (MPS allocated: 5.2 GB, other allocations: 1.1 GB)",
    "Invalid buffer size: 24.00 GB",
    "CUDA error: out of memory",
    "CUDA out of memory. Tried to allocate 20.00 MiB.",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:1124",
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
]


@pytest.mark.parametrize("message", OUT_OF_MEMORY)
def test_out_of_memory_is_known_by_every_message(message: str) -> None:
    assert devices.is_out_of_memory(RuntimeError(message))
    assert not devices.is_out_of_memory(ValueError(message))


def test_out_of_memory_is_known_by_its_type() -> None:
    assert devices.is_out_of_memory(torch.OutOfMemoryError("x"))
    assert devices.is_out_of_memory(MemoryError())
    assert not devices.is_out_of_memory(RuntimeError("shape mismatch"))
    assert not devices.is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


@dataclasses.dataclass
class Properties:
    """Stands for what CUDA says of a device."""

    name: str
    major: int
    is_integrated: bool = False


GPUS = [
    Properties("NVIDIA H100 80GB HBM3", 9),
    Properties("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9),
    Properties("Tesla T4", 7),
    Properties("Orin", 8, is_integrated=True),
]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine with four GPUs, of which torch.cuda knows the current one."""
    state: dict[str, Any] = {"current": 0, "settings": []}

    @contextlib.contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        before = state["current"]
        state["current"] = before if wanted.index is None else wanted.index
        yield
        state["current"] = before

    def known(wanted: torch.device) -> Properties:
        return GPUS[state["current"] if wanted.index is None else wanted.index]

    def has_bfloat16(*, including_emulation: bool) -> bool:
        return including_emulation or GPUS[state["current"]].major >= 8

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: state.update(current=d.index))
    monkeypatch.setattr(torch.cuda, "get_device_properties", known)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda d: known(d).name)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", has_bfloat16)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", state["settings"].append)
    monkeypatch.setattr("sys.platform", "linux")
    return state


@pytest.fixture
def backends() -> Iterator[None]:
    """SDPA's back ends as torch has them, before and after."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(True)


def sdpa_backends() -> dict[str, bool]:
    """SDPA's back ends by name, and whether it may choose them."""
    cuda = torch.backends.cuda
    return {
        "cudnn": cuda.cudnn_sdp_enabled(),
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }


@pytest.mark.usefixtures("backends")
def test_cudnns_attention_is_off_on_cuda_alone(gpus: dict[str, Any]) -> None:
    devices.use_device(torch.device("cpu"))
    devices.use_device(torch.device("mps"))
    assert all(sdpa_backends().values())
    devices.use_device(torch.device("cuda"))
    assert sdpa_backends() == {"cudnn": False, "flash": True, "efficient": True, "math": True}


@pytest.mark.usefixtures("backends")
def test_a_device_that_is_named_becomes_the_current_one(gpus: dict[str, Any]) -> None:
    devices.use_device(torch.device("cuda", 2))
    assert gpus["current"] == 2
    devices.use_device(torch.device("cuda"))
    assert gpus["current"] == 2


@pytest.mark.usefixtures("backends")
def test_segments_grow_in_place_where_there_is_nvml(gpus: dict[str, Any]) -> None:
    for index, settings in enumerate((["expandable_segments:True"], [], None, [])):
        gpus["settings"].clear()
        devices.use_device(torch.device("cuda", index))
        assert settings is None or gpus["settings"] == settings


def test_bfloat16_is_asked_of_the_device_that_computes(gpus: dict[str, Any]) -> None:
    modern, old = torch.device("cuda", 0), torch.device("cuda", 2)
    assert devices.find_dtype("auto", modern, 500_000_000) == torch.bfloat16
    assert devices.find_dtype("auto", old, 500_000_000) == torch.float16
    with pytest.raises(DeviceError, match="Tesla T4 does not compute in bfloat16"):
        devices.find_dtype("bfloat16", old, 500_000_000)
    assert gpus["current"] == 0


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("Apple M1", torch.float16),
        ("Apple M2 Max", torch.float16),
        ("Apple M3", torch.bfloat16),
        ("Apple M10", torch.bfloat16),
        ("", torch.bfloat16),
    ],
)
def test_auto_leaves_out_a_bfloat16_that_metal_emulates(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: name)
    assert devices.find_dtype("auto", torch.device("mps"), 500_000_000) == dtype
