"""Find the model's files and the program, check the options, and start the server."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import psutil

from vlmbatch.engine.base import EnginePlan
from vlmbatch.engine.llama_server.engine import Layout, LlamaServerEngine
from vlmbatch.engine.llama_server.files import QUANTIZED, GgufModel, ReadyModel, find_model
from vlmbatch.engine.llama_server.process import ServerCommand, ServerProcess
from vlmbatch.engine.llama_server.prompts import Prompts
from vlmbatch.errors import (
    JobError,
    MissingDependencyError,
    ModelLoadError,
    OutOfMemoryError,
    one_line,
)
from vlmbatch.job import EngineOptions
from vlmbatch.processor import processor_share

NAME = "llama-server"
PACKAGE = "xllamacpp"
OLDEST_BUILD = 10598
"""The first build that resizes pictures of this family with Lanczos, to Pillow's bits
(ggml-org/llama.cpp#27594).
"""
DEFAULT_SLOTS = 4
GIB = 1 << 30


def plan_engine(options: EngineOptions) -> EnginePlan:
    """Find model and program. Nothing is converted or started yet.

    Raises:
        JobError: An option that this engine cannot honour.
        ModelLoadError: There is no such model.
        MissingDependencyError: There is no llama-server.
    """
    _check_options(options)
    program = _find_program(options)
    model = find_model(options)
    opened = functools.partial(_open, options, program, model)
    takes_clips = model.checkpoint is None or model.checkpoint.takes_clips
    return EnginePlan(NAME, options.model, model.revision, opened, takes_clips=takes_clips)


def _check_options(options: EngineOptions) -> None:
    if options.quantize not in ("none", *QUANTIZED):
        raise JobError(
            f"engine {NAME} has no --quantize {options.quantize}; use {', '.join(QUANTIZED)}, or "
            "another --engine"
        )
    if options.quantize != "none" and options.dtype != "auto":
        raise JobError(
            f"engine {NAME} has no --quantize {options.quantize} with --dtype {options.dtype}; "
            "leave out one of them"
        )
    if options.detail == "native":
        raise JobError(
            f"engine {NAME} has no --detail native: llama.cpp enlarges every picture; use full or "
            "low, or --engine torch"
        )


def _device(options: EngineOptions) -> str:
    """Return llama.cpp's name of the device."""
    if options.device == "mps":
        return "MTL0"
    if options.device.startswith("cuda"):
        return f"CUDA{options.device.partition(':')[2] or 0}"
    return options.device


def _find_program(options: EngineOptions) -> str:
    """Return the path of llama-server, or the name of the package that has one.

    Raises:
        JobError: The named program is not there.
        MissingDependencyError: There is none.
    """
    if options.llama_server is not None:
        found = shutil.which(str(Path(options.llama_server).expanduser()))
        if found is None:
            raise JobError(f"--llama-server {options.llama_server}: no such program")
        return found
    found = shutil.which("llama-server")
    if found is not None:
        return found
    if importlib.util.find_spec(PACKAGE) is None:
        raise MissingDependencyError(
            f"engine {NAME} needs llama.cpp's llama-server on PATH or with --llama-server PATH, or "
            "its package: pip install 'vlmbatch[llama]'"
        )
    if options.device not in ("auto", "cpu"):
        raise JobError(
            f"--device {options.device} needs a llama-server that was built for it: name it with "
            "--llama-server PATH"
        )
    return PACKAGE


def check_build(program: str) -> None:
    """Refuse a llama.cpp whose pictures are not those of the checkpoint's processor.

    Raises:
        ModelLoadError: It is too old, or does not run.
    """
    if program == PACKAGE:
        version = importlib.metadata.version(PACKAGE)
    else:
        try:
            done = subprocess.run(
                [program, "--version"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=60,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ModelLoadError(f"{program} cannot be run: {one_line(error)}") from error
        version = done.stdout.decode(errors="replace")
    build = build_number(version)
    if build is not None and build < OLDEST_BUILD:
        raise ModelLoadError(
            f"{program} is build {build} of llama.cpp; pictures are resized as the checkpoint does "
            f"from build {OLDEST_BUILD} on: install a newer one"
        )


def build_number(version: str) -> int | None:
    """Return llama.cpp's build number in a version; None if it has none (a build of one's own from
    sources without history says 0 or 1).
    """
    found = re.search(r"\bbuild (\d+)|^version: (\d+) |^\d+\.\d+\.(\d+)", version, re.MULTILINE)
    number = int(next(filter(None, found.groups()), 0)) if found else 0
    return number if number > 1 else None


def _slots(options: EngineOptions, model: ReadyModel) -> int:
    """Return the number of sequences to decode together.

    Raises:
        OutOfMemoryError: The model and one of them do not fit.
    """
    free = psutil.virtual_memory().available
    limit = min(int(free * options.memory_fraction), options.max_memory_bytes or free)
    one = model.kv_bytes * model.context
    fitting = (limit - model.weight_bytes) // one
    if fitting < 1:
        raise OutOfMemoryError(
            f"{options.model} takes {model.weight_bytes / GIB:.2f} GiB for its weights and "
            f"{one / GIB:.2f} GiB for one context, and may have {limit / GIB:.2f} GiB: use a "
            "smaller model or type, or raise --max-memory"
        )
    return options.batch_size or int(min(DEFAULT_SLOTS, fitting))


def _open(options: EngineOptions, program: str, found: GgufModel) -> LlamaServerEngine:
    """Start a server. See ``EnginePlan.open``."""
    check_build(program)
    model = found.ready()
    slots, threads = _slots(options, model), options.threads or processor_share().threads
    prompts = Prompts(
        model.writer,
        model.picture,
        model.clip,
        patched_edge=model.sizes.patched,
        is_low=options.detail == "low",
        context=model.context,
        marker=model.marker,
    )

    def start(layout: Layout) -> ServerProcess:
        text, vision, tile_tokens = model.files(layout)
        command = ServerCommand(
            program,
            text,
            vision,
            slots,
            model.context,
            threads=threads,
            exact=model.dtype == "float32",
            device=_device(options),
            one_tile=tile_tokens,
        )
        return ServerProcess(command, model.logs, model.marker)

    is_one_tile = options.detail == "low"
    engine = LlamaServerEngine(
        start,
        prompts,
        model.vocabulary(),
        layout="one_tile" if is_one_tile else "grid",
        takes_clips=model.takes_clips,
        slots=slots,
        model=options.model,
        revision=found.revision,
        device="cpu" if program == PACKAGE or options.device == "cpu" else "",
        dtype=model.dtype,
    )
    engine.stats.threads = threads
    return engine
