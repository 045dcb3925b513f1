"""Our engine beside llama.cpp: the same random weights, the same processor cores, the same work, in
turns.

    cmake -S llama.cpp -B build/llama -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \\
        -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_SERVER=OFF
    cmake --build build/llama -j 2 --target llama-batched-bench llama-mtmd-cli llama-perplexity
    pip install gguf
    python -m benchmarks.llama_cpp --bin build/llama/bin

What is measured are the phases of ``vlmbatch bench`` (decode, prefill, vision), one round of ours
and one of llama.cpp's after the other; each ratio is of the same round. llama.cpp's tools time
themselves, without start and loading, and have as many threads as torch has. They decode and
prefill random tokens and choose none; a decode step of ours includes choosing the tokens. Keys and
values are of llama.cpp's own default type (16 bits) unless ``--options`` says otherwise; ours are
of the model's. llama.cpp's sources are at https://github.com/ggml-org/llama.cpp, and in ``vendor/``
of llama-cpp-python's sdist.

Before anything is timed, both sides say how likely the same text is (``llama-perplexity``, if it
was built): equal weights give equal figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gguf_files import import_gguf, write_text, write_vision
from vlmbatch.bench.bench import Bench
from vlmbatch.bench.phases import PHASES
from vlmbatch.bench.pictures import photo
from vlmbatch.bench.rows import Row, number, summarize
from vlmbatch.bench.run import Settings, open_bench
from vlmbatch.bench.shapes import SHAPES
from vlmbatch.engine.torch.cache import Cache, PrefillAttention, Segment
from vlmbatch.errors import VlmbatchError
from vlmbatch.job import Job

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
CELLS = 256
"""llama.cpp rounds each sequence's places for keys and values up to a multiple of this."""
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
"""Words without digits and capitals, which both sides cut into tokens in the same way."""
VISION_SIZE = 4
"""Tiles of the picture that llama.cpp encodes, side by side; it adds the overview."""


class ToolError(VlmbatchError):
    """A tool of llama.cpp is not there, or failed."""


