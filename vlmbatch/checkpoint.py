"""Where a model's files are and what they say: a folder in the hub's layout, a hub id, or the demo
model of the package.

The stages read the same files: ``prepare/`` the processor's, ``engine/`` the configuration and the
weights. Nothing here loads a weight.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from vlmbatch.errors import JobError, ModelLoadError

DEMO = "demo"
KNOWN_MODELS = (
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
)
"""The published SmolVLM2 checkpoints, smallest first."""

FILES = ["*.json", "*.jinja", "*.safetensors", "*.model", "merges.txt", "vocab.txt"]
"""What is fetched of a repository: no pickled weights, no ONNX copies, no pictures. The last three
are vocabularies of families that have no tokenizer.json.
"""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this disk.

    Attributes:
        folder: Where its files are.
        name: What the user called it: a hub id, a path, or ``demo``.
        revision: The hub's commit, or ``sha256:…`` over the small files and the sizes of the
            weights for a folder.
    """

    folder: Path
    name: str
    revision: str

    def require(self, file: str) -> Path:
        """The path of a file that must be there.

        Raises:
            ModelLoadError: It is not.
        """
        path = self.folder / file
        if not path.is_file():
            raise ModelLoadError(f"{self.name}: {file} is missing from {self.folder}")
        return path

    def read_json(self, file: str, *, required: bool = False) -> dict[str, Any]:
        """A JSON object of the checkpoint; empty when the file is not there and not required."""
        if not required and not (self.folder / file).is_file():
            return {}
        path = self.require(file)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelLoadError(f"{self.name}: {file} cannot be read: {error}") from error
        if not isinstance(value, dict):
            raise ModelLoadError(f"{self.name}: {file} is not a JSON object")
        return value

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """config.json, checked to be SmolVLM's."""
        config = self.read_json("config.json", required=True)
        if config.get("model_type") != "smolvlm":
            raise ModelLoadError(
                f"{self.name} is not a SmolVLM2 checkpoint (its type is {config.get('model_type') or 'unknown'}); take one of {', '.join(KNOWN_MODELS)}"
            )
        return config

    def image_processor(self) -> dict[str, Any]:
        """The image processor's settings: preprocessor_config.json, or the part of
        processor_config.json that newer files hold.
        """
        settings = self.read_json("preprocessor_config.json") or self.read_json(
            "processor_config.json"
        ).get("image_processor", {})
        if "size" not in settings or "max_image_size" not in settings:
            raise ModelLoadError(
                f"{self.name}: neither preprocessor_config.json nor processor_config.json says how pictures are cut"
            )
        return dict(settings)

    def video_processor(self) -> dict[str, Any]:
        """The video processor's settings, from whichever file holds them; empty when none does."""
        return dict(
            self.read_json("video_preprocessor_config.json")
            or self.read_json("processor_config.json").get("video_processor", {})
            or self.read_json("preprocessor_config.json")
        )

    def image_seq_len(self) -> int:
        """Image tokens a tile: (image_size / patch_size / scale_factor)²; what a processor file
        says must agree.

        Raises:
            ModelLoadError: It does not.
        """
        vision = self.config.get("vision_config") or {}
        try:
            computed = (
                int(vision["image_size"])
                // int(vision["patch_size"])
                // int(self.config["scale_factor"])
            ) ** 2
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ModelLoadError(
                f"{self.name}: config.json does not say how large tiles and patches are ({error})"
            ) from error
        stated = self.read_json("processor_config.json").get("image_seq_len", computed)
        if stated != computed:
            raise ModelLoadError(
                f"{self.name}: the processor writes {stated} image tokens a tile, the vision encoder gives {computed}"
            )
        return computed

    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json; empty when it is not there."""
        return self.read_json("tokenizer_config.json")

    def chat_template(self) -> str:
        """Jinja source of the chat template.

        Raises:
            ModelLoadError: No file has one.
        """
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        for file in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            template = self.read_json(file).get("chat_template")
            if isinstance(template, str):
                return template
        raise ModelLoadError(
            f"{self.name}: no chat template (chat_template.jinja, chat_template.json)"
        )

    def end_token_ids(self) -> frozenset[int]:
        """Token ids that end an answer, from generation_config.json or config.json."""
        text = self.config.get("text_config") or {}
        for source in (self.read_json("generation_config.json"), self.config, text):
            ids = source.get("eos_token_id")
            if ids is not None:
                return frozenset([ids] if isinstance(ids, int) else ids)
        raise ModelLoadError(
            f"{self.name}: no eos_token_id in generation_config.json or config.json"
        )

    def weight_files(self) -> list[Path]:
        """The safetensors files: one, or the shards that an index names.

        Raises:
            ModelLoadError: None, or not all of them, are there.
        """
        index = self.read_json("model.safetensors.index.json")
        if index:
            return [self.require(file) for file in sorted(set(index["weight_map"].values()))]
        if (self.folder / "model.safetensors").is_file():
            return [self.folder / "model.safetensors"]
        hint = "; pickled weights are not read" if any(self.folder.glob("*.bin")) else ""
        raise ModelLoadError(f"{self.name}: no model.safetensors in {self.folder}{hint}")


def find_checkpoint(model: str, revision: str | None = None, *, fetch: bool = False) -> Checkpoint:
    """Finds the files of a model, fetching them from the hub where they are not here yet.

    Args:
        model: A folder in the hub's layout, a hub id, or ``demo``.
        revision: Branch, tag or commit of a hub id.
        fetch: Ask the hub even when a complete copy is in the cache.

    Raises:
        JobError: A revision of what has none.
        ModelLoadError: There is no such folder, or the hub cannot be reached and the cache has no
            copy.
    """
    check_revision(model, revision)
    if model == DEMO:
        folder = Path(__file__).parent / "demo"
        return Checkpoint(folder, DEMO, _folder_revision(folder))
    folder = Path(model).expanduser()
    if folder.is_dir():
        _refuse_adapter(folder)
        return Checkpoint(folder, model, _folder_revision(folder))
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ModelLoadError(
            f"no such model: {model} is neither a folder, a hub id (owner/name) nor `demo`"
        )
    folder = _hub_folder(model, revision, fetch)
    return Checkpoint(folder, model, folder.name)


def check_revision(model: str, revision: str | None) -> None:
    """Refuses a revision of a model that has only one.

    Raises:
        JobError: It is of the demo model, or of a folder.
    """
    what = (
        "the model that ships inside the package"
        if model == DEMO
        else "a folder"
        if Path(model).expanduser().is_dir()
        else None
    )
    if revision and what:
        raise JobError(f"--revision goes with a hub id; {model} is {what}")


def _refuse_adapter(folder: Path) -> None:
    """Says what to do with a folder that holds an adapter and no checkpoint."""
    if (folder / "config.json").exists():
        return
    for adapter in (folder, folder / "adapter"):
        if (adapter / "adapter_config.json").is_file():
            raise ModelLoadError(
                f"{adapter} is an adapter, not a checkpoint: `vlmbatch models merge {adapter} -o FOLDER` makes one of it, for --model FOLDER"
            )


def cached_folder(model: str) -> Path | None:
    """Where the hub's cache has a model's config.json; None when it has none. Asks no network."""
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(model, "config.json")
    return Path(path).parent if isinstance(path, str) else None


def _hub_folder(model: str, revision: str | None, fetch: bool) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    def snapshot(local: bool) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                model, revision=revision, allow_patterns=FILES, local_files_only=local
            )
        )

    if not fetch:
        try:
            cached = snapshot(local=True)
            if Checkpoint(cached, model, "").weight_files():
                return cached
        except (errors.LocalEntryNotFoundError, ModelLoadError, OSError, ValueError):
            pass  # not in the cache, or not whole: the hub is asked
    try:
        return snapshot(local=False)
    except errors.GatedRepoError as error:
        raise ModelLoadError(
            f"{model} is gated: accept its terms on the hub and set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelLoadError(f"{model} has no revision {revision}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"the hub has no model {model} (or it is private: set HF_TOKEN)"
        ) from error
    except Exception as error:  # the hub client raises its transport's own errors too
        raise ModelLoadError(
            f"{model} is not in the cache and the hub cannot be reached ({type(error).__name__}); "
            f"try `--model demo`, or run `vlmbatch models fetch {model}` where there is a network"
        ) from error


def _folder_revision(folder: Path) -> str:
    """A fingerprint that changes when the checkpoint does: contents of the small files, name, size
    and time of the weights.
    """
    digest = hashlib.sha256()
    for path in sorted(path for pattern in FILES for path in folder.glob(pattern)):
        status = path.stat()
        digest.update(path.name.encode())
        if path.suffix == ".safetensors" and status.st_size > 64 << 20:
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        else:
            digest.update(path.read_bytes())
    return f"sha256:{digest.hexdigest()[:16]}"
