"""Amount of work of each measurement: enough for the device's full speed, little enough to wait
for.
"""

from __future__ import annotations

import dataclasses

PHASE_NAMES = ("gemm", "copy", "reading", "vision", "prefill", "decode", "first-token", "memory")
WORKLOAD_NAMES = ("photos", "frames", "questions", "lengths", "scans", "small")
NAMES = (*PHASE_NAMES, *WORKLOAD_NAMES)
"""All measurements, in the order of the table."""

QUICK_NAMES = ("gemm", "copy", "vision", "prefill", "decode", "first-token", "reading", "frames")
"""The measurements of ``--quick`` without ``--only``."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Counts, by measurement.

    Attributes:
        rounds: Repetitions of a workload.
        ceiling_seconds: Duration of each matrix product, copy and picture file.
        copy_bytes: Bytes per copy; far more than the caches hold.
        gemm_rows: Rows of the activations in the matrix products.
        tiles: Tiles of the vision measurement.
        prompts: Prompts of the prefill measurement.
        prompt_tokens: Tokens of each.
        decode_sequences: Sequences decoded together.
        decode_tokens: Tokens of each.
        photos, frames, questions, lengths, scans, small: Items of the workloads.
        files: Width and height of the picture files.
        batches: Batch sizes of transformers to choose from.
        singles: Items that transformers answers one at a time; its time is proportional to their
            number.
    """

    rounds: int = 3
    ceiling_seconds: float = 0.5
    copy_bytes: int = 256 << 20
    gemm_rows: int = 4096
    tiles: int = 12
    prompts: int = 3
    prompt_tokens: int = 1024
    decode_sequences: tuple[int, ...] = (1, 4, 16, 64)
    decode_tokens: int = 32
    photos: int = 4
    frames: int = 16
    questions: int = 8
    lengths: int = 16
    scans: int = 4
    small: int = 16
    files: tuple[tuple[int, int], ...] = ((640, 480), (1920, 1080), (4000, 3000))
    batches: tuple[int, ...] = (4, 16)
    singles: int = 8


LARGE = Sizes(
    copy_bytes=1 << 30,
    gemm_rows=16384,
    tiles=512,
    prompts=64,
    decode_sequences=(1, 4, 16, 64, 256),
    decode_tokens=64,
    photos=64,
    frames=512,
    lengths=256,
    scans=64,
    small=512,
    batches=(8, 32, 128),
)
"""For devices so parallel that less work would only measure their start-up."""

QUICK = Sizes(
    rounds=1,
    ceiling_seconds=0.2,
    tiles=4,
    prompts=1,
    prompt_tokens=512,
    decode_sequences=(1, 4, 16),
    decode_tokens=16,
    photos=1,
    frames=4,
    questions=4,
    lengths=4,
    scans=1,
    small=4,
    files=((640, 480), (1920, 1080)),
    batches=(4,),
    singles=2,
)


LARGE_QUICK = dataclasses.replace(
    LARGE,
    rounds=1,
    ceiling_seconds=0.2,
    tiles=128,
    prompts=16,
    photos=16,
    frames=128,
    lengths=64,
    scans=16,
    small=128,
    batches=(32,),
    singles=4,
)


def choose_sizes(device: str, *, quick: bool, rounds: int | None = None) -> Sizes:
    """Return the sizes for a kind of device (``cpu``, ``cuda``, ``mps``); ``rounds`` overrides."""
    whole, less = (Sizes(), QUICK) if device == "cpu" else (LARGE, LARGE_QUICK)
    sizes = less if quick else whole
    return dataclasses.replace(sizes, rounds=rounds or sizes.rounds)
