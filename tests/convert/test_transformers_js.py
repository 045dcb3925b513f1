"""transformers.js answers with our folder, where node has it: ``npm install --ignore-scripts
@huggingface/transformers`` in any folder, and ``NODE_PATH`` is that folder's ``node_modules``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.engine.reference import answers
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.convert import ConvertOptions, convert
from vlmbatch.core import Conversation, Pixels, Question
from vlmbatch.engine import open_engine
from vlmbatch.job import EngineOptions

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

PROGRAM = Path(__file__).with_name("transformers_js.cjs")
LIMIT = 12
WAIT_SECONDS = 300
"""A node that has not ended by then hangs."""


def run_node(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )


@pytest.fixture(scope="module", autouse=True)
def transformers_js() -> None:
    """Skips where there is no node, or none with the package."""
    if shutil.which("node") is None:
        pytest.skip("node is not on PATH")
    if run_node("-e", "require.resolve('@huggingface/transformers')").returncode:
        pytest.skip(
            "node finds no @huggingface/transformers: npm install --ignore-scripts it in a folder, "
            "and set NODE_PATH to that folder's node_modules"
        )


@pytest.mark.parametrize("inline_bytes", [1 << 30, 1000], ids=["inline", "weights beside"])
def test_transformers_js_gives_the_same_tokens(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inline_bytes: int
) -> None:
    monkeypatch.setattr("vlmbatch.convert.onnx.export.INLINE_BYTES", inline_bytes)
    folder = tmp_path / "model"
    convert(find_checkpoint(str(tiny)), "onnx", ConvertOptions(folder))
    assert any((folder / "onnx").glob("*.onnx_data")) is (inline_bytes == 1000)
    engine = open_engine(EngineOptions(model=str(tiny), device="cpu", dtype="float32"))
    rng = np.random.default_rng(0)
    pixels = Pixels([rng.integers(0, 256, (50, 70, 3), np.uint8)])
    question = Question("What is this?", max_new_tokens=LIMIT)
    request = engine.prepare(Conversation.about("image", pixels), [question])
    payload = request.payload
    asked = {
        "ids": [*payload.prefix_ids, *payload.question_ids[0]],
        "tiles": len(payload.tiles),
        "edge": payload.tiles.shape[-1],
        "pixels": (payload.tiles.astype(np.float32) / 127.5 - 1).ravel().tolist(),
        "limit": LIMIT,
    }
    (tmp_path / "request.json").write_text(json.dumps(asked))
    done = run_node(str(PROGRAM), str(folder), str(tmp_path / "request.json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == list(answers(engine, [request])[0, 0])
