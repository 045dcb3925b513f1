"""The benchmark measures what it says: the operations it counts are those that are computed,
answers have the length that was asked for, every row is there.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.checkpoints import write_tiny_checkpoint
from tests.engine.torch.fake_device import FakeDevice
from vlmbatch.bench import checkpoint as checkpoints
from vlmbatch.bench import flops, phases, pictures, shapes, workloads
from vlmbatch.bench.bench import Bench
from vlmbatch.bench.rows import Measurement, number, spread, summarize
from vlmbatch.bench.run import Settings, open_bench, run
from vlmbatch.bench.sizes import NAMES, PHASE_NAMES, QUICK_NAMES, WORKLOAD_NAMES, Sizes
from vlmbatch.bench.subject import Outcome, Subject
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.cli.main import cli, main
from vlmbatch.engine.torch.budget import KNOWN_PARAMETERS
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.errors import JobError, OutputError
from vlmbatch.job import Job
from vlmbatch.prepare import Preparer, UncutTiles

SIZES = Sizes(
    rounds=1,
    ceiling_seconds=0.01,
    copy_bytes=1 << 20,
    gemm_rows=64,
    tiles=3,
    prompts=2,
    prompt_tokens=200,
    decode_sequences=(1, 3),
    decode_tokens=4,
    photos=2,
    frames=3,
    questions=2,
    lengths=3,
    scans=2,
    small=3,
    files=((64, 48),),
    batches=(2,),
    singles=2,
)
LENGTHS = (3, 14, 6)


def settings_for(model: Path | str, **settings: object) -> Settings:
    return Settings(Job(device="cpu", dtype="float32"), model=str(model), **settings)  # type: ignore[arg-type]


def subject_for(tiny: Path) -> Subject:
    return open_bench(settings_for(tiny), SIZES).subject


def test_pictures_are_left_to_a_gpu_as_in_a_run(tiny: Path) -> None:
    with FakeDevice():
        settings = Settings(Job(device="cuda", dtype="float32"), model=str(tiny))
        subject = open_bench(settings, SIZES).subject
        assert subject.preparer("low").uncut_bytes == subject.engine.uncut_bytes > 0
        (request,) = subject.requests(pictures.photos(1, ((40, 30),)), ["Why?"], "full")
        assert isinstance(request.payload.tiles, UncutTiles)
    assert subject_for(tiny).preparer("low").uncut_bytes == 0


@pytest.fixture(scope="module")
def rows(tiny: Path) -> list[Measurement]:
    """Every row there is, workloads compared with transformers."""
    settings = settings_for(tiny, compare="transformers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workloads, "LENGTHS", LENGTHS)
        return list(run(open_bench(settings, SIZES), settings.names()))


def test_every_name_has_rows_with_figures(rows: list[Measurement]) -> None:
    assert list(dict.fromkeys(row.name for row in rows)) == list(NAMES)
    assert (tuple(phases.PHASES), tuple(workloads.WORKLOADS)) == (PHASE_NAMES, WORKLOAD_NAMES)
    assert set(QUICK_NAMES) < set(NAMES)
    for row in rows:
        assert not row.failed, row
        assert row.value is not None
        assert row.value > 0
        assert row.line().startswith(row.name)
    assert json.loads(json.dumps([dataclasses.asdict(row) for row in rows]))


def test_transformers_gives_the_same_tokens_one_at_a_time_and_padded(
    rows: list[Measurement],
) -> None:
    compared = [row for row in rows if "equal" in row.details]
    assert len(compared) == 2 * len(WORKLOAD_NAMES)
    assert "over generate, batches of 2" in compared[1].what
    for row in compared:
        assert row.details["equal"] == row.details["answers"], row
    answers = {
        row.name: row.details["answers"] for row in compared
    }  # the batch comes last: it has all of them
    assert answers == {
        "photos": 2,
        "frames": 3,
        "questions": 2,
        "lengths": 3,
        "scans": 2,
        "small": 3,
    }


def test_reading_and_decoding_are_compared_as_well(
    rows: list[Measurement], tiny: Path, tmp_path: Path
) -> None:
    compared = {
        row.what.strip(): row
        for row in rows
        if row.name in ("reading", "decode") and "ratio" in row.details
    }
    assert list(compared) == [
        "over transformers' image processor",
        "over generate, 1 sequence",
        "over generate, 3 sequences",
    ]
    assert all(
        row.unit == "x" and row.details["per_second"]["median"] > 0 for row in compared.values()
    )
    bench = open_bench(settings_for(tiny, compare="transformers"), SIZES)
    assert bench.reference is not None
    for width, height in ((300, 200), (100, 400)):
        path = pictures.write_jpeg(tmp_path / "photo.jpg", width, height)
        assert bench.reference.prepare(path) == bench.subject.preparer("full").num_tiles(
            width, height
        )
    bench.subject.close()


def test_workloads_are_what_their_rows_say(rows: list[Measurement]) -> None:
    details = {
        row.name: row.details
        for row in rows
        if "per_second" in row.details and "equal" not in row.details
    }
    assert details["photos"]["tiles"] == 13 + 17
    assert details["photos"]["new_tokens"] == 2 * 48
    assert details["frames"]["tiles"] == details["frames"]["answers"] == 3
    assert (details["questions"]["requests"], details["questions"]["answers"]) == (1, 2)
    assert details["lengths"]["new_tokens"] == sum(LENGTHS)
    assert details["small"]["tiles"] == 3
    together = {
        row.details["sequences"]: row.details["together"]
        for row in rows
        if "sequences" in row.details and row.name == "decode"
    }
    assert together == {1: 1, 3: 3}


def test_flops_are_those_that_the_reference_computes(tiny: Path) -> None:
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    model = transformers.SmolVLMForConditionalGeneration.from_pretrained(
        tiny, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    shape = ModelShape.from_checkpoint(find_checkpoint(str(tiny)))
    text, tokens = shape.text, 37
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.get_image_features(
            torch.rand(1, 3, 3, shape.vision.image_size, shape.vision.image_size)
        )
    assert counter.get_total_flops() == 3 * flops.tile_flops(shape)
    ids = torch.ones(1, tokens, dtype=torch.int64)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        out = model(input_ids=ids, logits_to_keep=1, use_cache=True)
    masked = (
        text.layers * (4 * tokens**2 - 2 * tokens * (tokens + 1)) * text.heads * text.head_dim
    )  # eager attention computes what the causal mask hides
    assert counter.get_total_flops() - masked == flops.prompt_flops(shape, tokens)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids[:, :1], past_key_values=out.past_key_values, logits_to_keep=1)
    assert counter.get_total_flops() == flops.token_flops(shape, tokens + 1)


def test_a_step_reads_every_weight_of_the_language_model_but_the_embeddings(tiny: Path) -> None:
    shape = ModelShape.from_checkpoint(find_checkpoint(str(tiny)))
    weights = sum(
        tensor.numel()
        for name, tensor in _tensors(tiny).items()
        if tensor.ndim > 1
        and "vision" not in name
        and "connector" not in name
        and "embed_tokens" not in name
    )
    assert flops.step_weight_bytes(shape, 4) == 4 * weights


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_answers_run_to_their_limits_and_are_the_beginnings_of_longer_ones(tiny: Path) -> None:
    subject = subject_for(tiny)
    requests = subject.requests(pictures.photos(4), ["Why?"], "low")
    whole = subject.run(requests, 12)
    assert [len(answer) for answer in whole.answers.values()] == [12] * 4
    cut = subject.run(requests, 12, limits=(1, 12, 3, 7))
    assert cut.answers == {
        key: whole.answers[key][:limit]
        for key, limit in zip(sorted(whole.answers), (1, 12, 3, 7), strict=True)
    }
    assert cut.new_tokens == 23
    assert subject.run(requests, 12).answers == whole.answers
    assert 0 < whole.stats.decode_tokens == 4 * 11  # the first token is the prefill's
    assert whole.seconds > 0


def test_the_end_token_ends_nothing(tiny: Path) -> None:
    subject = subject_for(tiny)
    ends = find_checkpoint(str(tiny)).end_token_ids()
    assert ends
    requests = subject.requests(pictures.photos(1), ["Why?"], "low")
    answer = subject.run(requests, 30).answers[0, 0]
    assert len(answer) == 30


def test_first_tokens_are_timed_one_after_the_other(tiny: Path) -> None:
    subject = subject_for(tiny)
    (request,) = subject.requests(pictures.photos(1), ["Why?"], "full")
    assert len(subject.first_token_seconds(request, 3)) == 3
    assert subject.engine.stats.max_sequences == 1
    assert subject.engine.stats.prefill_calls == 4
    assert subject.engine.stats.tiles == 4 * request.tiles  # none is known again


def test_what_cannot_be_done_is_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "short", context=64)
    found = list(run(open_bench(settings_for(folder), SIZES), ["photos", "frames"]))
    assert [(row.name, row.failed) for row in found] == [("photos", True), ("frames", False)]
    assert "the model's context is 64" in found[0].note
    assert found[0].line().endswith(found[0].note)


def test_peak_memory_sees_what_is_allocated() -> None:
    kept = []

    def allocate() -> Outcome:
        kept.append(np.ones(64 << 20, np.uint8))
        return Outcome()

    before = phases.used_bytes(torch.device("cpu"))
    peak, _ = phases.peak_bytes(allocate, torch.device("cpu"))
    assert peak - before > 50 << 20


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_shapes_have_the_published_sizes(tmp_path: Path, name: str) -> None:
    checkpoints.write_settings(name, tmp_path)
    found = find_checkpoint(str(tmp_path))
    published = dict(zip(shapes.SHAPES, KNOWN_PARAMETERS.values(), strict=True))
    # Random weights have an output matrix of their own, so that transformers and we read the same
    # file whatever it says about tied ones.
    assert ModelShape.from_checkpoint(found).parameters == pytest.approx(published[name], rel=0.12)
    assert Preparer.from_checkpoint(found).num_tiles(640, 480) == 13
    assert [Preparer.from_checkpoint(found).num_tiles(*size) for size in pictures.PHOTO_SIZES] == [
        13,
        17,
        13,
        13,
    ]


def test_a_random_checkpoint_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = shapes.SHAPES["256m"] | {
        "text": {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "rope_theta": 1e4,
        },
        "vision": {
            "model_type": "smolvlm_vision",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
        }
        | {"image_size": 64, "patch_size": 16},
    }
    monkeypatch.setitem(shapes.SHAPES, "small", small)
    monkeypatch.setattr(checkpoints, "VOCABULARY", 640)
    folder = checkpoints.cached_checkpoint("small", tmp_path / "cache")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert checkpoints.cached_checkpoint("small", tmp_path / "cache") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    (row,) = run(open_bench(settings_for(folder, only=["small"]), SIZES), ["small"])
    assert row.details["new_tokens"] == 3 * 32
    with pytest.raises(OutputError, match="TMPDIR"):
        checkpoints.cached_checkpoint("small", Path("/proc/nowhere"))


def test_pictures_differ_and_scans_repeat_themselves() -> None:
    assert len({picture.tobytes() for picture in pictures.photos(8, ((64, 64),))}) == 8
    first, second = (np.asarray(pictures.scan(page)) for page in range(2))
    assert (first[: len(first) // 4] == second[: len(second) // 4]).all()
    assert not (first == second).all()
    assert (first[len(first) // 2 :] == 255).all()


def test_numbers_have_three_digits() -> None:
    assert [number(value) for value in (0.0, 1234.5, 12.34, 1.234, 0.1234, 0.00123)] == [
        "0",
        "1,234",
        "12.3",
        "1.23",
        "0.123",
        "0.00123",
    ]


def test_a_spread_is_told_where_there_are_several_rounds() -> None:
    assert spread([2.0, 1.5, 3.0]) == "(1.50 to 3.00)"
    assert spread([2.0]) == ""
    assert summarize([2.0, 1.5, 3.0]) == {"median": 2.0, "least": 1.5, "most": 3.0, "rounds": 3}


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(JobError, match="nothing called 'photo'"):
        settings_for("demo", only=["photo"]).names()


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "vlmbatch.bench.run.choose_sizes",
        lambda device, *, quick, rounds: dataclasses.replace(SIZES, rounds=rounds or SIZES.rounds),
    )


@pytest.mark.usefixtures("small_sizes")
def test_the_command_prints_a_table_and_writes_json(tiny: Path, tmp_path: Path) -> None:
    arguments = [
        "bench",
        "--model",
        str(tiny),
        "--device",
        "cpu",
        "--only",
        "frames",
        "--only",
        "vision",
    ]
    result = CliRunner().invoke(cli, [*arguments, "--json", str(tmp_path / "bench.json")])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "float32 on cpu" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["vision", "frames"]
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["vision", "frames"]
    assert found["machine"]["model"] == str(tiny)
    result = CliRunner().invoke(cli, [*arguments, "--json", "-"])
    assert [row["name"] for row in json.loads(result.stdout)["rows"]] == ["vision", "frames"]
    assert "items/s" in result.stderr
    result = CliRunner().invoke(
        cli, [*arguments[:-4], "--only", "vision", "--rounds", "2", "--json", "-"]
    )
    assert json.loads(result.stdout)["rows"][0]["details"]["tiles_per_second"]["rounds"] == 2


@pytest.mark.usefixtures("small_sizes")
def test_a_failed_row_is_exit_code_3(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "short", context=64)
    result = CliRunner().invoke(
        cli, ["bench", "--model", str(folder), "--device", "cpu", "--only", "photos"]
    )
    assert result.exit_code == 3, result.output
    assert "PrepareError" not in result.stdout
    assert "context is 64" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "demo", "--shape", "256m"], 2, "give one"),
        (["--revision", "main"], 2, "--revision goes with --model"),
        (["--only", "speed"], 2, "'speed' is not one of"),
        (["--compare", "vllm"], 2, "transformers"),
        (["--model", "owner/nothing"], 1, "--model demo"),
        (["--model", "demo", "--device", "cuda:7"], 1, "no device cuda:7 here"),
        (["--model", "demo", "--max-memory", "lots"], 2, "not a size"),
        (["--model", "demo", "--max-memory", "100K", "--only", "decode"], 1, "may take 0 MiB"),
        (
            ["--model", "demo", "--only", "copy", "--json", "/proc/nowhere/x.json"],
            1,
            "cannot write",
        ),
    ],
)
@pytest.mark.usefixtures("small_sizes")
def test_what_goes_wrong_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["vlmbatch", "bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert message in capsys.readouterr().err


def test_a_bench_is_described_without_loading_the_model(tiny: Path) -> None:
    bench: Bench = open_bench(settings_for(tiny))
    machine = bench.describe()
    assert machine["device_name"]
    assert machine["memory_bytes"] > 0
    assert "engine" not in vars(bench.subject)
