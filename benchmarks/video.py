"""Compare video sampling on one core: ours, a plain OpenCV loop, and PyAV decoding everything. All
three take the same frames as RGB.

    python -m benchmarks.video                    # writes a video of 1920 x 1080 first
    python -m benchmarks.video --seconds 300 --key-every 2 --rounds 2
    python -m benchmarks.video --video FILE

The video that is written is H.264 (x264, veryfast), with B-frames and a keyframe every 10 seconds.

Ours is the pipeline's reader, with the conversion of the sampled frames. OpenCV's loop reads every
frame and keeps the sampled ones; PyAV's decodes every frame and converts the sampled ones. The
sides take turns, each with one decoding thread, on one core. Their CPU times are compared; on one
core of an idle machine these are the wall times.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.sample import make_sampler

Array = npt.NDArray[Any]
WIDTH, HEIGHT, FPS = 1920, 1080, 25
WAYS: dict[str, dict[str, Any]] = {"--fps 1": {"fps": 1.0}, "--num-frames 16": {"num_frames": 16}}


def write_moving_video(path: Path, seconds: int, key_every_seconds: float = 10.0) -> None:
    """Draw a camera that pans over a textured field, with objects that move across it."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (HEIGHT // 24, (WIDTH + 800) // 24, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (WIDTH + 800, HEIGHT), interpolation=cv2.INTER_CUBIC)
    grain = rng.integers(0, 24, smooth.shape, np.uint8)
    field: npt.NDArray[np.uint8] = np.asarray(cv2.add(smooth, grain), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264",
            rate=FPS,
            options={
                "preset": "veryfast",
                "crf": "23",
                "g": str(round(key_every_seconds * FPS)),
                "sc_threshold": "0",
            },
        )
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(seconds * FPS):
            left = int(400 + 390 * np.sin(number / 60))
            picture = np.ascontiguousarray(field[:, left : left + WIDTH])
            for thing in range(4):
                x, y = (number * (5 + 3 * thing) + 400 * thing) % (WIDTH - 160), 120 + 230 * thing
                cv2.circle(
                    picture, (x + 80, y), 70, (60 * thing, 255 - 50 * thing, number % 256), -1
                )
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def ours(path: Path, way: dict[str, Any]) -> list[Array]:
    """Load the pictures as the pipeline does."""
    job = Job(inputs=(str(path),), media="video", **way)
    items = open_reader(job, sampler=make_sampler(job))
    return [np.asarray(item.load().frames[0]) for item in items]


def with_opencv(path: Path, wanted: set[int]) -> list[Array]:
    """Read every frame, and keep the sampled ones."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    found: list[Array] = []
    number = 0
    while True:
        there, picture = capture.read()
        if not there:
            return found
        if number in wanted:
            found.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        number += 1


def with_pyav(path: Path, wanted: set[int]) -> list[Array]:
    """Decode every frame, and convert the sampled ones."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return [
            frame.to_ndarray(format="rgb24")
            for number, frame in enumerate(container.decode(video=0))
            if number in wanted
        ]


def numbers_of(path: Path, way: dict[str, Any]) -> set[int]:
    """Compute the numbers of the sampled frames from their timestamps."""
    with av.open(str(path)) as container:
        times = sorted(
            float(packet.pts * packet.time_base)
            for packet in container.demux(video=0)
            if packet.pts is not None
        )
    if "num_frames" in way:
        return {
            int(number) for number in np.linspace(0, len(times) - 1, way["num_frames"], dtype=int)
        }
    seconds = np.arange(0, times[-1] + 1e-6, 1 / way["fps"])
    return {
        int(number)
        for number in np.searchsorted(np.array(times) - times[0], seconds + 1e-6, side="right") - 1
    }


def measure(path: Path, rounds: int) -> list[dict[str, Any]]:
    """Return one row per sampling method: median video frames a second of each side, and our ratios
    with their spread.
    """
    rows = []
    with av.open(str(path)) as container:
        total = sum(packet.size > 0 for packet in container.demux(video=0))
    for name, way in WAYS.items():
        wanted = numbers_of(path, way)
        sides: dict[str, Callable[[], list[Array]]] = {
            "ours": functools.partial(ours, path, way),
            "opencv": functools.partial(with_opencv, path, wanted),
            "pyav": functools.partial(with_pyav, path, wanted),
        }
        times = []
        for _ in range(rounds):
            found = {side: _timed(call) for side, call in sides.items()}
            assert len(found["ours"][0]) == len(wanted) == len(found["opencv"][0]), (
                "the sides do not take the same frames"
            )
            assert all(map(np.array_equal, found["ours"][0], found["pyav"][0])), (
                "the sides do not give the same pictures"
            )
            times.append({side: seconds for side, (_, seconds) in found.items()})
            del found
        row: dict[str, Any] = {
            "way": name,
            "video_frames": total,
            "taken": len(wanted),
            "rounds": rounds,
        }
        for side in sides:
            row[f"{side}_frames_per_second"] = total / statistics.median(
                round[side] for round in times
            )
        for side in ("opencv", "pyav"):
            ratios = [round[side] / round["ours"] for round in times]
            row[f"over_{side}"] = {
                "median": statistics.median(ratios),
                "min": min(ratios),
                "max": max(ratios),
            }
        rows.append(row)
    return rows


def _timed(call: Callable[[], list[Array]]) -> tuple[list[Array], float]:
    start = time.process_time()
    found = call()
    return found, time.process_time() - start


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--video", type=Path, help="a video to sample, instead of one that is written first"
    )
    parser.add_argument(
        "--seconds", type=int, default=120, help="length of the video that is written"
    )
    parser.add_argument(
        "--key-every", type=float, default=10.0, help="seconds from one key frame to the next in it"
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each side takes its turn")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(
            0, {max(os.sched_getaffinity(0))}
        )  # libavcodec then decides for one thread, too
    with tempfile.TemporaryDirectory() as folder:
        path = options.video or Path(folder) / "moving.mp4"
        if options.video is None:
            write_moving_video(path, options.seconds, options.key_every)
        rows = measure(path, options.rounds)
    if options.json:
        json.dump(rows, sys.stdout, indent=2)
        print()
        return
    sides = ("opencv", "pyav")
    print(f"{'way':>16}  {'taken':>6}  {'ours /s':>8}  {'OpenCV /s':>9}  {'PyAV /s':>9}", end="")
    print(f"  {'over OpenCV':>18}  {'over PyAV':>18}")
    for row in rows:
        rates = f"{row['ours_frames_per_second']:8.0f}"
        rates += "".join(f"  {row[f'{side}_frames_per_second']:9.0f}" for side in sides)
        ratios = "".join(
            "  {:>18}".format("{median:.2f} ({min:.2f}–{max:.2f})".format(**row[f"over_{side}"]))
            for side in sides
        )
        print(f"{row['way']:>16}  {row['taken']:>6}  {rates}{ratios}")


if __name__ == "__main__":
    main()
