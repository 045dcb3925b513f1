"""8-bit weights: how far they are from the checkpoint's, what multiplies them, what memory they
take, and what becomes of the answers.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tests.checkpoints import write_tiny_checkpoint
from tests.engine.reference import answers, run_all
from tests.engine.torch.fake_device import FakeDevice
from tests.engine.torch.test_parity import assert_same, mixed_requests, open_tiny, wanted_answers
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Conversation
from vlmbatch.engine.torch.budget import CAPS, MemoryBudget
from vlmbatch.engine.torch.cpu import int8 as digits
from vlmbatch.engine.torch.cpu import kernels
from vlmbatch.engine.torch.cpu.onednn import BANDS
from vlmbatch.engine.torch.cpu.timing import Stopwatch
from vlmbatch.engine.torch.linear import Linear, QuantizedLinear, quantize
from vlmbatch.engine.torch.model import TextLayer
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.engine.torch.weights import is_quantized, load_model
from vlmbatch.errors import OutOfMemoryError
from vlmbatch.read.pictures.decode import load_image
from vlmbatch.tasks import DEFAULT_PROMPTS
from vlmbatch.write import read_records
from vlmbatch.write.summary import read_summary

SAMPLES = Path(__file__).parents[3] / "sample_data"
CPU = torch.device("cpu")
has_digits = pytest.mark.skipif(
    not digits.can_prepack_int8(), reason="no exact product of 8-bit numbers on this processor"
)


def random_quantized(outputs: int, inputs: int, seed: int = 0) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(seed)
    weight, scale = quantize(torch.randn(outputs, inputs, generator=generator))
    return QuantizedLinear(weight, scale=scale)


def exact_product(linear: QuantizedLinear, x: torch.Tensor) -> torch.Tensor:
    return x.double() @ (linear.weight.double() * linear.scale.double()[:, None]).t()


@pytest.mark.parametrize("name", ["demo", "tiny"])
def test_no_weight_moves_by_more_than_half_a_step(tiny: Path, name: str) -> None:
    folder = find_checkpoint("demo").folder if name == "demo" else tiny
    quantized = {
        name: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if is_quantized(name)
    }
    shape = ModelShape.from_checkpoint(find_checkpoint(str(folder)))
    assert len(quantized) == 7 * shape.text.layers + 1
    for name, tensor in quantized.items():
        weight, scale = quantize(tensor)
        assert (weight.dtype, scale.dtype) == (torch.int8, torch.float32)
        error = (weight.double() * scale[:, None] - tensor.double()).abs()
        assert (error <= 0.50001 * scale[:, None]).all(), name
        assert torch.equal(
            weight.abs().amax(dim=1), torch.full((len(weight),), 127, dtype=torch.int8)
        ), name


def test_a_row_of_zeros_stays_one() -> None:
    weight, scale = quantize(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    assert torch.equal(
        weight.float() * scale[:, None], torch.tensor([[0.0, 0.0], [64 * 2 / 127, -2.0]])
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [1, 100, 1 << 20])
@torch.inference_mode()
def test_the_matrix_turned_back_gives_its_product_at_every_block_size(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, block: int
) -> None:
    monkeypatch.setattr("vlmbatch.engine.torch.linear.CPU_BLOCK", block)
    linear = dataclasses.replace(random_quantized(50, 40), bias=torch.randn(50, dtype=dtype))
    x = torch.randn(2, 3, 40, dtype=dtype) * 30
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    wanted = exact_product(linear, x) + linear.bias.double()  # type: ignore[union-attr]
    found = linear(x)
    assert found.dtype == dtype
    assert (found.double() - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_elsewhere_than_on_a_cpu_the_product_is_as_exact_and_moves_five_bytes_a_weight(
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(1)
    linear = dataclasses.replace(random_quantized(64, 2048), bias=torch.ones(64, dtype=dtype))
    x = (torch.randn(9, 2048, generator=generator) * 90).to(dtype)
    with FakeDevice() as gpu:
        moved = dataclasses.replace(
            linear,
            weight=gpu.put(linear.weight),
            scale=gpu.put(linear.scale),
            bias=gpu.put(linear.bias),
        )
        found = gpu.get(moved(gpu.put(x)))
    wanted = exact_product(linear, x) + 1  # sums of integers alone would pass float16's range
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert found.dtype == dtype
    assert (found.double() - wanted).abs().max() <= tolerance * wanted.abs().max()
    # The matrix is read and written once, widened, and read by the product.
    assert gpu.largest_written == dtype.itemsize * linear.weight.numel()
    assert gpu.written_bytes <= 1.1 * gpu.largest_written


@has_digits
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 40), (960, 576), (33, 7)])
@torch.inference_mode()
def test_the_product_of_digits_is_that_of_the_weights(
    outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    linear = random_quantized(outputs, inputs)
    product = digits.prepack_int8(linear)
    x = (
        torch.randn(9, inputs, generator=torch.Generator().manual_seed(1))
        * torch.logspace(-6, 6, 9)[:, None]
    ).to(dtype)
    x[4] = 0
    found, wanted = product(x), exact_product(linear, x)
    assert found.dtype == dtype
    # Inputs of 16 bits are rounded by half a step of the second digit; the rest is what the number
    # format of the result rounds.
    half_step = x.double().abs().amax(dim=1, keepdim=True) / 127 / 512
    moved = half_step * (linear.weight.double().abs() * linear.scale.double()[:, None]).sum(dim=1)
    rounded = wanted.abs() * (2**-8 if dtype == torch.bfloat16 else 1e-5)
    assert ((found.double() - wanted).abs() <= 1.02 * moved + rounded + 1e-25).all()
    assert torch.equal(product(x[None]), found[None])
    alone = torch.cat([product(row[None]) for row in x])
    torch.testing.assert_close(alone, found, rtol=1e-5, atol=0)


@has_digits
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_the_layout_can_be_undone_for_many_rows(dtype: torch.dtype) -> None:
    linear = random_quantized(48, 40)
    generator = torch.Generator().manual_seed(3)
    product = digits.prepack_int8(linear, (True, True, True, False))
    for rows in (1, 31, 127, 128, 300):
        x = torch.randn(rows, 40, generator=generator).to(dtype)
        found, plain = product(x), linear(x)
        # Digits round their inputs; the matrix that is turned back gives the plain product.
        assert torch.equal(found, plain) == (rows >= 128)
        atol = 1e-3 if dtype == torch.float32 else 0.15
        torch.testing.assert_close(found, plain, rtol=0, atol=atol)


@has_digits
@torch.inference_mode()
def test_digits_hide_no_number_that_is_not_finite() -> None:
    product = digits.prepack_int8(random_quantized(16, 8))
    x = torch.ones(3, 8)
    x[0, 3], x[1, 5] = float("nan"), float("inf")
    assert product(x).isfinite().all(dim=1).tolist() == [False, False, True]


def quantized_copy(folder: Path, target: Path) -> Path:
    """The checkpoint with the weights that its 8-bit numbers stand for, in float32: what
    transformers can load.
    """
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if is_quantized(name):
            weight, scale = quantize(tensor)
            tensors[name] = weight.float() * scale[:, None]
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_answers_are_those_of_transformers_with_the_weights_that_the_8_bits_stand_for(
    tiny: Path, tmp_path: Path
) -> None:
    engine, preparer = open_tiny(tiny, quantize="int8")
    assert (engine.dtype, engine.network.quantized) == ("float32+int8", True)
    requests = mixed_requests(preparer)
    assert_same(
        engine,
        requests,
        wanted_answers(quantized_copy(tiny, tmp_path / "copy")),
        find_checkpoint(str(tiny)).end_token_ids(),
    )


def test_a_tied_head_is_quantized_and_the_embeddings_stay(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tied", tie=True)
    model = open_tiny(folder, quantize="int8")[0].network
    assert isinstance(model.language.head, QuantizedLinear)
    assert model.language.embedding.dtype == torch.float32
    assert torch.equal(model.language.head.weight, quantize(model.language.embedding)[0])
    assert held_bytes(model) == model.shape.weight_bytes(4, quantized=True)


@has_digits
def test_measuring_replaces_the_plain_matrix_and_keeps_no_copy(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny, quantize="int8")
    plain = answers(engine, mixed_requests(preparer))
    engine, preparer = open_tiny(tiny, quantize="int8")
    model = engine.network
    places = list(kernels.matrices(model.vision, model.language))
    chosen = {
        place.kind: [BANDS[band] for band in place.bands]
        for place in places
        if not place.kind.startswith("vision.")
    }
    assert set(chosen) == {"qkv", "out", "gate_up", "down", "head"}
    kernels.use_kernels(model.vision, model.language, chosen)
    assert all(
        isinstance(place.linear, digits.Int8Linear) != place.kind.startswith("vision.")
        for place in places
    )
    assert kernels.packed_bytes(model.vision, model.language, chosen=True) == 0
    found = answers(engine, mixed_requests(preparer))
    tokens = [pair for key in plain for pair in zip(plain[key], found[key], strict=False)]
    assert sum(a == b for a, b in tokens) >= 0.95 * len(
        tokens
    )  # a random model has near ties, and what follows one differs


def test_measured_kernels_of_a_quantized_model_are_known_kinds(tiny: Path) -> None:
    model = open_tiny(tiny, quantize="int8")[0].network
    chosen = kernels.choose_kernels(model.vision, model.language, Stopwatch(1).fastest)
    kernels.use_kernels(model.vision, model.language, chosen)
    for place in kernels.matrices(model.vision, model.language):
        if not place.kind.startswith("vision."):
            assert isinstance(
                place.linear, digits.Int8Linear if place.kind in chosen else QuantizedLinear
            )


def held_bytes(model: object) -> int:
    """Bytes of all weights that a model holds, shared ones once; the vision encoder's unquantized
    ones as the shape counts them.
    """
    shape = model.shape  # type: ignore[attr-defined]
    language = model.language  # type: ignore[attr-defined]
    tensors = [language.embedding, language.norm]
    for layer in language.layers:
        assert isinstance(layer, TextLayer)
        tensors += [layer.input_norm, layer.mlp_norm]
    for linear in [
        language.head,
        *(
            getattr(layer, name)
            for layer in language.layers
            for name in ("qkv", "out", "gate_up", "down")
        ),
    ]:
        tensors += [linear.weight, *([linear.scale] if isinstance(linear, QuantizedLinear) else [])]
    distinct = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    whole_text = (
        sum(outputs * inputs for outputs, inputs in shape.text_layer_matrices)
        + 2 * shape.text.hidden
    )
    text = (
        shape.text.layers * whole_text
        + shape.text.hidden
        + (1 if shape.tied else 2) * shape.text.vocabulary * shape.text.hidden
    )
    return sum(distinct.values()) + (shape.parameters - text) * 4


def test_the_budget_counts_what_is_held(tiny: Path) -> None:
    for quantize_to in ("none", "int8"):
        engine = open_tiny(tiny, quantize=quantize_to)[0]
        assert (
            engine.budget.weight_bytes
            == engine.stats.memory["weight_bytes"]
            == held_bytes(engine.network)
        )
    text_bytes = 4 * (
        sum(o * i for o, i in engine.network.shape.text_layer_matrices) * 3
        + engine.network.shape.text.vocabulary * 48
    )
    assert engine.network.shape.weight_bytes(4) - engine.budget.weight_bytes > 0.65 * text_bytes


def test_a_model_that_fits_in_8_bits_only_is_refused_with_that_advice() -> None:
    from vlmbatch.engine.torch.shape import TextShape, VisionShape

    shape = ModelShape(
        VisionShape(768, 12, 12, 3072, 512, 16, 1e-6),
        TextShape(576, 30, 9, 3, 64, 1536, 49280, 8192, 1e-5, 1e5),
        4,
        49190,
        False,
    )
    limit = 900 << 20
    with pytest.raises(OutOfMemoryError, match="--quantize int8"):
        MemoryBudget(shape, 4, limit, CAPS["cpu"]).check("small", 64)
    MemoryBudget(shape, 4, limit, CAPS["cpu"], quantized=True).check("small", 64)


def test_loading_holds_one_matrix_twice_and_no_more(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor that is quantized is in its small form before the next one is read."""
    read: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def watched(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alive.append(sum(earlier() is not None for earlier in read))
        read.append(weakref.ref(weight))
        return quantize(weight)

    monkeypatch.setattr("vlmbatch.engine.torch.weights.quantize", watched)
    checkpoint = find_checkpoint(str(tiny))
    load_model(
        checkpoint, ModelShape.from_checkpoint(checkpoint), CPU, torch.float32, quantized=True
    )
    assert alive == [0] * (3 * 7 + 1)


def test_the_demo_answers_alike_on_nearly_all_samples() -> None:
    with open(SAMPLES / "content.csv", newline="", encoding="utf-8") as file:
        names = [
            row["file"]
            for row in csv.DictReader(file)
            if row["file"].startswith(("images/", "scans/"))
        ]
    asked = [DEFAULT_PROMPTS["caption"], DEFAULT_PROMPTS["ocr"], "How many shapes are there?"]
    texts = []
    for quantize_to in ("none", "int8"):
        engine, preparer = open_tiny(Path("demo"), quantize=quantize_to, max_new_tokens=64)
        assert engine.network.quantized == (quantize_to == "int8")
        assert isinstance(engine.network.language.head, QuantizedLinear) == engine.network.quantized
        requests = [
            preparer.prepare(
                Conversation.about("image", load_image(str(SAMPLES / name), 10**8)), asked
            )
            for name in names
        ]
        texts.append({key: done.text for key, done in run_all(engine, requests).items()})
    equal = [texts[0][key] == text for key, text in texts[1].items()]
    assert len(equal) == 3 * len(names) >= 50
    assert sum(equal) >= len(equal) - 3


def vlmbatch(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vlmbatch", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line_quantizes_records_it_and_does_not_mix(tmp_path: Path) -> None:
    arguments = [
        "caption",
        str(SAMPLES / "images"),
        "--model",
        "demo",
        "--device",
        "cpu",
        "-o",
        "x.jsonl",
        "--limit",
        "4",
    ]
    first = vlmbatch(*arguments, "--quantize", "int8", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    rows = list(read_records(tmp_path / "x.jsonl"))
    assert {row["dtype"] for row in rows} == {"float32+int8"}
    assert next(row["text"] for row in rows if row["id"] == "circle.png") == "A red circle."
    summary = read_summary(tmp_path / "x.jsonl")
    assert summary is not None
    assert (summary["job"]["quantize"], summary["identity"]["quantize"]) == ("int8", "int8")
    again = vlmbatch(*arguments, cwd=tmp_path)
    assert again.returncode == 1
    assert "quantize: int8 there, none here" in again.stderr
    assert vlmbatch(*arguments, "--quantize", "int8", cwd=tmp_path).returncode == 0
    dry = vlmbatch(*arguments, "--quantize", "int8", "--dry-run", cwd=tmp_path)
    assert "quantize: int8" in dry.stdout


def test_bench_measures_the_quantized_model(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from tests.bench.test_bench import SIZES
    from vlmbatch.cli.main import cli

    monkeypatch.setattr("vlmbatch.bench.run.choose_sizes", lambda device, **_: SIZES)
    rows = {}
    for name in ("none", "int8"):
        arguments = [
            "--model",
            str(tiny),
            "--device",
            "cpu",
            "--dtype",
            "float32",
            "--only",
            "decode",
            "--quantize",
            name,
            "--json",
            str(tmp_path / name),
        ]
        result = CliRunner().invoke(cli, ["bench", *arguments])
        assert result.exit_code == 0, result.output
        rows[name] = json.loads((tmp_path / name).read_text())
    assert rows["int8"]["machine"]["quantize"] == "int8"
    weights = [
        rows[name]["rows"][0]["details"]["weight_bytes_per_step"] for name in ("none", "int8")
    ]
    assert weights[0] == 4 * weights[1]


def test_plain_weights_are_plain(tiny: Path) -> None:
    model = open_tiny(tiny)[0].network
    assert type(model.language.head) is Linear
    x = torch.randn(2, 48)
    assert torch.equal(model.language.head(x), F.linear(x, model.language.head.weight))