@dataclasses.dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp's tools and the weights as their files.

    Attributes:
        folder: Where the tools are.
        text: The language model.
        vision: The vision encoder and connector.
        picture: A picture of ``VISION_SIZE`` tiles.
        threads: How many compute.
        options: Further options of every tool.
    """

    folder: Path
    text: Path
    vision: Path
    picture: Path
    threads: int
    options: Sequence[str] = ()

    def has(self, tool: str) -> bool:
        """Whether a tool was built."""
        return (self.folder / tool).is_file()

    def run(self, tool: str, *arguments: object) -> str:
        """What a tool writes, to either stream.

        Raises:
            ToolError: It is not there, or failed.
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
        """What llama.cpp calls itself."""
        return version_of(self.run("llama-batched-bench", "--version"))

    def decode(self, row: Row) -> float:
        """Tokens a second of as many sequences as our row has, behind a prompt that they share."""
        prompt, new, count = (
            row.details[key] for key in ("prompt_tokens", "new_tokens", "sequences")
        )
        cells = count * -(-(prompt + new) // CELLS) * CELLS
        return batch_figures(
            self._batch("-c", cells, "-npp", prompt, "-ntg", new, "-npl", count, "-pps")
        )["speed_tg"]

    def prefill(self, row: Row) -> float:
        """Tokens a second of as many prompts as our row has, none of them shared."""
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

    def tiles(self, row: Row) -> float:
        """Tiles a second of the vision encoder."""
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
        """Mean log-probability of the second half of the first ``CHECK_TOKENS`` tokens of
        ``CHECK_TEXT``.
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
    """The version in what ``--version`` writes."""
    found = re.search(r"^version: (.+)$", output, re.MULTILINE)
    return found[1].strip() if found else "unknown version"


def batch_figures(output: str) -> dict[str, float]:
    """The last line of figures that llama-batched-bench writes as JSON.

    Raises:
        ToolError: There is none: the work did not fit into the places for keys and values.
    """
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise ToolError(f"llama-batched-bench measured nothing: {' '.join(output.split())[-500:]}")
    figures: dict[str, float] = json.loads(lines[-1])
    return figures


def tile_rate(output: str) -> float:
    """Tiles a second from the log of llama-mtmd-cli, which names how many tiles each call of the
    encoder has and what it took.

    Raises:
        ToolError: It names none.
    """
    tiles = [int(found) for found in re.findall(r"encoding mtmd batch, n_chunks = (\d+)", output)]
    times = [int(found) for found in re.findall(r"mtmd batch encoding done in (\d+) ms", output)]
    if not sum(times) or len(tiles) != len(times):
        raise ToolError(f"llama-mtmd-cli encoded nothing: {' '.join(output.split())[-500:]}")
    return 1000 * sum(tiles) / sum(times)


def first_perplexity(output: str) -> float:
    """The first figure that llama-perplexity writes.

    Raises:
        ToolError: There is none.
    """
    found = re.search(r"\[1\]([\d.]+)", output)
    if not found:
        raise ToolError(f"llama-perplexity measured nothing: {' '.join(output.split())[-500:]}")
    return float(found[1])


@torch.inference_mode()
def log_likelihood(bench: Bench) -> float:
    """What ``LlamaCpp.log_likelihood`` is, by our model."""
    from tokenizers import Tokenizer

    model = bench.subject.engine.network
    ids = torch.tensor(
        Tokenizer.from_file(str(bench.subject.checkpoint.require("tokenizer.json")))
        .encode(CHECK_TEXT)
        .ids[:CHECK_TOKENS]
    )
    cache = Cache(model.shape.text, model.device, model.dtype)
    row = cache.take(CHECK_TOKENS, lambda size: True)
    assert row is not None
    hidden = model.language(
        model.language.embed(ids),
        torch.arange(CHECK_TOKENS),
        PrefillAttention([Segment(row, CHECK_TOKENS)]),
    )
    half = CHECK_TOKENS // 2
    chances = model.language.logits(hidden[half:-1]).float().log_softmax(-1)
    return chances.gather(1, ids[half + 1 :, None]).mean().item()


@dataclasses.dataclass(frozen=True)
class Turn:
    """One measurement.

    Attributes:
        name: The work.
        phase: Which phase of our benchmark that is.
        sizes: How much of it, where that is not our benchmark's own size.
        theirs: The method of ``LlamaCpp`` that does as much.
        unit: Of both figures.
    """

    name: str
    phase: str
    sizes: dict[str, Any]
    theirs: str
    unit: str

    def ours(self, bench: Bench) -> Row:
        """One round of our side."""
        bench.sizes = dataclasses.replace(bench.sizes, rounds=1, **self.sizes)
        (row,) = PHASES[self.phase](bench)
        return row


def turns(bench: Bench, llama: LlamaCpp) -> list[Turn]:
    """What is measured."""
    counts = bench.sizes.decode_sequences
    found = [
        Turn(
            f"decode, {count} sequence{'' if count == 1 else 's'}",
            "decode",
            {"decode_sequences": (count,)},
            "decode",
            "tokens/s",
        )
        for count in counts
    ]
    found.append(
        Turn(f"prefill, {bench.sizes.prompt_tokens} tokens", "prefill", {}, "prefill", "tokens/s")
    )
    if llama.has("llama-mtmd-cli"):
        found.append(Turn("vision", "vision", {}, "tiles", "tiles/s"))
    return found


def measure(
    bench: Bench, llama: LlamaCpp, chosen: Iterable[Turn], rounds: int
) -> list[dict[str, Any]]:
    """One row a measurement: rates of both sides and their ratio, each with median, least and
    most.
    """
    chosen = list(chosen)
    pairs: list[list[tuple[float, float]]] = [[] for _ in chosen]
    for _ in range(rounds):
        for turn, found in zip(chosen, pairs, strict=True):
            row = turn.ours(bench)
            assert row.value is not None
            found.append(
                (
                    1 / row.value if row.unit.startswith("s ") else row.value,
                    getattr(llama, turn.theirs)(row),
                )
            )
    return [
        {
            "name": turn.name,
            "unit": turn.unit,
            "ours": summarize([ours for ours, _ in found]),
            "llama_cpp": summarize([theirs for _, theirs in found]),
            "ratio": summarize([ours / theirs for ours, theirs in found]),
        }
        for turn, found in zip(chosen, pairs, strict=True)
    ]


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as lines, medians with the least and the most behind them."""
    lines = [f"{'':<24}{'ours':>28}{'llama.cpp':>28}{'ours over llama.cpp':>28}"]
    for row in rows:
        cells = [_spread(row[key]) for key in ("ours", "llama_cpp", "ratio")]
        lines.append(f"{row['name']:<24}{cells[0]:>28}{cells[1]:>28}{cells[2]:>28}  {row['unit']}")
    return lines


def _spread(figures: dict[str, float]) -> str:
    spread = (
        f" ({number(figures['least'])} to {number(figures['most'])})"
        if figures["rounds"] > 1
        else ""
    )
    return f"{number(figures['median'])}{spread}"


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Writes the weights, checks that they are the same, measures, and prints.

    Raises:
        VlmbatchError: Something is missing.
    """
    import_gguf()
    dtype = DTYPES[options.dtype]
    bench = open_bench(
        Settings(
            Job(device="cpu", dtype=str(dtype).removeprefix("torch.")),
            shape=options.shape,
            quick=options.quick,
        )
    )
    files = [folder / f"{options.shape}-{options.dtype}-{part}.gguf" for part in ("text", "vision")]
    llama = LlamaCpp(
        options.bin,
        *files,
        folder / "picture.png",
        torch.get_num_threads(),
        shlex.split(options.options),
    )
    machine = bench.describe()
    say = sys.stderr if options.json else sys.stdout
    print(
        f"{machine['model']}, {machine['dtype']}, {machine['threads']} threads of "
        f"{machine['device_name']}, torch {machine['torch']}",
        file=say,
    )
    print(f"llama.cpp {llama.version()}", file=say)
    edge = bench.subject.shape.vision.image_size
    photo(0, VISION_SIZE * edge, edge).save(llama.picture)
    for path, write in zip(files, (write_text, write_vision), strict=True):
        write(bench.subject.checkpoint, path, dtype)
    if llama.has("llama-perplexity"):
        print(
            f"mean log-probability of the same tokens: ours {log_likelihood(bench):.6f}, "
            f"llama.cpp {llama.log_likelihood():.6f}",
            file=say,
        )
    chosen = [
        turn for turn in turns(bench, llama) if not options.only or turn.phase in options.only
    ]
    rows = measure(bench, llama, chosen, options.rounds)
    bench.subject.close()
    if options.json:
        json.dump(
            {"machine": machine | {"llama_cpp": llama.version()}, "rows": rows},
            sys.stdout,
            indent=2,
        )
        print()
    else:
        print("\n".join(table(rows)))


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bin", type=Path, required=True, metavar="FOLDER", help="where llama.cpp's tools are"
    )
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        default="256m",
        help="random weights in the shapes of this SmolVLM2",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="f32", help="number format of the weights"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often both sides take their turn"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=("decode", "prefill", "vision"),
        help="only these; may be given several times",
    )
    parser.add_argument("--quick", action="store_true", help="little work")
    parser.add_argument(
        "--options",
        default="",
        metavar="TEXT",
        help="further options of llama.cpp's tools, as in --options='-ctk f32 -ctv f32'",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            compare(options, Path(folder))
    except VlmbatchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
