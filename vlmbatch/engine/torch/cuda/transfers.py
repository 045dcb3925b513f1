"""Copies between the host and the device: one for many arrays, from and to pinned memory on CUDA.
The host waits only where it needs a result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def upload(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device; on a CPU the tensor is the array. The host does not wait on
    CUDA.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor)
    return pinned.to(device, non_blocking=True)  # torch keeps the pinned block until it is copied


def upload_all(device: torch.device, *arrays: npt.NDArray[Any]) -> list[Tensor]:
    """Copy int64 vectors to a device in one piece."""
    whole = upload(np.concatenate(arrays), device)
    return list(whole.split([len(array) for array in arrays]))


def fetch(tensor: Tensor) -> list[Any]:
    """Wait for a tensor and return its numbers, nested by its dimensions."""
    if tensor.device.type != "cuda":
        return list(tensor.tolist())
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return list(pinned.tolist())
