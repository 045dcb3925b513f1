"""Convert a checkpoint to GGUF: check, write beside, read back, rename."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.convert import Converted, ConvertOptions
from vlmbatch.convert.gguf.files import text_file, title, vision_file
from vlmbatch.convert.gguf.tensors import Weights
from vlmbatch.convert.gguf.types import (
    K_BLOCK,
    K_TYPES,
    VISION_TYPES,
    check_type,
    k_note,
)
from vlmbatch.convert.gguf.verification import (
    check_file,
    check_vocabulary,
    check_written_vocabulary,
)
from vlmbatch.convert.gguf.vocabulary import INEXACT_NOTE, read_vocabulary
from vlmbatch.convert.modelfile import write_modelfiles
from vlmbatch.convert.publishing import check_space, publish
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.errors import JobError, OutputError, one_line
from vlmbatch.gguf_files import import_gguf

DEFAULT_TYPE = "f16"
METADATA_BYTES = 16 << 20
"""Room for vocabulary and headers."""


def convert(checkpoint: Checkpoint, options: ConvertOptions) -> Converted:
    """Write the two GGUF files and the Modelfiles. See ``vlmbatch.convert.convert``."""
    import_gguf()
    kind = options.type or DEFAULT_TYPE
    shape = ModelShape.from_checkpoint(checkpoint)
    hidden = shape.text.hidden
    check_type(kind, has_tool=options.llama_quantize is not None, hidden=hidden)
    weights = Weights(checkpoint, shape)
    name = title(checkpoint)
    is_k = kind in K_TYPES
    text_name = f"{name}-{kind.upper()}.gguf"
    vocabulary = read_vocabulary(checkpoint, shape.text.vocabulary)
    check_vocabulary(vocabulary, checkpoint)
    text_kind = "f16" if is_k else kind
    text = text_file(text_name, checkpoint, shape, weights, text_kind, vocabulary)
    vision_kind = VISION_TYPES.get(kind, kind)
    vision_name = f"mmproj-{name}-{vision_kind.upper()}.gguf"
    vision = vision_file(vision_name, checkpoint, shape, weights, vision_kind)
    folder = options.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        spare = text.tensor_bytes if is_k else 0  # float16, which the tool reads
        size = text.tensor_bytes + vision.tensor_bytes + METADATA_BYTES + spare
        check_space(folder, size)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder) as temporary:
            room = Path(temporary)
            for file in (text, vision):
                file.write(room / file.name)
                check_file(room / file.name, file)
            check_written_vocabulary(room / text_name, vocabulary)
            if options.llama_quantize is not None:
                _quantize(options.llama_quantize, room / text_name, kind)
            publish([room / text_name, room / vision_name], folder)
        files, commands = write_modelfiles(folder, text_name, vision_name, checkpoint, shape)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {one_line(error)}") from error
    notes = [k_note(hidden)] if is_k and hidden % K_BLOCK else []
    if not vocabulary.is_exact:
        notes.append(INEXACT_NOTE)
    return Converted((folder / text_name, folder / vision_name, *files), (*notes, *commands))


def _quantize(tool: str, path: Path, kind: str) -> None:
    """Replace a float16 file by the tool's.

    Raises:
        JobError: The tool cannot be run.
        OutputError: It failed.
    """
    result = path.with_name(f"{path.stem}-quantized.gguf")
    try:
        done = subprocess.run(
            [tool, str(path), str(result), kind.upper()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    except OSError as error:
        raise JobError(
            f"{tool} cannot be run ({one_line(error)}): --llama-quantize takes the path of "
            "llama.cpp's tool"
        ) from error
    if done.returncode or not result.is_file():
        last = " ".join(done.stdout.decode(errors="replace").split()[-40:])
        raise OutputError(f"{tool} ended with exit code {done.returncode}: {last}")
    os.replace(result, path)
