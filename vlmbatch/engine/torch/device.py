"""Devices: choice of device and dtype, and free memory."""

from __future__ import annotations

import ctypes
import dataclasses
import re
import sys
from pathlib import Path

import psutil
import torch

from vlmbatch.control_groups import MEMBERSHIP, ROOT, group_folders
from vlmbatch.errors import DeviceError

SMALL_MODEL_PARAMETERS = 20_000_000
"""Below this number of weights, matrices are too small for 16-bit units to pay off: float32 is as
fast, and the same on every processor.
"""

OUT_OF_MEMORY_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",
    "HOST_ALLOCATION_FAILED",
    "NVML_SUCCESS == r INTERNAL ASSERT",
    "Invalid buffer size",
)
"""Parts of the out-of-memory messages of CUDA, MPS, the CPU allocator and the libraries below them.

cuBLAS makes its handle on first use and says that it is not initialized when that finds no memory.
cuDNN 9 has a status for each kind of memory. Where there is no NVML (MIG, Jetson), the allocator
fails while it composes its message. MPS refuses buffers that are larger than the device allows.
"""
EMULATED_BFLOAT16 = re.compile(r"Apple M[12]\b")
"""Apple GPUs without bfloat16: Metal emulates it there."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc's mallopt(3) parameters: the size from which on free memory at the end of the heap is
returned, and the maximum number of separately mapped blocks.
"""

CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Files with the limit and the use of a control group's memory, of version 2 and 1."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Total and free bytes of a device."""

    total: int
    free: int


def find_device(name: str) -> torch.device:
    """Return the device of ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        DeviceError: It is not available; the message lists what is.
    """
    if name == "auto":
        return torch.device(
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    device = torch.device(name)
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise DeviceError(f"no device {name} here; there is {', '.join(device_names())}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"no device mps here; there is {', '.join(device_names())}")
    return device


def device_names() -> list[str]:
    """List the devices of this machine, as ``--device`` takes them."""
    names = (
        [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    return [*names, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def use_device(device: torch.device) -> None:
    """Settle how torch computes on a device from now on; before anything is computed there.

    On CUDA the device becomes the current one: graphs and streams are made on that. cuDNN's
    attention is off: it builds a plan for every shape and stride and keeps it, which takes 23 to
    37 ms each, and the keys of a decode step are longer each time. Memory segments grow in place,
    where the driver allows it, so that pieces of unused memory do not add up.
    """
    if device.type != "cuda":
        return
    if device.index is not None:
        torch.cuda.set_device(device)
    torch.backends.cuda.enable_cudnn_sdp(False)
    known = torch.cuda.get_device_properties(device)
    has_nvml = "MIG" not in known.name and not known.is_integrated
    if sys.platform == "linux" and has_nvml:
        set_allocator = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
        if set_allocator is not None:  # since torch 2.9
            set_allocator("expandable_segments:True")


def find_dtype(name: str, device: torch.device, parameters: int) -> torch.dtype:
    """Return a dtype by name, or for ``auto`` the fastest that the device supports natively.

    Args:
        name: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: The device.
        parameters: Number of weights of the model.

    Raises:
        DeviceError: The device does not support it.
    """
    if name != "auto":
        if name == "bfloat16" and device.type == "cuda" and not cuda_has_bfloat16(device):
            raise DeviceError(
                f"{torch.cuda.get_device_name(device)} does not compute in bfloat16; use float16 "
                "or float32"
            )
        return DTYPES[name]
    if parameters < SMALL_MODEL_PARAMETERS:
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if cuda_has_bfloat16(device) else torch.float16
    if device.type == "mps":
        return torch.float16 if EMULATED_BFLOAT16.match(apple_gpu()) else torch.bfloat16
    return torch.bfloat16 if cpu_has_bfloat16() else torch.float32


def cuda_has_bfloat16(device: torch.device) -> bool:
    """True if a CUDA device, not only the current one, computes in bfloat16 itself."""
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def apple_gpu() -> str:
    """Name of the Apple GPU, such as ``Apple M2 Pro``; empty if Metal does not say."""
    try:
        return str(torch.backends.mps.get_name())
    except (AttributeError, RuntimeError):
        return ""


def cpu_has_bfloat16() -> bool:
    """True if the processor multiplies bfloat16 matrices itself (AMX or AVX-512 BF16); elsewhere
    float32 is faster.
    """
    checks = [
        getattr(torch.cpu, name, None)
        for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    ]
    return any(bool(check()) for check in checks if check is not None)


def device_memory(device: torch.device) -> Memory:
    """Memory of a device: CUDA's figures, MPS's recommended maximum, or on a CPU the smaller of the
    cgroup's free memory and the system's.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(total, free)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return Memory(total, max(0, total - torch.mps.driver_allocated_memory()))
    machine = psutil.virtual_memory()
    group = cgroup_memory()
    if group is None:
        return Memory(machine.total, machine.available)
    return Memory(min(machine.total, group.total), min(machine.available, group.free))


def cgroup_memory(root: Path = ROOT, membership: Path = MEMBERSHIP) -> Memory | None:
    """Memory limit of this process's cgroup and the free part of it; None without a limit.

    Args:
        root: Mount point of the cgroups.
        membership: File that names the cgroup of this process.
    """
    found: Memory | None = None
    for folder in group_folders("memory", root, membership):
        for limit_file, used_file in CGROUP_FILES:
            try:
                limit = int((folder / limit_file).read_text())
                used = int((folder / used_file).read_text())
            except (OSError, ValueError):
                continue  # no such file, or "max": no limit at this level
            free = max(0, limit - used + _inactive_file_bytes(folder))
            if limit < 1 << 60 and (found is None or free < found.free):
                found = Memory(limit, free)
    return found


def _inactive_file_bytes(folder: Path) -> int:
    """Cached file pages, which the cgroup counts as used but the kernel drops under memory
    pressure.
    """
    try:
        for line in (folder / "memory.stat").read_text().splitlines():
            name, value = line.split()
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    except (OSError, ValueError):
        pass  # no such figure: nothing is added
    return 0


def peak_bytes(device: torch.device) -> int | None:
    """Peak allocated memory of a CUDA device, or None elsewhere."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle, for correct timing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def empty_cache(device: torch.device) -> None:
    """Return unused memory of the allocator to the device, or to the system."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(
            ctypes.CDLL(None), "malloc_trim", None
        )  # only glibc has it, and only glibc needs it
        if trim is not None:
            trim(0)


def keep_freed_memory() -> None:
    """Make the C library reuse large freed blocks instead of returning each to the system.

    The system zeroes fresh pages one by one on first access, which took a tenth of the vision
    encoder's time. ``empty_cache`` still returns free memory. Only glibc has these options.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """True if an exception is one of torch's out-of-memory errors."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(sign in text for sign in OUT_OF_MEMORY_SIGNS)
