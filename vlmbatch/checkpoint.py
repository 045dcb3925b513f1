"""Find the files of a model on this disk, and read what they say.

A model is a folder in the hub's layout, a hub id, or the demo model of the package. The stages read
the same files: ``prepare/`` those of the processor, ``engine/`` the configuration and the weights.
Nothing here loads a weight.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbatch.errors import JobError, ModelLoadError
from vlmbatch.hub import FILES, VOCABULARIES, hub_folder
from vlmbatch.text_files import parse_json

if TYPE_CHECKING:
    import tokenizers

DEMO = "demo"
KNOWN_MODELS = (
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
)
"""The published SmolVLM2 checkpoints, smallest first."""

IDEFICS3_MODELS = (
    "HuggingFaceTB/SmolVLM-256M-Instruct",
    "HuggingFaceTB/SmolVLM-500M-Instruct",
    "HuggingFaceTB/SmolVLM-Instruct",
    "docling-project/SmolDocling-256M-preview",
    "ibm-granite/granite-docling-258M",
)
"""Published checkpoints of the Idefics3 family: the same architecture and processor, for pictures
only.
"""

MODEL_TYPES = ("smolvlm", "idefics3")
"""``model_type`` of SmolVLM2 and of the Idefics3 family."""

CLASS_DEFAULTS = {"image_size": 224, "patch_size": 32, "scale_factor": 2}
"""Sizes that a config.json may leave out (``SmolVLMConfig`` and ``Idefics3Config`` of transformers,
and their vision configurations).
"""

PROCESSOR_DEFAULTS = {"size": {"longest_edge": 4 * 364}, "max_image_size": {"longest_edge": 364}}
"""Settings that a processor's file may leave out (``SmolVLMImageProcessor`` and
``Idefics3ImageProcessor`` of transformers).
"""

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
"""First bytes of the small text file that git puts in place of a file kept by Git LFS."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this disk.

    Attributes:
        folder: The folder of its files.
        name: Its name for the user: a hub id, a path, or ``demo``.
        revision: The hub's commit; for a folder ``sha256:…`` over the small files and the sizes of
            the weights.
    """

    folder: Path
    name: str
    revision: str

    def require(self, file: str) -> Path:
        """Return the path of a file that must exist.

        Raises:
            ModelLoadError: It does not exist, or is a Git LFS pointer.
        """
        path = self.folder / file
        if not path.is_file():
            raise ModelLoadError(f"{self.name}: {file} is missing from {self.folder}")
        try:
            with open(path, "rb") as opened:
                start = opened.read(len(LFS_POINTER))
        except OSError as error:
            raise ModelLoadError(f"{self.name}: {file} cannot be read: {error}") from error
        if start == LFS_POINTER:
            raise ModelLoadError(
                f"{self.name}: {file} is a Git LFS pointer, not the file itself: "
                f"run `git lfs pull` in {self.folder}"
            )
        return path

    def read_json(self, file: str, *, required: bool = False) -> dict[str, Any]:
        """Read a JSON object; empty when the file does not exist and is not required."""
        if not required and not (self.folder / file).is_file():
            return {}
        path = self.require(file)
        try:
            value = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelLoadError(f"{self.name}: {file} cannot be read: {error}") from error
        if not isinstance(value, dict):
            raise ModelLoadError(f"{self.name}: {file} is not a JSON object")
        return value

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The object in config.json.

        Raises:
            ModelLoadError: It is neither SmolVLM2's nor Idefics3's.
        """
        config = self.read_json("config.json", required=True)
        if config.get("model_type") not in MODEL_TYPES:
            raise ModelLoadError(
                f"{self.name} is neither a SmolVLM2 nor an Idefics3 checkpoint (its type is "
                f"{config.get('model_type') or 'unknown'}); take one of {', '.join(KNOWN_MODELS)}"
            )
        return config

    @property
    def takes_clips(self) -> bool:
        """True if the model was made for video; Idefics3 takes pictures only."""
        return bool(self.config["model_type"] == "smolvlm")

    def image_processor(self) -> dict[str, Any]:
        """Read the settings of the image processor, from whichever file holds them.

        Raises:
            ModelLoadError: No file does.
        """
        settings = self._processor("image_processor", "preprocessor_config.json")
        if not settings:
            raise ModelLoadError(
                f"{self.name}: neither preprocessor_config.json nor processor_config.json says how "
                "pictures are cut"
            )
        for name, default in PROCESSOR_DEFAULTS.items():
            settings.setdefault(name, default)
        return settings

    def video_processor(self) -> dict[str, Any]:
        """Read the settings of the video processor; empty when no file holds them, and for models
        without video.
        """
        if not self.takes_clips:
            return {}
        files = ("video_preprocessor_config.json", "preprocessor_config.json")
        return self._processor("video_processor", *files)

    def _processor(self, key: str, *files: str) -> dict[str, Any]:
        """Read a processor's settings: a part of the new processor_config.json before the older
        files, as transformers does.
        """
        found: Any = self.read_json("processor_config.json").get(key)
        for file in files:
            found = found or self.read_json(file)
        return dict(found) if isinstance(found, dict) else {}

    def vision_sizes(self) -> dict[str, int]:
        """Return image_size, patch_size and scale_factor, with the defaults of transformers' class.

        Raises:
            ModelLoadError: One is not a positive number.
        """
        given = dict(self.config.get("vision_config") or {})
        given["scale_factor"] = self.config.get("scale_factor", CLASS_DEFAULTS["scale_factor"])
        sizes = {name: given.get(name, default) for name, default in CLASS_DEFAULTS.items()}
        for name, value in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ModelLoadError(f"{self.name}: config.json says {value!r} for {name}")
        return sizes

    def image_seq_len(self) -> int:
        """Return the number of image tokens a tile: (image_size / patch_size / scale_factor)².

        Raises:
            ModelLoadError: The processor's file says something else.
        """
        sizes = self.vision_sizes()
        computed = (sizes["image_size"] // sizes["patch_size"] // sizes["scale_factor"]) ** 2
        stated = self.read_json("processor_config.json").get("image_seq_len", computed)
        if stated != computed:
            raise ModelLoadError(
                f"{self.name}: the processor writes {stated} image tokens a tile, the vision "
                f"encoder gives {computed}"
            )
        return computed

    def tokenizer(self) -> tokenizers.Tokenizer:
        """Read tokenizer.json, without truncation and padding.

        Raises:
            ModelLoadError: It is missing or broken.
        """
        import tokenizers

        path = self.require("tokenizer.json")
        try:
            found = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelLoadError(f"{self.name}: tokenizer.json cannot be read: {error}") from error
        found.no_truncation()
        found.no_padding()
        return found

    def tokenizer_config(self) -> dict[str, Any]:
        """Read tokenizer_config.json; empty when it does not exist."""
        return self.read_json("tokenizer_config.json")

    def chat_template(self) -> str:
        """Read the Jinja source of the chat template. Of several files, take the one that
        transformers' processors take.

        Raises:
            ModelLoadError: No file has one.
        """
        for file in ("processor_config.json", "chat_template.json"):
            template = _default_template(self.read_json(file).get("chat_template"))
            if template is not None:
                return template
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        template = _default_template(self.tokenizer_config().get("chat_template"))
        if template is not None:
            return template
        raise ModelLoadError(
            f"{self.name}: no chat template (chat_template.jinja, chat_template.json)"
        )

    def end_token_ids(self) -> frozenset[int]:
        """Return the token ids that end an answer.

        Raises:
            ModelLoadError: Neither generation_config.json nor config.json has one.
        """
        text = self.config.get("text_config") or {}
        for source in (self.read_json("generation_config.json"), self.config, text):
            ids = source.get("eos_token_id")
            if ids is not None:
                return frozenset([ids] if isinstance(ids, int) else ids)
        raise ModelLoadError(
            f"{self.name}: no eos_token_id in generation_config.json or config.json"
        )

    def weight_files(self) -> list[Path]:
        """Return the paths of the safetensors files: one, or the shards that an index names.

        Raises:
            ModelLoadError: There is none, a shard is missing, or one is a Git LFS pointer.
        """
        index = self.read_json("model.safetensors.index.json")
        if index:
            return [self.require(file) for file in sorted(set(index["weight_map"].values()))]
        if (self.folder / "model.safetensors").is_file():
            return [self.require("model.safetensors")]
        hint = "; pickled weights are not read" if any(self.folder.glob("*.bin")) else ""
        raise ModelLoadError(f"{self.name}: no model.safetensors in {self.folder}{hint}")


def _default_template(found: object) -> str | None:
    """Return a template, or of several templates with names the one named ``default``."""
    if isinstance(found, list):
        found = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    return found if isinstance(found, str) else None


def find_checkpoint(model: str, revision: str | None = None, *, fetch: bool = False) -> Checkpoint:
    """Find the files of a model, fetching them from the hub if necessary.

    Args:
        model: A folder in the hub's layout, a hub id, or ``demo``.
        revision: Branch, tag or commit of a hub id.
        fetch: Ask the hub even when the cache has a complete copy.

    Raises:
        JobError: A folder or ``demo`` has no revision to choose.
        ModelLoadError: There is no such folder, or the hub cannot be reached and the cache has no
            copy.
    """
    check_revision(model, revision)
    if model == DEMO:
        folder = Path(__file__).parent / "demo"
        return Checkpoint(folder, DEMO, folder_revision(folder))
    folder = Path(model).expanduser()
    if folder.is_dir():
        _refuse_adapter(folder)
        return Checkpoint(folder, model, folder_revision(folder))
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        near = difflib.get_close_matches(model.lower(), [DEMO], 1, cutoff=0.75)
        hint = f"; did you mean {DEMO}?" if near else ""
        raise ModelLoadError(
            f"no such model: {model} is neither a folder, a hub id (owner/name) nor `demo`{hint}"
        )
    folder = hub_folder(model, revision, None if fetch else _check_weights)
    return Checkpoint(folder, model, folder.name)


def _check_weights(folder: Path) -> None:
    """Raise ModelLoadError for a folder that lacks weights."""
    Checkpoint(folder, folder.name, "").weight_files()


def check_revision(model: str, revision: str | None) -> None:
    """Refuse a revision of a model that has only one.

    Raises:
        JobError: The model is a folder or the demo model.
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
    """Refuse a folder that holds an adapter and no checkpoint, and name the command to merge it."""
    if (folder / "config.json").exists():
        return
    for adapter in (folder, folder / "adapter"):
        if (adapter / "adapter_config.json").is_file():
            raise ModelLoadError(
                f"{adapter} is an adapter, not a checkpoint: `vlmbatch models merge {adapter} "
                "-o FOLDER` makes one of it, for --model FOLDER"
            )


def folder_revision(folder: Path) -> str:
    """Return a fingerprint of the small files' contents, and of name, size and time of weights."""
    digest = hashlib.sha256()
    has_tokenizer = (folder / "tokenizer.json").exists()
    patterns = FILES if has_tokenizer else (*FILES, *VOCABULARIES)
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        status = path.stat()
        digest.update(path.name.encode())
        if path.suffix == ".safetensors" and status.st_size > 64 << 20:
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        else:
            digest.update(path.read_bytes())
    return f"sha256:{digest.hexdigest()[:16]}"
