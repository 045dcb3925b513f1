"""Ceilings of the device: matrix products in the model's sizes and dtype, and memory copies.
Measured, not taken from a data sheet.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer

from vlmbatch.bench.sizes import Sizes
from vlmbatch.engine.torch.cpu.onednn import can_pack, pack
from vlmbatch.engine.torch.linear import Linear
from vlmbatch.engine.torch.shape import ModelShape

ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """The best of several measurements.

    Attributes:
        per_second: Operations, or bytes, a second.
        what: Name of the best measurement.
        all: Every measurement, by name.
    """

    per_second: float
    what: str
    all: dict[str, float]


def gemm_ceiling(
    shape: ModelShape, device: torch.device, dtype: torch.dtype, sizes: Sizes
) -> Ceiling:
    """Measure floating-point operations a second on matrices as large as the model's own: the best
    size, by ``F.linear`` or oneDNN's packed product.

    On some processors (AMD's, with MKL) the packed product is the faster by half.
    """
    found = {}
    packs = can_pack(device, dtype)
    for inputs, outputs in _products(shape):
        x = torch.randn(sizes.gemm_rows, inputs, device=device).to(dtype)
        weight = torch.randn(outputs, inputs, device=device).to(dtype)
        seconds = _fastest(functools.partial(F.linear, x, weight), sizes.ceiling_seconds)
        what = f"{sizes.gemm_rows} x {inputs} x {outputs}"
        found[what] = 2 * sizes.gemm_rows * inputs * outputs / seconds
        if packs:
            seconds = _fastest(functools.partial(pack(Linear(weight)), x), sizes.ceiling_seconds)
            found[f"{what}, packed"] = 2 * sizes.gemm_rows * inputs * outputs / seconds
    best = max(found, key=lambda what: found[what])
    return Ceiling(found[best], best, found)


def copy_ceiling(device: torch.device, sizes: Sizes) -> Ceiling:
    """Measure bytes a second of copying a block within the device's memory, bytes read and written
    added.
    """
    source = torch.ones(sizes.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _fastest(lambda: target.copy_(source), sizes.ceiling_seconds)
    what = f"{sizes.copy_bytes >> 20} MiB, read and written"
    return Ceiling(2 * sizes.copy_bytes / seconds, what, {what: 2 * sizes.copy_bytes / seconds})


def _products(shape: ModelShape) -> list[tuple[int, int]]:
    """Inputs and outputs of the model's largest matrices: MLP and attention of the vision encoder,
    MLP of the language model.
    """
    v, t = shape.vision, shape.text
    return [
        (v.hidden, v.mlp),
        (v.mlp, v.hidden),
        (v.hidden, 3 * v.hidden),
        (t.hidden, 2 * t.mlp),
        (t.mlp, t.hidden),
    ]


def _fastest(call: Callable[[], object], seconds: float) -> float:
    """Measure the seconds of one call: the best of at least five rounds, each long enough to hide
    the clock's resolution and kernel launches.
    """
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    with torch.inference_mode():
        rounds = [timer.blocked_autorange(min_run_time=seconds / ROUNDS) for _ in range(ROUNDS)]
    return min(min(measured.times) for measured in rounds)
