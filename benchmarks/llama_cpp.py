"""Compare our engine with llama.cpp: the same random weights, processor cores and work, in turns.

    cmake -S llama.cpp -B build/llama -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \\
        -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_SERVER=OFF
    cmake --build build/llama -j 2 --target llama-batched-bench llama-mtmd-cli llama-perplexity
    pip install 'vlmbatch[llama]'
    python -m benchmarks.llama_cpp --bin build/llama/bin

The phases of ``vlmbatch bench`` (decode, prefill, vision) are measured, one round of ours after one
of llama.cpp's; each ratio is of the same round. llama.cpp's tools time themselves, without start
and loading, with as many threads as torch. They decode and prefill random tokens without sampling;
our decode steps include it. llama.cpp's KV cache has its default type (16 bits) unless
``--options`` says otherwise, ours the model's dtype. Sources of llama.cpp:
https://github.com/ggml-org/llama.cpp, and ``vendor/`` of llama-cpp-python's sdist.

Before any timing, both sides compute the likelihood of the same text (with ``llama-perplexity``, if
it was built): equal weights give equal figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.llama_tools import CHECK_TEXT, CHECK_TOKENS, VISION_SIZE, LlamaCpp
from vlmbatch.bench.bench import Bench
from vlmbatch.bench.phases import PHASES
from vlmbatch.bench.pictures import photo
from vlmbatch.bench.rows import Measurement, number, summarize
from vlmbatch.bench.run import Settings, open_bench
from vlmbatch.bench.shapes import SHAPES
from vlmbatch.convert import ConvertOptions, convert
from vlmbatch.engine.torch.cache import Cache, PrefillAttention, Segment
from vlmbatch.errors import VlmbatchError
from vlmbatch.gguf_files import import_gguf
from vlmbatch.job import Job

TYPES = {"f32": ("float32", "none"), "bf16": ("bfloat16", "none"), "q8_0": ("float32", "int8")}
"""Types of llama.cpp's weights, each with the dtype and the quantization of ours."""


@torch.inference_mode()
def log_likelihood(bench: Bench) -> float:
    """Return ``LlamaCpp.log_likelihood`` of our model."""
    from tokenizers import Tokenizer

    model = bench.subject.engine.network
    ids = torch.tensor(
        Tokenizer.from_file(str(bench.subject.checkpoint.require("tokenizer.json")))
        .encode(CHECK_TEXT)
        .ids[:CHECK_TOKENS]
    )
    cache = Cache(model.shape.text, model.device, model.dtype)
    row = cache.take(CHECK_TOKENS)
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
        phase: The phase of our benchmark.
        sizes: Amount of work, if it is not our benchmark's own.
        theirs: The method of ``LlamaCpp`` that does the same work.
        unit: Unit of both figures.
    """

    name: str
    phase: str
    sizes: dict[str, Any]
    theirs: str
    unit: str

    def ours(self, bench: Bench) -> Measurement:
        """Run one round of our side."""
        bench.sizes = dataclasses.replace(bench.sizes, rounds=1, **self.sizes)
        (row,) = PHASES[self.phase](bench)
        return row


def turns(bench: Bench, llama: LlamaCpp) -> list[Turn]:
    """List the measurements."""
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
    """Return one row per measurement: rates of both sides and their ratio, each with median,
    minimum and maximum.
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
    """Format the rows as lines: medians, then minimum and maximum."""
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
    """Write the weights, check that both sides agree on them, measure, and print.

    Raises:
        VlmbatchError: A tool or package is missing.
    """
    import_gguf()
    dtype, quantize = TYPES[options.dtype]
    bench = open_bench(
        Settings(
            Job.from_dict({"device": "cpu", "dtype": dtype, "quantize": quantize}),
            shape=options.shape,
            quick=options.quick,
        )
    )
    checkpoint = bench.subject.checkpoint
    text, vision, *_ = convert(checkpoint, "gguf", ConvertOptions(folder, options.dtype)).files
    llama = LlamaCpp(
        options.bin,
        text,
        vision,
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
    """Print a table, or JSON."""
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
        "--dtype", choices=TYPES, default="f32", help="number format of the weights"
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
