"""Memory from the system for large tensors on a CPU: zero until it is written, in huge pages where
reading it takes the time.

A processor remembers where some thousands of pages lie. A decode step reads every weight once, so
with pages of 4 KiB it looks one up every 64 cache lines and cannot fetch ahead across them: two
cores of an AMD EPYC read 35 GB/s so, and 64 GB/s from pages of 2 MiB. Linux gives such pages to
those who ask for them, if ``/sys/kernel/mm/transparent_hugepage/enabled`` does not say ``never``;
elsewhere memory has ordinary pages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vlmbatch.engine.torch.model import LanguageModel

ALIGNMENT = 64
"""Bytes of a cache line; each tensor begins at one."""


def zeros(size: int, dtype: torch.dtype, *, huge: bool = False) -> Tensor:
    """Return a flat tensor (size,) of zeros. What is never written takes no memory.

    Args:
        size: Number of elements.
        dtype: Their dtype.
        huge: Whether to ask for huge pages: then parts of 2 MiB are taken at once.

    Raises:
        MemoryError: The system has not that much.
    """
    # Pages of a private mapping exist once they are written; torch's zeros writes all of them.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    try:
        pages = mmap.mmap(-1, size * dtype.itemsize, **private)
    except OSError as error:
        raise MemoryError(f"no {size * dtype.itemsize} bytes of memory") from error
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype)


def use_huge_pages(language: LanguageModel) -> None:
    """Move the matrices that a decode step reads into huge pages, one after the other, so that only
    one is there twice.
    """
    owners = [
        *((layer, name) for layer in language.layers for name in ("qkv", "out", "gate_up", "down")),
        (language, "head"),
    ]
    is_tied = language.head.weight is language.embedding
    weights = [getattr(owner, name).weight for owner, name in owners]
    places = _side_by_side([weight.shape for weight in weights], weights[0].dtype)
    del weights
    for (owner, name), place in zip(owners, places, strict=True):
        linear = getattr(owner, name)
        place.copy_(linear.weight)
        setattr(owner, name, dataclasses.replace(linear, weight=place))
    if is_tied:
        language.embedding = language.head.weight


def _side_by_side(shapes: Sequence[torch.Size], dtype: torch.dtype) -> list[Tensor]:
    """Return tensors of these shapes in one region of huge pages."""
    step = ALIGNMENT // dtype.itemsize
    begins = [0]
    for shape in shapes:
        begins.append(begins[-1] + -(-shape.numel() // step) * step)
    whole = zeros(begins[-1], dtype, huge=True)
    return [
        whole[begin : begin + shape.numel()].view(shape)
        for begin, shape in zip(begins, shapes, strict=False)
    ]
