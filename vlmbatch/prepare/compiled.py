"""Compile ``resize.c`` with the system's C compiler, in the background and only where it pays.

Pillow resizes until it has taken as long as compiling takes, so that a short run is not slowed. The
library is kept in a folder for caches: later runs are fast at once. Where there is no compiler or
another processor, and where a comparison with Pillow fails, Pillow goes on resizing.
"""

from __future__ import annotations

import functools
import logging
import subprocess
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from vlmbatch.native_library import NativeLibrary
from vlmbatch.prepare.resize import Resizer

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("resize.c")
COMPILER = "cc"
OPTIONS = ("-O3", "-ffp-contract=off")
"""Without contraction: a fused multiply-add could round a weight in its own way."""
MACHINE = "x86_64"
WORTH_SECONDS = 1.0
"""Processor time that Pillow takes before the routine is compiled: what compiling takes on a slow
machine.
"""
CHECKED_SIZES = (
    *(((61, 47), (128, 96)), ((150, 107), (64, 32)), ((40, 64), (64, 64))),
    *(((30, 30), (28, 26)), ((30, 30), (28, 24)), ((30, 31), (28, 26))),  # loses 4, 6, 5 of height
    *(((30, 30), (40, 28)), ((30, 5), (28, 4)), ((2, 400), (4, 398)), ((4, 400), (2, 398))),
)
"""Sizes, from and to, that are compared with Pillow: enlarged, reduced, of the same height, and
around the limit from which heights are resized first.
"""


class CompiledResizer:
    """Gives the routine as soon as there is one. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """``folder`` keeps the library; it may be missing or not writable."""
        self._library = NativeLibrary(SOURCE, folder, COMPILER, OPTIONS, machines=(MACHINE,))
        self._lock = threading.Lock()
        self._resizer: Resizer | None = None
        self._compiler: subprocess.Popen[bytes] | None = None
        self._may_load, self._may_compile = True, True
        self._pillow_seconds = 0.0

    def get(self) -> Resizer | None:
        """Return the routine; None as long as Pillow is to resize."""
        with self._lock:
            if self._may_load and (self._compiler is None or self._compiler.poll() is not None):
                self._may_load = False
                self._resizer = _load(self._library)
            return self._resizer

    def add_pillow_seconds(self, seconds: float) -> None:
        """Count processor time that Pillow took, and start the compiler when it would have paid."""
        with self._lock:
            self._pillow_seconds += seconds
            if self._pillow_seconds < WORTH_SECONDS or not self._may_compile:
                return
            self._may_compile = False
            if self._resizer is None:
                self._compiler = self._library.compile()
                self._may_load = self._compiler is not None

    def compile_now(self) -> None:
        """Compile the routine unless there is one, and wait for it: for measurements of what a long
        run does.
        """
        self.get()
        self.add_pillow_seconds(WORTH_SECONDS)
        if self._compiler is not None:
            self._compiler.wait()


@functools.cache
def shared_resizer(cache: Path) -> CompiledResizer:
    """Return the one of this process that keeps the routine in a folder for caches."""
    return CompiledResizer(cache / "native")


def _load(library: NativeLibrary) -> Resizer | None:
    """Load and check the library; None if it is not there or not to be trusted."""
    try:
        loaded = library.load()
        resizer = Resizer(loaded) if loaded is not None else None
    except OSError as error:
        logger.debug("pictures are resized by Pillow: %s", error)
        return None
    if resizer is not None and not agrees_with_pillow(resizer):
        logger.warning("pictures are resized by Pillow: the compiled routine computes otherwise")
        return None
    return resizer


def agrees_with_pillow(resizer: Resizer) -> bool:
    """Compare a few resized pictures, also read from arrays and from tiles."""
    random = np.random.default_rng(0)
    for (in_width, in_height), (width, height) in CHECKED_SIZES:
        pixels = random.integers(0, 256, (in_height, in_width, 3), np.uint8)
        image = Image.fromarray(pixels)
        expected = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
        tiles = np.empty((2, 2, 3, height // 2, width // 2), np.uint8)
        small = np.empty((1, 1, 3, 32, 32), np.uint8)
        for picture in (pixels, image):
            resizer.picture(picture, tiles)
            if not np.array_equal(tiles.transpose(0, 3, 1, 4, 2).reshape(expected.shape), expected):
                return False
        resizer.grid(tiles, small)
        overview = Image.fromarray(expected).resize((32, 32), Image.Resampling.LANCZOS)
        if not np.array_equal(small[0, 0].transpose(1, 2, 0), np.asarray(overview)):
            return False
    return True
