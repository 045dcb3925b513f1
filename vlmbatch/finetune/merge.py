"""Write complete checkpoints and adapters, and merge an adapter into its checkpoint."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vlmbatch.checkpoint import Checkpoint, find_checkpoint
from vlmbatch.errors import ModelLoadError, OutputError
from vlmbatch.finetune.network import load_network, quiet_peft, stored_dtype
from vlmbatch.write.atomic import reason, sync_folder

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
_NOT_COPIED = ("model.safetensors.index.json", "finetune.json", ADAPTER_CONFIG)


def write_checkpoint(model: Any, base: Checkpoint, folder: Path) -> None:
    """Write a complete checkpoint in the hub's layout.

    config.json is written last: a folder that has one is complete.

    Args:
        model: Model of ``load_network``; its weights are converted to the number format of the
            base.
        base: Source of configuration, tokenizer, processor and chat template.
        folder: Folder to write.

    Raises:
        OutputError: It cannot be written.
    """
    part = folder / "unfinished"
    try:
        shutil.rmtree(part, ignore_errors=True)
        model.to(stored_dtype(base)).save_pretrained(part)
        for path in base.folder.iterdir():
            if path.suffix in (".json", ".jinja") and path.name not in _NOT_COPIED:
                shutil.copyfile(path, part / path.name)
        for path in sorted(part.iterdir(), key=lambda path: path.name == "config.json"):
            path.chmod(0o644)  # safetensors writes files that only their owner may read
            os.replace(path, folder / path.name)
        part.rmdir()
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write {folder}: {reason(error) if isinstance(error, OSError) else error}"
        ) from error


def save_adapter(model: Any, base: Checkpoint, folder: Path) -> None:
    """Write the adapter of a peft model, with the name of its checkpoint.

    Args:
        model: A ``peft.PeftModel``.
        base: The checkpoint that the adapter belongs to.
        folder: Folder to write.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path = (
        str(base.folder.resolve()) if Path(base.name).expanduser().is_dir() else base.name
    )
    config.revision = None if base.revision.startswith("sha256:") else base.revision
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # an empty template
    for path in folder.iterdir():
        path.chmod(0o644)


def read_adapter_config(folder: Path) -> Mapping[str, Any]:
    """Read the settings of an adapter.

    Raises:
        ModelLoadError: The folder has none.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"{folder} holds no adapter: {ADAPTER_CONFIG} cannot be read ({type(error).__name__})"
        ) from error
    return config if isinstance(config, dict) else {}


def merge_adapter(
    adapter: Path, folder: Path, model: str | None = None, revision: str | None = None
) -> Checkpoint:
    """Merge an adapter into its checkpoint and write the result as a new checkpoint.

    Args:
        adapter: Folder of the adapter.
        folder: Folder of the new checkpoint.
        model: The checkpoint that the adapter belongs to; by default the one that it names.
        revision: Revision of a hub id.

    Returns:
        The new checkpoint.

    Raises:
        ModelLoadError: The adapter or the checkpoint is missing, or they do not belong together.
        OutputError: The folder cannot be written.
    """
    import peft

    config = read_adapter_config(adapter)
    name = model or config.get("base_model_name_or_path")
    if not name:
        raise ModelLoadError(
            f"{adapter} does not say which checkpoint it belongs to: give it with --model"
        )
    weights = Checkpoint(adapter, str(adapter), "").require("adapter_model.safetensors")
    base = find_checkpoint(name, revision or (None if model else config.get("revision")))
    network = load_network(base, torch.float32)
    try:
        with quiet_peft():
            adapted = peft.PeftModel.from_pretrained(network, str(adapter))
        strange = (
            load_file(weights).keys()
            ^ peft.get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
        )
        if strange:  # peft leaves out what does not fit
            raise ValueError(f"only one of them has {min(strange)}")
        merged = adapted.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelLoadError(
            f"the adapter {adapter} does not go with {base.name}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(merged, base, folder)
    return find_checkpoint(str(folder))
