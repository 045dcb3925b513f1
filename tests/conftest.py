"""What all tests share: tiny checkpoints, made once, and an end of processes that a test left."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.processes import end_all

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # the cores are busy with the other workers' tests
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may ask the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
hypothesis.settings.register_profile(
    "vlmbatch",
    deadline=None,  # no test asserts a time, and machines are busy
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.load_profile("vlmbatch")


def pytest_collection_finish() -> None:
    """Takes the libraries, which stay, out of what every garbage collection looks through; an
    engine makes one when it ends.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Gives them back, so that they are taken down in order."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    end_all()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint in the hub's layout."""
    from tests.checkpoints import write_tiny_checkpoint

    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    pytest_collection_finish()  # transformers has come in
    return folder


@pytest.fixture
def broken_graphs(tiny: Path, tmp_path: Path) -> Path:
    """A tiny checkpoint, and ONNX graphs beside its weights that do not open."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    (folder / "onnx").mkdir()
    for name in ("vision_encoder", "embed_tokens", "decoder_model_merged"):
        (folder / "onnx" / f"{name}.onnx").write_bytes(b"not a graph")
    return folder
