"""A GPU that is not there: its tensors are computed on the CPU, and what a GPU would refuse is
refused.

``FakeDevice`` refuses operations on tensors of both sides, counts kernels, copies and waits, holds
an allocator with a limit, and records graphs: a replay computes the recorded operations again, into
the tensors that they gave. As an Apple GPU it has neither graphs, streams, pinned memory nor
float64, and takes attention's queries in one piece only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal")
"""Operations whose results the host needs to go on."""
COPIES = ("to", "_to_copy", "copy_")
MIXED = "Expected all tensors to be on the same device, but found at least two devices"
NO_FLOAT64 = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
    "Please use float32 instead."
)
CAPTURING = "operation not permitted when stream is capturing"


@dataclasses.dataclass
class Counts:
    """Things that a device was asked for.

    Attributes:
        kernels: Kernels launched, those of a replay not counted.
        replays: Graphs replayed.
        uploads: Copies to the device.
        pageable: Those from memory that is not pinned, for which the host waits.
        downloads: Copies to the host.
        waits: Times that the host waits for the device.
    """

    kernels: int = 0
    replays: int = 0
    uploads: int = 0
    pageable: int = 0
    downloads: int = 0
    waits: int = 0

    def since(self, before: Counts) -> Counts:
        """The difference to an earlier copy."""
        names = [field.name for field in dataclasses.fields(self)]
        return Counts(**{name: getattr(self, name) - getattr(before, name) for name in names})

    def copy(self) -> Counts:
        """These counts as they are now."""
        return dataclasses.replace(self)


class Allocation:
    """Bytes of a device, held until the last tensor on them is gone."""

    def __init__(self, gpu: FakeDevice, size: int) -> None:
        self.gpu, self.size = gpu, size
        gpu.allocated += size
        gpu.most_allocated = max(gpu.most_allocated, gpu.allocated)

    def __del__(self) -> None:
        self.gpu.allocated -= self.size


class OnDevice(Tensor):
    """A tensor of a fake device; ``held`` has its numbers."""

    held: Tensor
    allocation: Allocation
    placed: torch.device

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device, allocation: Allocation) -> OnDevice:
        # To torch's own code, which has no CUDA here, it is a tensor without numbers.
        blank = torch.empty_strided(held.size(), held.stride(), dtype=held.dtype, device="meta")
        made: OnDevice = Tensor._make_subclass(
            cls, blank, dispatch_device=True, device_for_backend_keys=device
        )
        made.held, made.allocation, made.placed = held, allocation, device
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The fake device."""
        return self.placed

    def storage_offset(self) -> int:
        """Place of its first number in its storage."""
        return self.held.storage_offset()

    def tolist(self) -> Any:
        """The numbers, after a wait."""
        self.allocation.gpu.counts.downloads += 1
        self.allocation.gpu.counts.waits += 1
        return self.held.tolist()

    def record_stream(self, stream: object) -> None:
        """Nothing to keep: memory is counted by its tensors."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        raise RuntimeError(f"{func} outside of the fake device")


class Graph:
    """A recorded graph, in place of ``torch.cuda.CUDAGraph``."""

    gpu: ClassVar[FakeDevice]

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        """Compute everything again, into the same tensors."""
        if self.gpu.replays_left == 0:
            self.gpu.replays_left = None
            raise self.gpu.refusal()
        if self.gpu.replays_left is not None:
            self.gpu.replays_left -= 1
        self.gpu.counts.replays += 1
        with _disable_current_modes():
            for func, args, kwargs, result in self.operations:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    def reset(self) -> None:
        """Drop the operations."""
        self.operations = []


class FakeDevice(TorchDispatchMode):
    """A CUDA or MPS device while the context lasts.

    Attributes:
        device: The device, of type ``cuda`` or ``mps``.
        operations: Names of the operations that were done here.
        counts: Things it was asked for so far.
        limit_bytes: Bytes that it has.
        refusal: Makes the error where they do not suffice.
        refusals: Number of allocations from now on that are refused in any case.
        allocated, most_allocated: Bytes in use, now and at most so far.
        written_bytes, largest_written: Bytes of all results of kernels, and of the largest.
        failing: A phase of recording that fails: ``begin``, ``body`` or ``end``.
        replays_left: Number of replays before one that ends in ``refusal``; None if none does.
        falsified: Name of an operation that computes something else here.
        stream: Name of the current stream.
        capturing: The graph that is being recorded.
    """

    def __init__(self, limit_bytes: int = 1 << 28, kind: str = "cuda") -> None:
        super().__init__()
        self.device = torch.device(kind, 0)
        self.operations: set[str] = set()
        self.counts = Counts()
        self.limit_bytes = limit_bytes
        self.refusal: Callable[[], Exception] = lambda: torch.OutOfMemoryError("out of memory")
        self.allocated = self.most_allocated = self.refusals = 0
        self.written_bytes = self.largest_written = 0
        self.failing = self.falsified = ""
        self.replays_left: int | None = None
        self.stream = "default"
        self.capturing: Graph | None = None
        self._pinned: list[Tensor] = []
        self._context = contextlib.ExitStack()

    def __enter__(self) -> FakeDevice:
        patched = _patched_torch if self.device.type == "cuda" else _patched_mps
        self._context.enter_context(patched(self))
        # Else some operations are taken apart before they come here, by code that asks for CUDA.
        self._context.enter_context(torch.inference_mode())
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._context.close()

    def put(self, tensor: Tensor) -> OnDevice:
        """A copy of a tensor on the device; not counted."""
        with _disable_current_modes():
            return self._wrap(tensor.clone(), [])

    def get(self, tensor: Tensor) -> Tensor:
        """The numbers of a tensor; not counted."""
        assert isinstance(tensor, OnDevice)
        return tensor.held

    def compile(self, function: Callable[..., Any], **options: object) -> Callable[..., Any]:
        """Stand for ``torch.compile``: what a function does is one kernel for each size of its
        results.
        """

        def compiled(*arguments: object) -> Any:
            before = self.counts.kernels
            found = function(*arguments)
            sizes = {leaf.shape for leaf in tree_leaves(found) if isinstance(leaf, Tensor)}
            self.counts.kernels = before + len(sizes)
            return found

        return compiled

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = dict(kwargs or {})
        name = func._schema.name.partition("::")[2]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        there = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
        target = kwargs.get("device")
        if name == "to" and target is None and len(args) > 1:
            target = args[1] if isinstance(args[1], (str, torch.device)) else None
        lands_here = bool(here) if target is None else torch.device(target).type != "cpu"
        if name in COPIES and (here or lands_here):
            lands_here = self._count_copy(name, args, kwargs, lands_here=lands_here)
        elif here and any(tensor.dim() for tensor in there):
            raise RuntimeError(f"{MIXED}, {self.device} and cpu! ({func})")
        self._count_waits(name, args, here)
        is_pinned = kwargs.pop("pin_memory", False)
        if self.device.type == "mps":
            _refuse_as_mps(name, args, kwargs, is_pinned=is_pinned, lands_here=lands_here)
        if target is not None:
            kwargs["device"] = "cpu"
            if name == "to" and len(args) > 1 and isinstance(args[1], (str, torch.device)):
                kwargs.pop("device")
                args = (args[0], torch.device("cpu"), *args[2:])
        args, kwargs = tree_map(_numbers, args), tree_map(_numbers, kwargs)
        if name == "_varlen_attn":
            func = varlen_attention
        result = func(*args, **kwargs)
        if here and name == self.falsified:
            result = result * 1.5
        if is_pinned:
            self._pinned.append(result)
        if not lands_here:
            return result
        return self._settle(func, args, kwargs, result, here, name)

    def _settle(
        self, func: Any, args: Any, kwargs: Any, result: Any, here: list[OnDevice], name: str
    ) -> Any:
        """Wrap a result; count the kernel and record it unless it is only a view."""
        owners = {tensor.held.untyped_storage().data_ptr(): tensor for tensor in here}
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.operations.add(func.name() if hasattr(func, "name") else name)
        if self.device.type == "mps" and any(leaf.dtype == torch.float64 for leaf in leaves):
            raise TypeError(NO_FLOAT64)
        fresh = [leaf for leaf in leaves if leaf.untyped_storage().data_ptr() not in owners]
        if name.endswith("_") or fresh or kwargs.get("out") is not None:
            written = sum(leaf.nbytes for leaf in leaves)
            self.written_bytes += written if not name.startswith("empty") else 0
            self.largest_written = max(self.largest_written, written)
            self.counts.kernels += not name.startswith("empty")
        if self.capturing is not None:
            self.capturing.operations.append((func, args, kwargs, result))
        given = {id(tensor.held): tensor for tensor in here}

        def wrapped(leaf: Any) -> Any:
            if id(leaf) in given or not isinstance(leaf, Tensor):
                return given.get(id(leaf), leaf)
            return self._wrap(leaf, here)

        return tree_map(wrapped, result)

    def _wrap(self, held: Tensor, here: list[OnDevice]) -> OnDevice:
        pointer = held.untyped_storage().data_ptr()
        for tensor in here:
            if tensor.held.untyped_storage().data_ptr() == pointer and held.numel():
                return OnDevice(held, self.device, tensor.allocation)
        if self.refusals or self.allocated + held.nbytes > self.limit_bytes:
            self.refusals = max(0, self.refusals - 1)
            raise self.refusal()
        return OnDevice(held, self.device, Allocation(self, held.nbytes))

    def _count_copy(self, name: str, args: Any, kwargs: Any, *, lands_here: bool) -> bool:
        """Count a copy between the sides. Return True if its result is on the device."""
        source, target = (args[1], args[0]) if name == "copy_" else (args[0], None)
        if name == "copy_":
            lands_here = isinstance(target, OnDevice)
        is_here = isinstance(source, OnDevice)
        waits_not = kwargs.get("non_blocking") or any(arg is True for arg in args[2:])
        if is_here == lands_here:
            return lands_here
        if self.capturing is not None:
            raise RuntimeError(CAPTURING)
        if lands_here:
            self.counts.uploads += 1
            self.counts.pageable += not self._is_pinned(source)
        else:
            self.counts.downloads += 1
            self.counts.waits += not (waits_not and self._is_pinned(target))
        return lands_here

    def _is_pinned(self, tensor: Tensor | None) -> bool:
        if tensor is None:
            return False
        pointer = tensor.untyped_storage().data_ptr()
        return any(each.untyped_storage().data_ptr() == pointer for each in self._pinned)

    def _count_waits(self, name: str, args: Any, here: list[OnDevice]) -> None:
        is_boolean = name in ("index", "index_put_", "index_put") and any(
            isinstance(leaf, OnDevice) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1])
        )
        if here and (name in WAITS or is_boolean):
            if self.capturing is not None:
                raise RuntimeError(CAPTURING)
            self.counts.waits += 1


def _refuse_as_mps(name: str, args: Any, kwargs: Any, *, is_pinned: bool, lands_here: bool) -> None:
    """Refuse what MPS does not have, or has mistaken."""
    if is_pinned:
        raise RuntimeError("MPS has no pinned memory")
    if lands_here and kwargs.get("dtype") == torch.float64:
        raise TypeError(NO_FLOAT64)
    if name == "scaled_dot_product_attention" and lands_here and not args[0].held.is_contiguous():
        raise RuntimeError(
            "the queries are not contiguous: other rows would be read (pytorch#181133)"
        )


def _numbers(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    *rest: object,
) -> tuple[Tensor, Tensor, Tensor]:
    """FlashAttention's variable-length attention, sequence by sequence in float32."""
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert key.stride(-1) == value.stride(-1) == query.stride(-1) == 1
    groups = query.shape[1] // key.shape[1]
    assert enable_gqa or groups == 1
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    begins, places = cu_seq_q.tolist(), cu_seq_k.tolist()
    for row in range(len(begins) - 1):
        tokens, place = begins[row + 1] - begins[row], places[row]
        seen = int(seqused_k[row]) if seqused_k is not None else places[row + 1] - place
        assert (tokens <= max_q, seen <= max_k) == (True, True)
        q = query[begins[row] : begins[row + 1]].float().transpose(0, 1)
        k, v = (
            store[place : place + seen].float().transpose(0, 1).repeat_interleave(groups, 0)
            for store in (key, value)
        )
        scores = q @ k.transpose(1, 2) * (scale or q.shape[-1] ** -0.5)
        if is_causal:
            hidden = torch.ones(tokens, seen, dtype=torch.bool).triu_(seen - tokens + 1)
            scores = scores.masked_fill(hidden, -torch.inf)
        attended = torch.softmax(scores, -1) @ v
        out[begins[row] : begins[row + 1]] = attended.transpose(0, 1).to(out.dtype)
    return out, torch.zeros(0), torch.zeros(0)


