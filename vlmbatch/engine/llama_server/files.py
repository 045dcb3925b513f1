"""The files of a model for llama.cpp: GGUF files as they are, or a checkpoint's, converted once."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmbatch.cached_files import note_files, note_use
from vlmbatch.checkpoint import Checkpoint, check_revision, find_checkpoint
from vlmbatch.engine.converted import converted_folder
from vlmbatch.engine.llama_server.answer import Vocabulary
from vlmbatch.engine.llama_server.one_tile import write_one_tile
from vlmbatch.errors import JobError, ModelLoadError
from vlmbatch.gguf_files import import_gguf, open_gguf, read_fields, read_tokenizer
from vlmbatch.hub import gguf_folder
from vlmbatch.job import EngineOptions
from vlmbatch.prepare.media_text import MediaTokens
from vlmbatch.prepare.prompt import PromptWriter
from vlmbatch.prepare.settings import read_tile_settings
from vlmbatch.prepare.tiles import TileSettings

logger = logging.getLogger(__name__)

TYPES = {"auto": "f32", "float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""Type of a converted checkpoint by ``--dtype``. Weights as they are give the words of ``--engine
torch``.
"""
QUANTIZED = ("q8_0", "q5_0", "q4_0")
"""Types of a converted checkpoint by ``--quantize``, which has llama.cpp's names."""
DTYPES = {"ALL_F32": "float32", "MOSTLY_F16": "float16", "MOSTLY_BF16": "bfloat16"}
"""Names of number formats in records; other formats have llama.cpp's, such as ``q8_0``."""
LINE = "Ċ"
"""The end of a line in a byte-level vocabulary."""
FORMAT = 1
"""Number of the form of converted files in the cache."""


@dataclasses.dataclass(frozen=True)
class GgufModel:
    """A model that was found.

    Attributes:
        name: Its name for the user.
        revision: Its revision.
        cache: Folder for files that are made once.
        checkpoint: The checkpoint that it is converted from; None for GGUF files.
        kind: Type that a checkpoint is converted to.
        given: The GGUF files, text and vision; None for a checkpoint.
    """

    name: str
    revision: str
    cache: Path
    checkpoint: Checkpoint | None = None
    kind: str = "f32"
    given: tuple[Path, Path] | None = None

    def ready(self) -> ReadyModel:
        """Convert the checkpoint unless that was done, and read what the files say.

        Raises:
            ModelLoadError: A file is broken or of another kind.
            MissingDependencyError: The package gguf is not installed.
        """
        if self.given is not None:
            text, vision = self.given
        else:
            assert self.checkpoint is not None
            folder = converted_folder(self.checkpoint, "gguf", self.kind, self.cache, FORMAT)
            text, vision = _find_pair(folder, None)
        return ReadyModel(text, vision, self.cache, self.checkpoint)


