"""transformers.js answers with our folder, where node has it (``npm install --ignore-scripts
@huggingface/transformers``, found by NODE_PATH).
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


def has_transformers_js() -> bool:
    node = shutil.which("node")
    if node is None:
        return False
    code = "require.resolve('@huggingface/transformers')"
    return subprocess.run([node, "-e", code], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not has_transformers_js(), reason="no node with @huggingface/transformers")
def test_transformers_js_gives_the_same_tokens(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    convert(find_checkpoint(str(tiny)), "onnx", ConvertOptions(folder))
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
    done = subprocess.run(
        ["node", str(PROGRAM), str(folder), str(tmp_path / "request.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == list(answers(engine, [request])[0, 0])
