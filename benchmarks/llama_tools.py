"""Run llama.cpp's tools and parse their output."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vlmbatch.bench.rows import Measurement
from vlmbatch.errors import VlmbatchError

CELLS = 256
"""llama.cpp rounds the KV cache of each sequence up to a multiple of this."""
CHECK_TOKENS = 128
CHECK_TEXT = " ".join(
    f"the {size} {color} {form} is {place} of"
    for size, color, form, place in itertools.product(
        ("small", "large"),
        ("red", "green", "blue"),
        ("circle", "square", "star", "triangle"),
        ("left", "above"),
    )
)
"""Words without digits and capitals, which both sides tokenize in the same way."""
VISION_SIZE = 4
"""Tiles of the picture that llama.cpp encodes, side by side; it adds the overview."""


class ToolError(VlmbatchError):
    """A tool of llama.cpp is missing, or failed."""


@dataclasses.dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp's tools, and the weights as GGUF files.

    Attributes:
        folder: Folder of the tools.
        text: The language model.
        vision: The vision encoder and connector.
        picture: A picture of ``VISION_SIZE`` tiles.
        threads: Number of compute threads.
        options: Further options of every tool.
    """

    folder: Path
    text: Path
    vision: Path
    picture: Path
    threads: int
    options: Sequence[str] = ()

    def has(self, tool: str) -> bool:
        """True if a tool was built."""
        return (self.folder / tool).is_file()

    def run(self, tool: str, *arguments: object) -> str:
        """Run a tool and return its output, stdout and stderr.

        Raises:
            ToolError: It is missing, or failed.
        """
        command = [str(self.folder / tool), *map(str, arguments), *self.options]
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except OSError as error:
            raise ToolError(
                f"{tool} cannot be run: {error}; --bin names the folder with llama.cpp's tools"
            ) from error
        output = done.stdout.decode(errors="replace")
        if done.returncode:
            raise ToolError(
                "\n".join(
                    [
                        f"{shlex.join(command)}: exit code {done.returncode}",
                        *output.splitlines()[-8:],
                    ]
                )
            )
        return output

    def version(self) -> str:
        """llama.cpp's own version string."""
        return version_of(self.run("llama-batched-bench", "--version"))

    def decode(self, row: Measurement) -> float:
        """Decode as many sequences as our row, with a shared prompt; return tokens a second."""
        prompt, new, count = (
            row.details[key] for key in ("prompt_tokens", "new_tokens", "sequences")
        )
        cells = count * -(-(prompt + new) // CELLS) * CELLS
        return batch_figures(
            self._batch("-c", cells, "-npp", prompt, "-ntg", new, "-npl", count, "-pps")
        )["speed_tg"]

    def prefill(self, row: Measurement) -> float:
        """Prefill as many prompts as our row, none of them shared; return tokens a second."""
        tokens, count = row.details["prompt_tokens"], row.details["prompts"]
        cells = count * -(-(tokens + 1) // CELLS) * CELLS
        return batch_figures(self._batch("-c", cells, "-npp", tokens, "-ntg", 1, "-npl", count))[
            "speed_pp"
        ]

    def _batch(self, *arguments: object) -> str:
        return self.run(
            "llama-batched-bench",
            "-m",
            self.text,
            "-t",
            self.threads,
            "--output-format",
            "jsonl",
            *arguments,
        )

    def tiles(self, row: Measurement) -> float:
        """Run the vision encoder; return tiles a second."""
        output = self.run(
            *(
                "llama-mtmd-cli",
                "-m",
                self.text,
                "--mmproj",
                self.vision,
                "--image",
                self.picture,
                "-t",
                self.threads,
            ),
            *("-p", "What is this?", "-n", 1, "-c", 2048, "--chat-template", "vicuna"),
        )
        return tile_rate(output)

    def log_likelihood(self) -> float:
        """Return the mean log-probability of the second half of the first ``CHECK_TOKENS`` tokens
        of ``CHECK_TEXT``.
        """
        size = CHECK_TOKENS
        arguments = (
            "-p",
            CHECK_TEXT,
            "-c",
            size,
            "-b",
            size,
            "--chunks",
            1,
            "-t",
            self.threads,
            "-ctk",
            "f32",
            "-ctv",
            "f32",
        )
        return -math.log(
            first_perplexity(self.run("llama-perplexity", "-m", self.text, *arguments))
        )


def version_of(output: str) -> str:
    """Extract the version from the output of ``--version``."""
    found = re.search(r"^version: (.+)$", output, re.MULTILINE)
    return found[1].strip() if found else "unknown version"


def batch_figures(output: str) -> dict[str, float]:
    """Parse the last line of JSON figures from llama-batched-bench.

    Raises:
        ToolError: There is none: the work did not fit into the KV cache.
    """
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise ToolError(f"llama-batched-bench measured nothing: {' '.join(output.split())[-500:]}")
    figures: dict[str, float] = json.loads(lines[-1])
    return figures


def tile_rate(output: str) -> float:
    """Compute tiles a second from the log of llama-mtmd-cli, which has the tiles and the time of
    each encoder call.

    Raises:
        ToolError: The log has none.
    """
    tiles = [int(found) for found in re.findall(r"encoding mtmd batch, n_chunks = (\d+)", output)]
    times = [int(found) for found in re.findall(r"mtmd batch encoding done in (\d+) ms", output)]
    if not sum(times) or len(tiles) != len(times):
        raise ToolError(f"llama-mtmd-cli encoded nothing: {' '.join(output.split())[-500:]}")
    return 1000 * sum(tiles) / sum(times)


def first_perplexity(output: str) -> float:
    """Parse the first figure from llama-perplexity.

    Raises:
        ToolError: There is none.
    """
    found = re.search(r"\[1\]([\d.]+)", output)
    if not found:
        raise ToolError(f"llama-perplexity measured nothing: {' '.join(output.split())[-500:]}")
    return float(found[1])
