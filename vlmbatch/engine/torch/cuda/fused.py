"""The operations between a layer's products as compiled kernels, on CUDA.

Inductor rounds between operations as torch does (``emulate_precision_casts``), so that the fused
layer differs from the other one by the order of the sums in its norms. A product that computes the
GELU before it rounds (``torch._addmm_activation``) is not used: in bfloat16 it changed answers. A
layer that cannot be compiled, or differs by more than rounding, is left as it was.
"""

from __future__ import annotations

import importlib.util
import logging
import time
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch.engine.torch import pointwise as eager
from vlmbatch.engine.torch.cuda.graphs import is_older_torch
from vlmbatch.engine.torch.cuda.kernels import TOLERANCE, difference, first_layers
from vlmbatch.engine.torch.device import SMALL_MODEL_PARAMETERS
from vlmbatch.engine.torch.pointwise import Pointwise
from vlmbatch.engine.torch.weights import Model

logger = logging.getLogger(__name__)

OPTIONS: dict[str, Any] = {"emulate_precision_casts": True, "compile_threads": 1}
"""Options of inductor. This process compiles: for so few kernels, to start others takes longer."""
SAMPLE_ROWS = 64
"""Rows that the kernels are compiled and tried with; they take any number."""
LIMIT_SECONDS = 180.0
"""Time after which no further kernel is compiled, and the layer is not fused."""
Compile = Callable[..., Any]
"""Makes few kernels of a function: ``torch.compile``, or what tests put in its place."""


def add_rms_norm(
    x: Tensor, change: Tensor | None, weight: Tensor, eps: float, multiplier: float
) -> tuple[Tensor, Tensor]:
    """See ``pointwise.AddRmsNorm``: the operations of LlamaRMSNorm."""
    x = eager.add(x, change, multiplier)
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return x, weight * (wide * scale).to(x.dtype)


def rotate(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    query_multiplier: float,
) -> tuple[Tensor, Tensor]:
    """See ``pointwise.Rotate``. The halves are written out: inductor compiles a roll anew for other
    numbers of rows.
    """
    query = _rotated(qkv[:, :heads], cos, sin)
    key = _rotated(qkv[:, heads : heads + kv_heads], cos, sin)
    return (query if query_multiplier == 1 else query * query_multiplier), key


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    (a, b), (cos_a, cos_b), (sin_a, sin_b) = (part.chunk(2, dim=-1) for part in (x, cos, sin))
    turned = torch.addcmul(a * cos_a, b, sin_a), torch.addcmul(b * cos_b, a, sin_b)
    return torch.cat(turned, dim=-1)


def gate(gate_up: Tensor) -> Tensor:
    """See ``pointwise.Gate``."""
    gates, up = gate_up.chunk(2, dim=-1)
    return F.silu(gates) * up


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add_rms_norm": add_rms_norm,
    "rotate": rotate,
    "gate": gate,
    "add_layer_norm": eager.add_layer_norm,
}
"""What is compiled, by name of the operation."""


def fuse_layers(
    model: Model, make: Compile = torch.compile, clock: Callable[[], float] = time.monotonic
) -> dict[str, Any]:
    """Make a model on CUDA use the fused layer, if it can be compiled and gives what the other one
    gives.

    Args:
        model: The model.
        make: Compiles a function.
        clock: Tells seconds.

    Returns:
        ``EngineStats.fused``.
    """
    if make is torch.compile and model.shape.parameters < SMALL_MODEL_PARAMETERS:
        return {"used": False, "seconds": 0.0, "notes": []}  # it takes longer than the answers
    begun = clock()
    reason = why_not_compiled() if make is torch.compile else ""
    if not reason:
        try:
            _fuse(model, make, clock)
        except Exception as error:  # compilers raise what they like
            text = " ".join(str(error).split())[:200]
            reason = f"{type(error).__name__}: {text}"
            logger.warning("layers are computed one operation at a time: %s", reason)
        if reason:  # outside the except block, where the error keeps tensors alive
            use_operations(model, eager.EAGER)
    notes = [f"layers are computed one operation at a time: {reason}"] if reason else []
    return {"used": not reason, "seconds": round(clock() - begun, 2), "notes": notes}


