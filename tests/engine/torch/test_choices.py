"""The choice of kernels is made once for a machine, and again where it cannot be relied on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.engine.torch.test_parity import open_tiny
from tests.media import write_picture
from vlmbatch.engine.torch import device as devices
from vlmbatch.engine.torch.cpu.choices import KeptChoice, KernelChoices
from vlmbatch.engine.torch.cpu.onednn import PackedLinear
from vlmbatch.engine.torch.cpu.timing import MIN_ROUNDS, Steadiness, Stopwatch
from vlmbatch.engine.torch.weights import Model
from vlmbatch.job import Job
from vlmbatch.run.from_python import run

QUIET, BUSY = Steadiness(1.02, 1.0), Steadiness(1.6, 0.4)


class Scripted(Stopwatch):
    """Finds the last call the fastest, on a machine in this state."""

    def __init__(self, state: Steadiness, *, is_quiet: bool = True) -> None:
        super().__init__(1)
        self._state, self._is_quiet = state, is_quiet
        self.number = 0

    def fastest(self, calls: Sequence[Callable[[], object]]) -> list[float]:
        self.number += 1
        return [2.0] * (len(calls) - 1) + [1.0]

    def is_machine_quiet(self) -> bool:
        return self._is_quiet

    def steadiness(self) -> Steadiness:
        return self._state


def settle(
    tiny: Path,
    cache: Path,
    state: Steadiness,
    *,
    continued: bool = False,
    copies: bool = True,
    is_quiet: bool = True,
) -> tuple[KeptChoice, Model, bool]:
    """Open a model and settle its kernels; the last value tells whether any were measured."""
    model, watch = open_tiny(tiny)[0].network, Scripted(state, is_quiet=is_quiet)
    choices = KernelChoices(cache, lambda threads: watch)
    found = choices.settle(model, copies=copies, continued=continued)
    return found, model, watch.number > 0


def only_file(cache: Path) -> Path:
    (path,) = (cache / "kernels").iterdir()
    return path


def test_a_choice_is_measured_once(tiny: Path, tmp_path: Path) -> None:
    first, _, measured = settle(tiny, tmp_path, QUIET)
    assert measured
    assert first.kernels
    second, model, measured = settle(tiny, tmp_path, QUIET)
    assert not measured
    assert second == first
    assert isinstance(model.language.head, PackedLinear)


def test_another_setting_has_a_choice_of_its_own(tiny: Path, tmp_path: Path) -> None:
    settle(tiny, tmp_path, QUIET)
    _, model, measured = settle(tiny, tmp_path, QUIET, copies=False)
    assert measured
    assert not isinstance(model.language.head, PackedLinear)
    assert len(list((tmp_path / "kernels").iterdir())) == 2


def test_a_choice_beside_a_busy_neighbour_is_used_and_measured_again_the_next_time(
    tiny: Path, tmp_path: Path
) -> None:
    _, model, _ = settle(tiny, tmp_path, BUSY)
    assert isinstance(model.language.head, PackedLinear)
    found, _, measured = settle(tiny, tmp_path, QUIET)
    assert measured
    assert found.steadiness == QUIET
    assert not settle(tiny, tmp_path, QUIET)[2]


def test_a_doubtful_choice_is_not_measured_again_while_the_machine_is_busy(
    tiny: Path, tmp_path: Path
) -> None:
    first, _, _ = settle(tiny, tmp_path, BUSY)
    second, _, measured = settle(tiny, tmp_path, QUIET, is_quiet=False)
    assert not measured
    assert second == first


def test_a_doubtful_choice_is_not_replaced_by_another(tiny: Path, tmp_path: Path) -> None:
    settle(tiny, tmp_path, BUSY)
    entry = json.loads(only_file(tmp_path).read_text())
    entry["kernels"] = {"head": [1]}
    only_file(tmp_path).write_text(json.dumps(entry))
    found, model, measured = settle(tiny, tmp_path, BUSY)
    assert measured
    assert found.kernels == {"head": [1]}
    assert isinstance(model.language.head, PackedLinear)
    assert model.language.head.bands == (True, False, False, False)


def test_an_output_that_is_continued_is_computed_as_it_began(tiny: Path, tmp_path: Path) -> None:
    first, _, _ = settle(tiny, tmp_path, BUSY)
    second, _, measured = settle(tiny, tmp_path, QUIET, continued=True)
    assert not measured
    assert second == first


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"torch": "', '"torch": "0.'),
        lambda text: text.replace('"head"', '"tail"'),
        lambda text: text.replace("[\n   1", "[\n   3"),
        lambda text: text.replace('"spread": 1', '"spread": "wide'),
        lambda text: text.replace('"steadiness"', '"state"'),
        lambda text: "\N{SNOWMAN}\0",
    ],
    ids=["torn", "list", "other torch", "kernel", "rows", "spread", "no state", "bytes"],
)
def test_a_broken_or_foreign_file_is_ignored_and_measured_again(
    tiny: Path, tmp_path: Path, change: Callable[[str], str]
) -> None:
    first, _, _ = settle(tiny, tmp_path, QUIET)
    whole = only_file(tmp_path).read_text()
    assert change(whole) != whole
    only_file(tmp_path).write_text(change(whole))
    found, _, measured = settle(tiny, tmp_path, QUIET)
    assert measured
    assert found == first
    assert only_file(tmp_path).read_text() == whole


def test_without_a_folder_to_write_to_the_choice_is_made_all_the_same(
    tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    found, model, _ = settle(tiny, tmp_path / "file", QUIET)
    assert found.kernels
    assert isinstance(model.language.head, PackedLinear)


def test_forgetting_makes_all_choices_again(tiny: Path, tmp_path: Path) -> None:
    settle(tiny, tmp_path, QUIET)
    KernelChoices(tmp_path).forget()
    assert list((tmp_path / "kernels").iterdir()) == []
    assert settle(tiny, tmp_path, QUIET)[2]
    KernelChoices(tmp_path / "missing").forget()


def test_calls_take_turns_and_the_state_is_told() -> None:
    order: list[int] = []
    watch = Stopwatch(1)
    found = watch.fastest([lambda: order.append(0), lambda: order.append(1)])
    assert order[: 2 * MIN_ROUNDS] == [0, 1] * MIN_ROUNDS
    assert len(order) % 2 == 0
    assert all(seconds > 0 for seconds in found)
    assert watch.is_machine_quiet() in (True, False)
    state = watch.steadiness()
    assert state.spread >= 1
    assert 0 <= state.share <= 1


def test_a_spread_or_a_small_share_is_not_steady() -> None:
    assert QUIET.is_steady
    assert not Steadiness(1.6, 1.0).is_steady
    assert not Steadiness(1.02, 0.5).is_steady
    assert Steadiness(1.02, 0.5).describe() == {"spread": 1.02, "share": 0.5, "steady": False}


def test_a_run_that_goes_on_uses_the_kernels_that_it_began_with(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "SMALL_MODEL_PARAMETERS", 0)
    for number in range(3):
        write_picture(tmp_path / "in" / f"{number}.png", 40, 30, seed=number)
    job = Job(
        inputs=[str(tmp_path / "in")],
        model=str(tiny),
        device="cpu",
        detail="low",
        max_new_tokens=2,
        output=str(tmp_path / "out.jsonl"),
        cache_dir=str(tmp_path / "cache"),
        limit=1,
    )
    run(job)
    entry = json.loads(only_file(tmp_path / "cache").read_text())
    entry |= {"kernels": {"head": [1]}, "steadiness": {"spread": 1.0, "share": 0.1}}
    only_file(tmp_path / "cache").write_text(json.dumps(entry))
    engine = run(dataclasses.replace(job, limit=None))["engine"]
    assert engine["kernels"] == {"head": [1]}
    assert engine["kernel_choice"] == {"spread": 1.0, "share": 0.1, "steady": False}
    assert json.loads(only_file(tmp_path / "cache").read_text()) == entry
