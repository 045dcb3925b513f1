"""Write a checkpoint with random weights in a published model's true shapes into a folder.

python -m benchmarks.checkpoint 256m build/256m
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlmbatch.bench.checkpoint import write_checkpoint
from vlmbatch.bench.shapes import SHAPES

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(write_checkpoint(arguments.shape, arguments.folder))