class ReadyModel:
    """A model whose files are there.

    Attributes:
        writer: Writes its prompts.
        picture: Tile settings of pictures at full detail.
        clip: Tile settings of frames; None if it takes no clips.
        takes_clips: Whether it was made for video, as far as the files say.
        sizes: Sizes of the vision encoder.
        context: Tokens of prompt and answer together.
        dtype: Number format of the weights.
        marker: Stands for a picture in prompts.
        logs: Folder for the server's logs.
        weight_bytes: Size of the files.
        kv_bytes: Bytes of keys and values a token.
    """

    def __init__(
        self, text: Path, vision: Path, cache: Path, checkpoint: Checkpoint | None
    ) -> None:
        """Read tokenizer, template and sizes, from the checkpoint where there is one.

        Raises:
            ModelLoadError: A file is broken or of another kind.
        """
        self._text, self._vision, self._cache = text, vision, cache
        self.logs = cache / "llama-server"
        self.marker = f"<__media_{secrets.token_hex(16)}__>"
        words, eyes = open_gguf(text), open_gguf(vision)
        self.sizes = VisionSizes.read(vision, eyes)
        (family,) = read_fields(words, "general.architecture")
        layers, kv_heads, head_dim, context, width, heads, file_type, eos, eot = read_fields(
            words,
            *(f"{family}.{name}" for name in ("block_count", "attention.head_count_kv")),
            *(f"{family}.{name}" for name in ("attention.key_length", "context_length")),
            *(f"{family}.{name}" for name in ("embedding_length", "attention.head_count")),
            *("general.file_type", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"),
        )
        if not layers or not context or eos is None:
            raise ModelLoadError(f"{text} is not a language model with a vocabulary")
        self.context = int(context)
        size = 4 if file_type == 0 else 2
        self.kv_bytes = 2 * layers * (kv_heads or heads) * (head_dim or width // heads) * size
        self.weight_bytes = text.stat().st_size + vision.stat().st_size
        self.dtype = _dtype_name(file_type)
        self._end_ids = frozenset(int(token) for token in (eos, eot) if token is not None)
        if checkpoint is not None:
            self.writer = PromptWriter.from_checkpoint(checkpoint)
            self.picture, self.clip = read_tile_settings(checkpoint)
            self._end_ids = checkpoint.end_token_ids()
            self.takes_clips = checkpoint.takes_clips
        else:
            self.writer = _writer(text, words, self.sizes)
            self.picture = TileSettings(self.sizes.longest_edge, self.sizes.tile)
            self.clip = TileSettings(self.sizes.tile, self.sizes.tile, split=False)
            self.takes_clips = True
        self._check_sizes(vision)
        self._check_tokens()

    def files(self, layout: str) -> tuple[Path, Path, int | None]:
        """Return the language model, the vision encoder and, for the one-tile layout, the tokens
        of a tile.
        """
        if layout == "grid":
            return self._text, self._vision, None
        status = [path.stat() for path in (self._text, self._vision)]
        said = [
            (path, each.st_size, each.st_mtime_ns)
            for path, each in zip((self._text, self._vision), status, strict=True)
        ]
        key = hashlib.sha256(repr(said).encode()).hexdigest()[:12]
        folder = self._cache / "gguf" / f"{self._text.stem}-one-tile-{key}-{FORMAT}"
        text, vision = folder / self._text.name, folder / self._vision.name
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=".one-tile-", dir=folder.parent))
            try:
                tokens = self.writer.tokens
                write_one_tile(
                    self._text,
                    fresh / text.name,
                    self._vision,
                    fresh / vision.name,
                    tokens.global_image,
                    tokens.fake,
                )
                note_files(fresh, (self._text, self._vision))
                if not folder.is_dir():
                    fresh.rename(folder)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
        note_use(folder)
        return text, vision, self.writer.tokens.seq_len

    def vocabulary(self) -> Vocabulary:
        """Return the tokens, as answers need them."""
        tokenizer = self.writer.tokenizer

        def spell(ids: Sequence[int]) -> str:
            return str(tokenizer.decode(list(ids), skip_special_tokens=False))

        return Vocabulary(
            self.writer.decode, self.writer.token_text, spell, self._end_ids, self.context
        )

    def _check_tokens(self) -> None:
        """Refuse a vocabulary without the tokens that llama.cpp puts around tiles.

        Raises:
            ModelLoadError: One is not a token.
        """
        tokens = self.writer.tokens
        for token in (tokens.fake, tokens.global_image, LINE, 2 * LINE):
            if self.writer.tokenizer.token_to_id(token) is None:
                raise ModelLoadError(
                    f"the vocabulary has no token {token!r}, which llama.cpp puts around pictures: "
                    "use --engine torch"
                )

    def _check_sizes(self, vision: Path) -> None:
        """Refuse a vision encoder that would resize our pictures.

        Raises:
            ModelLoadError: It would.
        """
        picture, sizes = self.picture, self.sizes
        if not picture.resize or picture.longest_edge % picture.tile_edge:
            raise ModelLoadError(
                "llama.cpp resizes pictures of this checkpoint in another way than its processor "
                f"(longest edge {picture.longest_edge}, tiles of {picture.tile_edge}): use "
                "--engine torch"
            )
        if (sizes.longest_edge, sizes.tile) != (picture.longest_edge, picture.tile_edge):
            raise ModelLoadError(
                f"{vision} has a longest edge of {sizes.longest_edge} pixels and tiles of "
                f"{sizes.tile}, the checkpoint {picture.longest_edge} and {picture.tile_edge}"
            )


