"""Large tensors lie in memory that the system was asked to give in huge pages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.engine.torch.test_parity import open_tiny
from vlmbatch.engine.torch.cpu.pages import use_huge_pages, zeros


def flags_at(address: int) -> list[str]:
    """What Linux knows of the memory at an address: ``hg`` where huge pages were asked for."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return rest
    raise AssertionError("no such memory")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells of its pages")
@pytest.mark.parametrize("huge", [True, False])
def test_memory_is_zero_and_in_the_pages_asked_for(huge: bool) -> None:
    tensor = zeros(1 << 20, torch.bfloat16, huge=huge)
    assert (tensor.dtype, len(tensor)) == (torch.bfloat16, 1 << 20)
    assert not tensor.any()
    tensor[-1] = 1
    assert ("hg" in flags_at(tensor.data_ptr())) == huge


def test_more_memory_than_there_is() -> None:
    with pytest.raises(MemoryError, match="bytes of memory"):
        zeros(1 << 60, torch.float32)


@pytest.mark.parametrize("quantize", ["none", "int8"])
@torch.inference_mode()
def test_a_model_in_huge_pages_computes_the_same(tiny: Path, quantize: str) -> None:
    language = open_tiny(tiny, quantize=quantize)[0].network.language
    x = language.embed(torch.arange(5))
    before = [each(x) for each in (language.layers[0].qkv, language.layers[1].gate_up)]
    logits = language.logits(x)
    tied = language.head.weight is language.embedding
    use_huge_pages(language)
    after = [each(x) for each in (language.layers[0].qkv, language.layers[1].gate_up)]
    assert all(map(torch.equal, before, after))
    assert torch.equal(language.logits(x), logits)
    assert (language.head.weight is language.embedding) == tied
    weights = [language.head.weight, *(layer.down.weight for layer in language.layers)]
    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
    assert all(weight.data_ptr() % 64 == 0 for weight in weights)