@contextlib.contextmanager
def _patched_mps(gpu: FakeDevice) -> Iterator[None]:
    """torch's functions for MPS on a machine without it."""

    def wait() -> None:
        gpu.counts.waits += 1

    functions: dict[str, Any] = {
        "recommended_max_memory": lambda: gpu.limit_bytes,
        "driver_allocated_memory": lambda: gpu.allocated,
        "current_allocated_memory": lambda: gpu.allocated,
        "synchronize": wait,
        "empty_cache": lambda: None,
    }
    known = {"is_available": lambda: True, "get_name": lambda: "Apple M4"}
    with (
        mock.patch.multiple(torch.mps, **functions),
        mock.patch.multiple(torch.backends.mps, **known),
    ):
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(False)


@contextlib.contextmanager
def _patched_torch(gpu: FakeDevice) -> Iterator[None]:
    """torch's functions for a device that a build for CPUs does not have."""

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            pass

        def record(self, stream: object = None) -> None:
            pass

        def synchronize(self) -> None:
            gpu.counts.waits += 1

        def elapsed_time(self, other: Event) -> float:
            return 1.0

    class Stream:
        def __init__(self, device: object = None) -> None:
            self.name = "side"

        def wait_stream(self, other: object) -> None:
            pass

        wait_event = wait_stream

        def synchronize(self) -> None:
            gpu.counts.waits += 1

    @contextlib.contextmanager
    def stream(wanted: Any) -> Iterator[None]:
        before, gpu.stream = gpu.stream, wanted.name
        yield
        gpu.stream = before  # not in a finally: torch's own does the same

    @contextlib.contextmanager
    def graph(recorded: Graph, **options: object) -> Iterator[None]:
        before, gpu.stream = gpu.stream, "side"
        if gpu.failing == "begin":
            raise RuntimeError("CUDA error: capture could not begin")
        gpu.capturing = recorded
        try:
            yield
            if gpu.failing == "body":
                raise RuntimeError(CAPTURING)
        finally:
            gpu.capturing = None
            if gpu.failing == "end":
                raise RuntimeError("CUDA error: capture was invalidated")
        gpu.stream = before

    def set_stream(wanted: Any) -> None:
        gpu.stream = wanted.name

    def wait(device: object = None) -> None:
        gpu.counts.waits += 1

    def current(device: object = None) -> Any:
        found = Stream()
        found.name = gpu.stream
        return found

    Graph.gpu = gpu
    known = types.SimpleNamespace(name="Fake GPU", major=9, is_integrated=False)
    functions: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "is_bf16_supported": lambda including_emulation=True: True,
        "device": lambda device: contextlib.nullcontext(),
        "set_device": lambda device: None,
        "get_device_properties": lambda device=None: known,
        "get_device_name": lambda device=None: known.name,
        "Event": Event,
        "Stream": Stream,
        "stream": stream,
        "set_stream": set_stream,
        "current_stream": current,
        "synchronize": wait,
        "mem_get_info": lambda d=None: (gpu.limit_bytes - gpu.allocated, gpu.limit_bytes),
        "memory_allocated": lambda device=None: gpu.allocated,
        "memory_reserved": lambda device=None: gpu.allocated,
        "max_memory_allocated": lambda device=None: gpu.most_allocated,
        "reset_peak_memory_stats": lambda device=None: setattr(
            gpu, "most_allocated", gpu.allocated
        ),
        "empty_cache": lambda: None,
        "CUDAGraph": Graph,
        "graph": graph,
        "graph_pool_handle": object,
    }
    settings = mock.patch.object(torch._C, "_accelerator_setAllocatorSettings")
    with mock.patch.multiple(torch.cuda, **functions), settings:
        torch._C._set_only_lift_cpu_tensors(True)
        before = torch.backends.cuda.cudnn_sdp_enabled()
        try:
            yield
        finally:
            torch.backends.cuda.enable_cudnn_sdp(before)
            torch._C._set_only_lift_cpu_tensors(False)
