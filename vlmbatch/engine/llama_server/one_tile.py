"""Files for pictures of one tile: low detail, clips, and tiles.

llama.cpp cuts every picture of the type ``idefics3`` into at least one tile beside the overview, in
other words than the checkpoint's, and encodes both. Its type ``lfm2`` has the same encoder, puts
one token before and one behind a single picture, and encodes it once. So these files say ``lfm2``:

- its connector has two matrices with a GELU between them; gelu(x) - gelu(-x) = x, so (W, -W) and
  then (1, -1) are the checkpoint's one matrix W;
- the two tokens around a picture have the names that ``lfm2`` looks for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmbatch.errors import ModelLoadError
from vlmbatch.gguf_files import import_gguf, open_gguf, read_fields

BEFORE, BEHIND = "<|image_start|>", "<|image_end|>"
"""Names of the tokens around a picture of type ``lfm2``."""
CONNECTOR = "mm.model.fc.weight"


def write_one_tile(
    text: Path, new_text: Path, vision: Path, new_vision: Path, before: str, behind: str
) -> None:
    """Write both files anew.

    Args:
        text: The language model.
        new_text: Its new file: two tokens are renamed.
        vision: The vision encoder, of type ``idefics3``.
        new_vision: Its new file.
        before: Name of the token before a picture of one tile.
        behind: Name of the token behind it.

    Raises:
        ModelLoadError: A file lacks what is to be changed.
        OSError: A file cannot be written.
    """
    words = open_gguf(text)
    (tokens,) = read_fields(words, "tokenizer.ggml.tokens")
    names = {before: BEFORE, behind: BEHIND}
    if not names.keys() <= set(tokens or ()):
        raise ModelLoadError(f"{text} has no tokens {before} and {behind}")
    _copy(words, new_text, {"tokenizer.ggml.tokens": [names.get(t, t) for t in tokens]}, {})
    eyes = open_gguf(vision)
    found = {tensor.name: tensor for tensor in eyes.tensors}
    if CONNECTOR not in found:
        raise ModelLoadError(f"{vision} has no connector {CONNECTOR}")
    tensor = found[CONNECTOR]
    weight = import_gguf().quants.dequantize(tensor.data, tensor.tensor_type)
    size = len(weight)
    one = np.eye(size, dtype=np.float32)
    zero = np.zeros(2 * size, np.float32)
    connector = {
        "mm.1.weight": np.concatenate([weight, -weight]),
        "mm.1.bias": zero,
        "mm.2.weight": np.concatenate([one, -one], axis=1),
        "mm.2.bias": zero[:size],
    }
    kind = "clip.projector_type"
    changes = {kind: "lfm2", "clip.vision.projector_type": "lfm2"}
    _copy(eyes, new_vision, changes, {CONNECTOR: connector})


def _copy(
    reader: Any,
    path: Path,
    changes: dict[str, Any],
    replaced: dict[str, dict[str, npt.NDArray[np.float32]]],
) -> None:
    """Copy a GGUF file, one tensor at a time.

    Args:
        reader: The file.
        path: The copy.
        changes: New values of metadata that it has.
        replaced: New tensors by the name of the one whose place they take.
    """
    gguf = import_gguf()
    (architecture,) = read_fields(reader, "general.architecture")
    writer = gguf.GGUFWriter(path, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, changes.get(name, field.contents()), kind, sub_type=inner)
    for tensor in reader.tensors:
        for name, array in replaced.get(tensor.name, {}).items():
            writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
        if tensor.name not in replaced:
            data = tensor.data
            writer.add_tensor_info(
                tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        for array in replaced.get(tensor.name, {}).values():
            writer.write_tensor_data(array)
        if tensor.name not in replaced:
            writer.write_tensor_data(tensor.data)
    writer.close()
