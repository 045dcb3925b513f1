"""Check the options of an endpoint, find its key and its model, and make the engine."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import importlib.util
import logging
import os
from pathlib import Path

from vlmbatch.checkpoint import DEMO, Checkpoint, find_checkpoint
from vlmbatch.engine.base import EnginePlan
from vlmbatch.engine.openai.client import EndpointClient, Interrupted, Refused, Unreachable
from vlmbatch.engine.openai.engine import MAX_TEMPERATURE, EndpointEngine
from vlmbatch.engine.openai.messages import Messages
from vlmbatch.engine.openai.retries import ADVICE
from vlmbatch.errors import EngineError, JobError, MissingDependencyError, ModelLoadError
from vlmbatch.hub import cached_folder
from vlmbatch.job import EngineOptions
from vlmbatch.prepare.settings import read_tile_settings
from vlmbatch.prepare.tiles import TileSettings

logger = logging.getLogger(__name__)

NAME = "openai"
PICTURE = TileSettings(longest_edge=2048, tile_edge=512)
CLIP = TileSettings(longest_edge=512, tile_edge=512, split=False)
"""Settings of the published SmolVLM2 256M and 500M, for models whose own are not here."""
REFUSED = (
    *("revision", "device", "dtype", "quantize", "max_memory", "memory_fraction", "batch_size"),
    "threads",
)
"""Options that are a matter of the endpoint."""
LOOK_SECONDS = 30.0
"""Longest time to ask for the endpoint's models."""
OPEN_SECONDS = 10.0
"""Longest time to wait for any answer of an endpoint in whose place another engine can answer."""
GATEWAY = (502, 504)
"""Answers of a proxy that does not reach the server behind it."""


def plan_engine(options: EngineOptions) -> EnginePlan:
    """Check the options, read the key and find the name of the model.

    Raises:
        JobError: An option that an endpoint cannot honour; no key where one is named; several
            models and none named.
        ModelLoadError: The endpoint has to be asked for its model, and does not answer.
        MissingDependencyError: httpx2 is not installed.
    """
    _check_options(options)
    if importlib.util.find_spec("httpx2") is None:
        raise MissingDependencyError(f"engine {NAME} needs httpx2: pip install 'vlmbatch[remote]'")
    key = read_key(options)
    model = options.model
    if model == EngineOptions.model:
        model = _choose_model(options, key)
    return EnginePlan(NAME, model, "", functools.partial(_open, options, key, model))


def _check_options(options: EngineOptions) -> None:
    for name in REFUSED:
        (default,) = (f.default for f in dataclasses.fields(options) if f.name == name)
        if (value := getattr(options, name)) != default:
            hint = "; use --in-flight" if name == "batch_size" else ""
            raise JobError(
                f"engine {NAME} has no --{name.replace('_', '-')} {value}: that is a matter of the "
                f"endpoint{hint}"
            )
    if options.detail == "native":
        raise JobError(f"engine {NAME} has no --detail native: endpoints know full and low")
    if options.temperature > MAX_TEMPERATURE:
        raise JobError(
            f"engine {NAME} takes a --temperature of at most {MAX_TEMPERATURE:g}, not "
            f"{options.temperature:g}"
        )


def read_key(options: EngineOptions) -> str | None:
    """Return the key of the endpoint; None without one.

    Raises:
        JobError: The variable or file has none.
    """
    if (name := options.api_key_env) is not None:
        key = os.environ.get(name, "").strip()
        where = f"--api-key-env {name}: the variable"
    elif (file := options.api_key_file) is not None:
        where = f"--api-key-file {file}: the file"
        try:
            key = Path(file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise JobError(f"--api-key-file {file}: {reason}") from error
    else:
        return None
    if not key:
        raise JobError(f"{where} has no key")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise JobError(f"{where} must hold one key, on one line")
    return key


def _client(options: EngineOptions, key: str | None, timeout: float) -> EndpointClient:
    return EndpointClient(options.endpoint_url, key, connections=options.in_flight, timeout=timeout)


def _choose_model(options: EngineOptions, key: str | None) -> str:
    """Return the endpoint's only model, or the usual one where it has it.

    Raises:
        JobError: It has several others.
        ModelLoadError: It does not say.
    """

    try:
        names = _ask_models(options, key, LOOK_SECONDS)
    except (Refused, Unreachable, Interrupted) as error:
        advice = ADVICE.get(getattr(error, "status", 0), "start it, or name the model with --model")
        raise ModelLoadError(
            f"{options.endpoint_url} does not say which models it has ({error}): {advice}"
        ) from error
    if options.model in names:
        return options.model
    if len(names) != 1:
        there = ", ".join(names) or "none"
        raise JobError(f"{options.endpoint_url} has several models: name one with --model: {there}")
    logger.info("the endpoint's model is %s", names[0])
    return names[0]


def _ask_models(options: EngineOptions, key: str | None, seconds: float) -> list[str]:
    """Return the names of the endpoint's models.

    Raises:
        Refused, Unreachable, Interrupted: See there.
    """

    async def ask() -> list[str]:
        client = _client(options, key, min(seconds, options.request_timeout))
        try:
            return await client.models()
        finally:
            await client.close()

    # On a thread of its own: that of a notebook runs an event loop already.
    with concurrent.futures.ThreadPoolExecutor(1, "endpoint") as thread:
        return thread.submit(lambda: asyncio.run(ask())).result()


def _check_reachable(options: EngineOptions, key: str | None) -> None:
    """Check that the endpoint answers anything, be it an error.

    Raises:
        EngineError: It cannot be reached.
    """
    try:
        _ask_models(options, key, OPEN_SECONDS)
    except (Refused, Unreachable, Interrupted) as error:
        if not isinstance(error, Refused) or error.status in GATEWAY:
            raise EngineError(f"{options.endpoint_url}: {error}") from error


def _open(options: EngineOptions, key: str | None, model: str) -> EndpointEngine:
    """Make the engine. See ``EnginePlan.open``.

    Alone, or last of several, it waits for an endpoint that starts later.

    Raises:
        EngineError: The endpoint cannot be reached, and another engine comes after this one.
    """
    if NAME in options.engines[:-1]:
        _check_reachable(options, key)
    picture, clip = _tile_settings(model)
    messages = Messages(
        picture,
        clip,
        "low" if options.detail == "low" else "full",
        is_original=options.send == "original",
        jpeg_quality=options.jpeg_quality,
    )
    return EndpointEngine(
        functools.partial(_client, options, key, options.request_timeout),
        messages,
        model=model,
        endpoint=options.endpoint_url,
        in_flight=options.in_flight,
    )


def _tile_settings(model: str) -> tuple[TileSettings, TileSettings]:
    """Return the sizes that a model uses, from its checkpoint if that is on this disk."""
    is_here = model == DEMO or Path(model).is_dir()
    try:
        folder = None if is_here else cached_folder(model)
        if not is_here and folder is None:
            return PICTURE, CLIP
        checkpoint = find_checkpoint(model) if folder is None else Checkpoint(folder, model, "")
        picture, clip = read_tile_settings(checkpoint)
    except (ModelLoadError, ValueError):  # ValueError: a name that no hub id has
        return PICTURE, CLIP
    return picture, clip or CLIP
