"""Fetch the files of a model from the Hugging Face hub, or find them in its cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vlmbatch.errors import ModelLoadError

FILES = ("*.json", "*.jinja", "*.safetensors")
VOCABULARIES = ("*.model", "merges.txt", "vocab.txt")
"""Files that are fetched: no pickled weights, no ONNX copies, no pictures. The vocabularies are for
families without a tokenizer.json.
"""


def cached_folder(model: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model in the hub's cache, or None. Ask no network."""
    import huggingface_hub

    try:
        path = huggingface_hub.try_to_load_from_cache(model, "config.json", revision=revision)
    except huggingface_hub.errors.HFValidationError:
        return None  # no hub id
    return Path(path).parent if isinstance(path, str) else None


def gguf_folder(model: str, revision: str | None, kind: str) -> Path:
    """Return the folder of a repository of GGUF files in the hub's cache, with those of one type;
    fetch them if they are missing.

    Args:
        model: A hub id.
        revision: Branch, tag or commit; None for the main branch.
        kind: The type that file names end with, such as ``q8_0``.

    Raises:
        ModelLoadError: The hub does not have it, or cannot be reached.
    """
    patterns = [f"*{text}.gguf" for text in (kind.lower(), kind.upper())]

    def check(folder: Path) -> None:
        if not any(folder.glob("*.gguf")):
            raise ModelLoadError(f"{model} has no files of type {kind}")

    return hub_folder(model, revision, check, patterns)


def hub_folder(
    model: str,
    revision: str | None,
    check: Callable[[Path], object] | None,
    patterns: Sequence[str] = (*FILES, *VOCABULARIES),
) -> Path:
    """Return the folder of a model in the hub's cache, fetching what is missing.

    Args:
        model: A hub id.
        revision: Branch, tag or commit; None for the main branch.
        check: Raises ModelLoadError for a cached copy that is not whole. None: ask the hub even
            when the cache has a copy.
        patterns: The files to fetch.

    Raises:
        ModelLoadError: The hub does not have it, or cannot be reached.
    """
    from huggingface_hub import errors

    if check is not None:
        try:
            folder = _snapshot(model, revision, patterns, local=True)
            check(folder)
            return folder
        except (errors.LocalEntryNotFoundError, ModelLoadError, OSError, ValueError):
            pass  # not in the cache, or not whole
    try:
        return _snapshot(model, revision, patterns, local=False)
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
    except Exception as error:  # the hub client raises the errors of its transport too
        if check is None:
            raise ModelLoadError(
                f"{model} cannot be fetched: the hub cannot be reached ({type(error).__name__}); "
                "check the network and HF_HUB_OFFLINE, or copy the model's folder from another "
                "machine (--model FOLDER); `--model demo` needs neither"
            ) from error
        raise ModelLoadError(
            f"{model} is not in the cache and the hub cannot be reached ({type(error).__name__}); "
            f"try `--model demo`, or run `vlmbatch models fetch {model}` where there is a network"
        ) from error


def _snapshot(model: str, revision: str | None, patterns: Sequence[str], *, local: bool) -> Path:
    import huggingface_hub

    return Path(
        huggingface_hub.snapshot_download(
            model, revision=revision, allow_patterns=list(patterns), local_files_only=local
        )
    )
