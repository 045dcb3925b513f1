"""Tiles reach the device as they are, copied without starting torch's threads for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.torch.test_parity import mixed_requests, open_tiny
from vlmbatch.engine.torch.cuda.uploads import TileUploads


class Operations(TorchDispatchMode):
    """Notes torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_tiles_of_several_requests_are_one_tensor(tiny: Path) -> None:
    payloads = [request.payload for request in mixed_requests(open_tiny(tiny)[1])[:2]]
    wanted = [(payload, number) for payload in payloads for number in range(len(payload.tiles))]
    with Operations() as operations:
        tiles = TileUploads(torch.device("cpu")).take(wanted)
    assert tiles.dtype == torch.uint8
    assert np.array_equal(tiles, np.concatenate([payload.tiles for payload in payloads]))
    # stack, cat and copy_ go to torch's threads, with a region for each tile
    assert not [n for n in operations.names if any(x in n for x in ("stack", "cat", "copy"))]