@dataclasses.dataclass(frozen=True)
class VisionSizes:
    """Sizes of a vision encoder's file.

    Attributes:
        tile: Edge of a tile in pixels.
        longest_edge: Longest edge of a picture in pixels.
        tile_tokens: Tokens of a tile.
        patched: Edge of the part of a tile that whole patches cover; the encoder drops the rest.
    """

    tile: int
    longest_edge: int
    tile_tokens: int
    patched: int

    @classmethod
    def read(cls, path: Path, reader: Any) -> VisionSizes:
        """Read them.

        Raises:
            ModelLoadError: It is the encoder of another family, or has no size of pictures.
        """
        names = ("image_size", "patch_size", "projector.scale_factor", "preproc_image_size")
        kind, other, *sizes = read_fields(
            reader,
            *("clip.projector_type", "clip.vision.projector_type"),
            *(f"clip.vision.{name}" for name in names),
        )
        if "idefics3" not in (kind, other):
            raise ModelLoadError(
                f"{path} is a vision encoder of type {kind or other or 'unknown'}; this engine has "
                "prompts for SmolVLM and Idefics3 (idefics3)"
            )
        if None in sizes:
            raise ModelLoadError(
                f"{path} does not say how pictures are cut (preproc_image_size): convert the "
                "checkpoint anew, with `vlmbatch models convert --to gguf`"
            )
        tile, patch, factor, longest = map(int, sizes)
        return cls(tile, longest, (tile // patch // factor) ** 2, tile // patch * patch)


def find_model(options: EngineOptions) -> GgufModel:
    """Find the files of a model; convert nothing.

    Raises:
        JobError: The options do not go together.
        ModelLoadError: There is no such model.
    """
    name, cache = options.model, options.cache_folder
    path = Path(name).expanduser()
    is_file = path.suffix.lower() == ".gguf"
    has_gguf = path.is_dir() and not (path / "config.json").exists() and any(path.glob("*.gguf"))
    is_hub_gguf = not path.exists() and name.count("/") == 1 and name.lower().endswith("gguf")
    if not (is_file or has_gguf or is_hub_gguf):
        if options.mmproj is not None:
            raise JobError(f"--mmproj goes with a GGUF file as --model, not with {name}")
        checkpoint = find_checkpoint(name, options.revision)
        kind = options.quantize if options.quantize in QUANTIZED else TYPES[options.dtype]
        return GgufModel(name, checkpoint.revision, cache, checkpoint, kind=kind)
    if options.quantize != "none":
        raise JobError(
            f"--quantize {options.quantize} converts a checkpoint; {name} is a GGUF file, whose "
            "type is its own: leave it out"
        )
    if is_hub_gguf:
        path = gguf_folder(name, options.revision, TYPES[options.dtype])
    else:
        check_revision(name, options.revision)
        if is_file and not path.is_file():
            raise ModelLoadError(f"no such model: {name}")
        if options.revision:
            raise JobError(f"--revision goes with a hub id; {name} is a file")
    given = _find_pair(path, options.mmproj)
    if options.dtype != "auto":
        found = _dtype_name(read_fields(open_gguf(given[0]), "general.file_type")[0])
        if found != options.dtype:
            raise JobError(
                f"--dtype {options.dtype}: the weights in {given[0].name} are {found}; leave it out"
            )
    return GgufModel(name, _revision(given), cache, given=given)


def _find_pair(path: Path, mmproj: str | None) -> tuple[Path, Path]:
    """Return the two files of a GGUF file with its folder, or of a folder.

    Raises:
        ModelLoadError: One is missing, or there are several.
    """
    folder = path if path.is_dir() else path.parent
    files = sorted(folder.glob("*.gguf"))
    texts = [path] if path.is_file() else [f for f in files if "mmproj" not in f.name.lower()]
    visions = [Path(mmproj).expanduser()] if mmproj else [f for f in files if f not in texts]
    visions = [file for file in visions if mmproj or "mmproj" in file.name.lower()]
    if len(visions) > 1:  # those of other types
        ending = texts[0].stem.rsplit("-", 1)[-1].lower() if texts else ""
        visions = [file for file in visions if file.stem.lower().endswith(ending)] or visions
    for found, what, flag in (
        (texts, "language model", "--model FILE"),
        (visions, "mmproj file", "--mmproj FILE"),
    ):
        if not found or not found[0].is_file():
            raise ModelLoadError(f"there is no {what} in {folder}: name it with {flag}")
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise ModelLoadError(f"{folder} has several {what}s ({names}): name one with {flag}")
    return texts[0], visions[0]


def _dtype_name(file_type: Any) -> str:
    try:
        name = import_gguf().LlamaFileType(file_type).name
    except ValueError:
        return "unknown"
    return str(DTYPES.get(name, name.removeprefix("MOSTLY_").lower()))


def _revision(paths: Sequence[Path]) -> str:
    """Return a fingerprint of the files' beginnings, names, sizes and times."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
        with open(path, "rb") as file:
            digest.update(file.read(1 << 20))
    return f"sha256:{digest.hexdigest()[:16]}"


def _writer(path: Path, reader: Any, sizes: VisionSizes) -> PromptWriter:
    """Return a writer with the vocabulary and template of a GGUF file."""
    template, tokens, bos, eos = read_fields(
        reader,
        "tokenizer.chat_template",
        *(f"tokenizer.ggml.{name}" for name in ("tokens", "bos_token_id", "eos_token_id")),
    )
    if not template:
        raise ModelLoadError(f"{path} has no chat template")
    named = {"bos_token": bos, "eos_token": eos}
    special = {name: tokens[token] for name, token in named.items() if token is not None}
    media = MediaTokens(sizes.tile_tokens)
    return PromptWriter(read_tokenizer(reader), template, media, special)
