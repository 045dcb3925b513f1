"""Tokens are drawn for all rows at once, each as if it were alone."""

from __future__ import annotations

import pytest
import torch

from tests.engine.torch.fake_device import FakeDevice
from vlmbatch.engine.torch.sampling import Draw, choose_tokens, sample, settings_of


def draw(seed: int, temperature: float = 1.0, top_p: float = 1.0) -> Draw:
    return Draw(temperature, top_p, torch.Generator().manual_seed(seed))


def tokens_of(logits: torch.Tensor, draws: list[Draw | None]) -> list[int]:
    return [int(token) for token in choose_tokens(logits, draws)[0][0]]


def test_top_p_keeps_only_the_nucleus() -> None:
    logits = torch.log(torch.tensor([0.05, 0.5, 0.15, 0.3])).expand(200, -1)
    assert set(tokens_of(logits, [draw(seed, top_p=0.7) for seed in range(200)])) == {1, 3}
    assert set(tokens_of(logits, [draw(seed, top_p=1e-6) for seed in range(200)])) == {1}


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_tokens_come_as_often_as_they_are_likely(top_p: float) -> None:
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    logits = torch.log(shares).mul(0.5).expand(4000, -1)
    found = tokens_of(logits, [draw(seed, 0.5, top_p) for seed in range(4000)])
    counts = torch.bincount(torch.tensor(found), minlength=4) / 4000
    wanted = shares if top_p == 1 else torch.tensor([0.0, 2, 3, 4]) / 9
    assert (counts - wanted).abs().max() < 0.03


def test_no_row_changes_another_ones_token() -> None:
    logits = torch.randn(12, 3000, generator=torch.Generator().manual_seed(1)) * 3
    options = [(1.0, 0.9), (0.0, 1.0), (0.7, 1.0), (2.0, 0.5)] * 3

    def draws() -> list[Draw | None]:
        return [draw(n, *each) if each[0] else None for n, each in enumerate(options)]

    together = tokens_of(logits, draws())
    alone = [tokens_of(logits[n : n + 1], [each])[0] for n, each in enumerate(draws())]
    assert together == alone
    assert together[1::4] == logits[1::4].argmax(dim=-1).tolist()


def test_a_step_that_is_done_again_takes_the_same_number() -> None:
    one, logits = draw(3), torch.zeros(1, 1000)
    first = tokens_of(logits, [one])
    assert tokens_of(logits, [one]) == first
    one.taken()
    assert tokens_of(logits, [one]) != first


@pytest.mark.parametrize("temperature", [1e-300, 1e-30])
def test_a_temperature_close_to_0_is_greedy(temperature: float) -> None:
    logits = torch.randn(5, 100, generator=torch.Generator().manual_seed(2))
    assert tokens_of(logits, [draw(n, temperature) for n in range(5)]) == (
        logits.argmax(dim=-1).tolist()
    )


def test_the_last_number_below_one_finds_a_token_of_the_row() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    number = 1 - 2.0**-24
    for top_p in (1.0, 0.99):
        settings = torch.tensor([[1.0], [top_p], [number]])
        assert int(sample(logits, settings, is_nucleus=top_p < 1)) in (0, 1)


def test_rows_that_are_not_finite_show_it() -> None:
    logits = torch.zeros(3, 50)
    logits[0, 3], logits[2, 4] = torch.nan, torch.inf
    chosen, _ = choose_tokens(logits, [draw(n) for n in range(3)])
    assert chosen[1].isfinite().tolist() == [False, True, False]
    assert ((chosen[0] >= 0) & (chosen[0] < 50)).all()


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_device_launches_as_many_kernels_for_many_rows_as_for_two(top_p: float) -> None:
    counts = []
    for rows in (2, 64):
        logits = torch.randn(rows, 500, generator=torch.Generator().manual_seed(1))
        with FakeDevice() as gpu:
            there = gpu.put(logits)
            before = gpu.counts.copy()
            chosen, _ = choose_tokens(there, [draw(n, 1.0, top_p) for n in range(rows)])
            counts.append(gpu.counts.since(before))
            found = gpu.get(chosen)
        assert found[0].tolist() == tokens_of(logits, [draw(n, 1.0, top_p) for n in range(rows)])
    assert counts[0] == counts[1]
    assert (counts[0].uploads, counts[0].pageable, counts[0].waits) == (1, 0, 0)


def test_rows_that_are_not_sampled_have_a_temperature_of_0() -> None:
    assert settings_of([None, Draw(0.5, 0.25, torch.Generator(), 0.75)]).tolist() == [
        [0.0, 0.5],
        [1.0, 0.25],
        [0.0, 0.75],
    ]
