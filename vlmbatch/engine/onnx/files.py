"""Find the graphs of a model: in its folder, or made of its weights and cached."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from vlmbatch.checkpoint import DEMO, Checkpoint, check_revision, find_checkpoint
from vlmbatch.engine.converted import converted_folder
from vlmbatch.errors import ModelLoadError
from vlmbatch.hub import cached_folder
from vlmbatch.job import EngineOptions

logger = logging.getLogger(__name__)

VISION, EMBEDDING = "vision_encoder", "embed_tokens"
DECODERS = ("decoder_model_merged", "decoder_model", "decoder_with_past_model")
"""The language model: one graph, or one for the first tokens and one for those that follow."""
SUFFIXES = {
    ("none", "float32"): ("",),
    ("none", "float16"): ("_fp16",),
    ("none", "auto"): ("", "_fp16"),
    ("int8", "float32"): ("_int8", "_quantized", "_uint8"),
    ("q4", "float32"): ("_q4",),
    ("int8", "auto"): ("_int8", "_quantized", "_uint8"),
    ("q4", "auto"): ("_q4",),
}
"""Suffixes of the files by ``--quantize`` and ``--dtype``, the first that is there."""
OTHERS = ("_int8", "_quantized", "_uint8", "_q4", "_q4f16", "_bnb4")
"""Suffixes that are taken without being asked for if a folder has nothing else."""
TYPES = {"": "fp32", "_fp16": "fp16", "_int8": "int8", "_q4": "q4"}
"""Type that a checkpoint is converted to, by suffix."""
DTYPES = {
    "": "float32",
    "_fp16": "float16",
    "_q4f16": "float16+q4",
    "_q4": "float32+q4",
    "_bnb4": "float32+bnb4",
}
"""Number format in records by suffix; those not named are ``float32+int8``."""
FORMAT = 1
"""Number of the form of converted graphs in the cache."""
LARGE_BYTES = 64 << 20
"""Size from which on a file's time stands for its content."""


@dataclasses.dataclass(frozen=True)
class GraphFiles:
    """The graphs of a model.

    Attributes:
        vision, embedding: Files of the encoder and of the embeddings.
        decoders: File of the language model; two if it is not merged, see ``DECODERS``.
        dtype: Number format, as records have it.
    """

    vision: Path
    embedding: Path
    decoders: tuple[Path, ...]
    dtype: str

    @property
    def all(self) -> tuple[Path, ...]:
        """All files, those with weights beside the graphs included."""
        graphs = (self.vision, self.embedding, *self.decoders)
        return tuple(
            path
            for graph in graphs
            for path in (graph, *sorted(graph.parent.glob(f"{graph.name}?*")))
        )

    @property
    def weight_bytes(self) -> int:
        """Size of the files."""
        return sum(path.stat().st_size for path in self.all)

    def fingerprint(self) -> str:
        """Return a digest of the files: content, or size and time of large ones."""
        digest = hashlib.sha256()
        for path in self.all:
            status = path.stat()
            digest.update(path.name.encode())
            if status.st_size > LARGE_BYTES:
                digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
            else:
                digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class OnnxModel:
    """A model that was found.

    Attributes:
        checkpoint: Its small files, and its weights if there are no graphs.
        revision: Its revision; of a folder's graphs, their digest.
        suffix: Suffix of the graphs that a checkpoint is converted to.
        given: The graphs of the folder; None if there are none.
    """

    checkpoint: Checkpoint
    revision: str
    suffix: str
    given: GraphFiles | None

    def ready(self, cache: Path) -> GraphFiles:
        """Return the graphs, converted if necessary.

        Args:
            cache: Folder for caches.

        Raises:
            ModelLoadError: The checkpoint cannot be converted.
            MissingDependencyError: The packages for that are not installed.
        """
        if self.given is not None:
            return self.given
        folder = converted_folder(self.checkpoint, "onnx", TYPES[self.suffix], cache, FORMAT)
        return _find_graphs(folder, (self.suffix,)) or _lacks(folder)


def find_model(options: EngineOptions) -> OnnxModel:
    """Find a model's graphs, or the checkpoint to convert. Nothing is converted yet.

    Raises:
        ModelLoadError: There is no such model, or it is of another kind.
    """
    suffixes = SUFFIXES[options.quantize, options.dtype]
    folder = Path(options.model).expanduser()
    if options.model != DEMO and not folder.is_dir():
        folder = cached_folder(options.model, options.revision) or folder
    if options.model != DEMO and _has_graphs(folder):
        check_revision(options.model, options.revision)
        given = _choose_graphs(folder, suffixes, options)
        root = folder if (folder / "config.json").is_file() else folder.parent
        digest = f"sha256:{given.fingerprint()}"
        return OnnxModel(Checkpoint(root, options.model, digest), digest, suffixes[0], given)
    checkpoint = find_checkpoint(options.model, options.revision)
    checkpoint.weight_files()
    return OnnxModel(checkpoint, checkpoint.revision, suffixes[0], None)


def _has_graphs(folder: Path) -> bool:
    return any(any(place.glob(f"{VISION}*.onnx")) for place in (folder / "onnx", folder))


def _choose_graphs(folder: Path, suffixes: Sequence[str], options: EngineOptions) -> GraphFiles:
    """Return a folder's graphs in the number format that was asked for.

    Raises:
        ModelLoadError: It has none such.
    """
    found = _find_graphs(folder, suffixes)
    if found is None and (options.quantize, options.dtype) == ("none", "auto"):
        found = _find_graphs(folder, OTHERS)
        if found is not None:
            logger.warning("%s has %s graphs only: they answer", options.model, found.dtype)
    return found or _lacks(folder)


def _lacks(folder: Path) -> GraphFiles:
    there = sorted(
        path.name for place in (folder / "onnx", folder) for path in place.glob("*.onnx")
    )
    raise ModelLoadError(
        f"{folder} lacks a graph for this --dtype and --quantize; it takes {VISION}, {EMBEDDING} "
        f"and {DECODERS[0]} of one number format, and there is {', '.join(there) or 'none'}"
    )


def _find_graphs(folder: Path, suffixes: Sequence[str]) -> GraphFiles | None:
    for place in (folder / "onnx", folder):
        for suffix in suffixes:
            vision, embedding, merged, first, following = (
                place / f"{name}{suffix}.onnx" for name in (VISION, EMBEDDING, *DECODERS)
            )
            decoders = (merged,) if merged.is_file() else (first, following)
            if all(path.is_file() for path in (vision, embedding, *decoders)):
                dtype = DTYPES.get(suffix, "float32+int8")
                return GraphFiles(vision, embedding, decoders, dtype)
    return None