@torch.inference_mode()
def _fuse(model: Model, make: Compile, clock: Callable[[], float]) -> None:
    """Use compiled operations.

    Raises:
        ValueError: They differ from torch's by more than rounding.
        Exception: They cannot be compiled.
    """
    with warnings.catch_warnings():
        # Inductor advises TF32, which rounds more than float32 does.
        warnings.simplefilter("ignore")
        operations = compile_operations(model, make, clock)
    wanted = first_layers(model)
    use_operations(model, operations)
    for what, found in first_layers(model).items():
        error = difference(found, wanted[what])
        if not error <= TOLERANCE[model.dtype]:  # also where it is not a number
            raise ValueError(
                f"compiled, they give other {what} (by {error:.2g} of the largest number)"
            )


def why_not_compiled() -> str:
    """Return the reason why nothing can be compiled for CUDA here; empty if it can be tried."""
    if is_older_torch():
        return f"torch {torch.__version__} is older than 2.13"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return ""


def compile_operations(
    model: Model, make: Compile, clock: Callable[[], float] = time.monotonic
) -> Pointwise:
    """Compile the operations of a model's layers, and call each as its layers will.

    Args:
        model: The model.
        make: Compiles a function.
        clock: Tells seconds.

    Raises:
        TimeoutError: It takes too long.
        RuntimeError: Compiling is switched off.
        Exception: It fails.
    """
    begun, given = clock(), samples(model)
    found: dict[str, Any] = {}
    for name, function in FUNCTIONS.items():
        if clock() - begun > LIMIT_SECONDS:
            raise TimeoutError(f"compiling takes more than {LIMIT_SECONDS:g} seconds")
        own = _copy(function)
        found[name] = make(own, options=OPTIONS, dynamic=False)
        if found[name] is own or torch._dynamo.config.disable:
            raise RuntimeError("torch.compile is switched off (TORCH_COMPILE_DISABLE)")
        for arguments in given[name]:
            for argument in arguments:
                if isinstance(argument, Tensor) and argument.dim() > 1:
                    _mark_rows(argument)
            found[name](*arguments)
    return Pointwise(**found)


def _copy(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with code of its own: torch keeps what it compiled by code, and after some others
    compiles no more. Those of a model that was closed are not to be in the way.
    """
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace()
    return types.FunctionType(code, function.__globals__, function.__name__)


def _mark_rows(x: Tensor) -> None:
    """Say that a tensor's rows may be any number, the same as those of the other arguments: also
    one, which is a case of its own for other marks.
    """
    from torch._dynamo.decorators import mark_unbacked

    mark_unbacked(x, 0, shape_id="rows")


def samples(model: Model) -> Mapping[str, list[tuple[Any, ...]]]:
    """Arguments for each operation, as the layers of a model give them: with weights of its own,
    since torch tells tensors apart that were made in inference mode.
    """
    text, vision = model.shape.text, model.shape.vision

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, device=model.device, dtype=model.dtype)

    x, patches = drawn(SAMPLE_ROWS, text.hidden), drawn(2, vision.patches, vision.hidden)
    norm = model.language.norm, text.norm_eps
    weights = *model.vision.norm, vision.norm_eps
    heads = text.heads, text.kv_heads
    qkv = drawn(SAMPLE_ROWS, heads[0] + 2 * heads[1], text.head_dim)
    turns = drawn(SAMPLE_ROWS, 1, text.head_dim), drawn(SAMPLE_ROWS, 1, text.head_dim)
    return {
        "add_rms_norm": [
            (x, None, *norm, text.residual_multiplier),
            (x, drawn(*x.shape), *norm, text.residual_multiplier),
        ],
        "rotate": [(qkv, *turns, *heads, text.query_multiplier)],
        "gate": [(drawn(SAMPLE_ROWS, 2 * text.mlp),)],
        "add_layer_norm": [(patches, None, *weights), (patches, drawn(*patches.shape), *weights)],
    }


def use_operations(model: Model, operations: Pointwise) -> None:
    """Make the layers of a model use these operations."""
    model.language.pointwise = model.vision.pointwise = operations
