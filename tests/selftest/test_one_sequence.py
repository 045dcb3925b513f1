"""int8 beside bfloat16: timed, kept for this machine, and said by plain ``doctor``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.cli.conftest import vlmbatch as vlmbatch
from vlmbatch.bench.checkpoint import write_settings
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.engine.threads import num_threads
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.job import EngineOptions
from vlmbatch.selftest.one_sequence import (
    NAME,
    Rates,
    keep_rates,
    kept_rates,
    measure_rates,
    settle_rates,
)


def test_both_are_timed(tiny: Path, tmp_path: Path) -> None:
    rates = measure_rates(tiny, EngineOptions(cache_dir=str(tmp_path)))
    assert rates.int8 > 0
    assert rates.bfloat16 > 0


def test_what_is_kept_is_not_measured_again(tmp_path: Path) -> None:
    options = EngineOptions(cache_dir=str(tmp_path))
    assert kept_rates(tmp_path, num_threads(options)) is None
    keep_rates(tmp_path, num_threads(options), Rates(1.5, 3.0))
    assert settle_rates(options) == Rates(1.5, 3.0)
    assert kept_rates(tmp_path, num_threads(options) + 1) is None
    for file in tmp_path.rglob("*.json"):
        file.write_text("{}")
    assert kept_rates(tmp_path, num_threads(options)) is None


@pytest.mark.parametrize(
    ("rates", "status"), [(Rates(70.0, 100.0), "warn"), (Rates(100.0, 70.0), "pass")]
)
def test_int8_is_not_slower_in_silence(
    vlmbatch: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rates: Rates,
    status: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = json.loads(vlmbatch("doctor", "--json").stdout)
    (line,) = (each for each in before if each["name"] == NAME)
    assert "vlmbatch doctor --selftest --quantize int8" in line["found"]
    keep_rates(tmp_path / "vlmbatch", num_threads(EngineOptions()), rates)
    after = json.loads(vlmbatch("doctor", "--json").stdout)
    (line,) = (each for each in after if each["name"] == NAME)
    assert line["found"].startswith(f"{rates.int8:.3g} tokens/s, {rates.bfloat16:.3g} in bfloat16")
    assert ("leave out --quantize int8" in line["advice"]) == (status == "warn")
    report = json.loads(
        vlmbatch("doctor", "--selftest", "--quantize", "int8", "--device", "cpu", "--json").stdout
    )
    (check,) = (each for each in report["checks"] if each["name"] == NAME)
    assert check["status"] == status
    assert report["is_well"]
    assert report["speed"]["one_sequence"] == {"int8": rates.int8, "bfloat16": rates.bfloat16}


def test_the_language_model_has_its_published_size(tmp_path: Path) -> None:
    write_settings("256m", tmp_path, vision_layers=1)
    shape = ModelShape.from_checkpoint(find_checkpoint(str(tmp_path)))
    assert (shape.text.layers, shape.text.hidden, shape.vision.layers) == (30, 576, 1)
