"""Run the test: the reference first, then the engine, then the judging."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from pathlib import Path

from vlmbatch.checkpoint import DEMO, find_checkpoint
from vlmbatch.engine import Engine, EnginePlan, open_engine, plan_engine
from vlmbatch.engine.onnx.providers import find_provider
from vlmbatch.engine.torch.device import find_device
from vlmbatch.errors import ModelLoadError, VlmbatchError
from vlmbatch.hub import cached_folder
from vlmbatch.job import EngineOptions
from vlmbatch.selftest.asking import Round, Say
from vlmbatch.selftest.checks import Check, Subject, check_kernels, check_trial
from vlmbatch.selftest.memory import MemoryWatch, check_memory, memory_use
from vlmbatch.selftest.one_sequence import settle_rates
from vlmbatch.selftest.report import Report
from vlmbatch.selftest.scenes import Scene, scenes
from vlmbatch.selftest.speed import speed_of, trial_speed
from vlmbatch.selftest.trial import Trial, ask_reference, run_trial

TILED_TYPES = ("smolvlm", "idefics3")
"""Types of models that can take a picture as one tile."""


def run_selftest(options: EngineOptions, say: Say) -> Report:
    """Test the engine that these options open.

    Args:
        options: Model, engine, device and endpoint.
        say: Called with what is done next.

    Raises:
        JobError: An option that the engine cannot honour.
        EngineError: The engine cannot be opened. What goes wrong later is a check that failed.
        MissingDependencyError: The engine needs a package that is not installed.
        OutputError: There is no room for the random weights that int8 is timed with.
    """
    plan = plan_engine(options)
    device = watched_device(plan.name, options)
    report = examine(plan, options, device, say)
    if plan.name == "torch" and device == "cpu" and options.quantize == "int8":
        say("timing int8 beside bfloat16 with one sequence")
        rates = settle_rates(options)
        report.speed["one_sequence"] = dataclasses.asdict(rates)
        report.add(rates.check())
    return report


def watched_device(engine: str, options: EngineOptions) -> str | None:
    """Return the device whose memory an engine takes; None if it is not seen from here.

    Raises:
        DeviceError: The device is not available.
    """
    if engine in ("torch", "transformers"):
        return str(find_device(options.device))
    if engine == "onnx":
        provider = find_provider(options.device, options.provider)
        return "cpu" if provider.cache_device == "cpu" else None
    if engine == "llama-server":
        return "cpu" if options.device in ("auto", "cpu") else None
    return None


def examine(plan: EnginePlan, options: EngineOptions, device: str | None, say: Say) -> Report:
    """Test the engine of a plan.

    Args:
        plan: The engine.
        options: The options that it was planned with.
        device: The device whose memory is watched, if one is.
        say: See ``run_selftest``.

    Raises:
        EngineError: The engine cannot be opened.
    """
    report = Report()
    drawn = scenes(with_clip=plan.takes_clips)
    takes_detail = _takes_detail(plan.model)
    say("asking the reference: torch on the CPU in float32")
    reference, missing = _ask_reference(plan, options, drawn, say, takes_detail=takes_detail)
    say(f"opening {plan.name} with {Path(plan.model).name}")
    watch = None if device is None else MemoryWatch(device)
    trial: Trial | None = None
    with contextlib.nullcontext() if watch is None else watch.watching():
        engine = plan.open()
        try:
            report.describe_engine(engine, options)
            if watch is not None:
                watch.follow(engine)
            trial = run_trial(engine, drawn, say, takes_detail=takes_detail)
        except Exception as error:  # whatever a device or driver does is what the test looks for
            report.add(_broken(engine, error))
        finally:
            if watch is not None:
                watch.stop()
            engine.close()
    if trial is not None:
        _judge(report, engine, plan, trial, reference, missing)
        answers = [one for each in trial.rounds for one in each.flat]
        use = memory_use(engine, answers, None if watch is None else watch.taken)
        report.memory = dataclasses.asdict(use)
        report.add(check_memory(use, engine.device))
    return report


def _ask_reference(
    plan: EnginePlan,
    options: EngineOptions,
    drawn: list[Scene],
    say: Say,
    *,
    takes_detail: bool,
) -> tuple[Round | None, str]:
    """Return the reference's answers, or the reason for having none."""
    if not _is_here(plan.model):
        return None, f"{plan.model} is not on this machine: there is nothing to compare with"
    of_reference = EngineOptions(
        model=plan.model,
        revision=options.revision,
        device="cpu",
        dtype="float32",
        threads=options.threads,
        cache_dir=options.cache_dir,
        max_new_tokens=options.max_new_tokens,
    )
    try:
        engine = open_engine(of_reference)
    except VlmbatchError as error:
        return None, f"there is nothing to compare with: {error}"
    try:
        return ask_reference(engine, drawn, say, takes_detail=takes_detail), ""
    except VlmbatchError as error:
        return None, f"there is nothing to compare with: {error}"
    finally:
        engine.close()
        del engine
        gc.collect()


def _judge(
    report: Report,
    engine: Engine,
    plan: EnginePlan,
    trial: Trial,
    reference: Round | None,
    missing: str,
) -> None:
    """Add what the answers tell to a report."""
    subject = Subject(engine.name, engine.device, engine.dtype, plan.model == DEMO)
    for check, equality in check_trial(subject, trial, reference, missing):
        report.add(check)
        if equality is not None:
            report.agreement[check.name] = equality.describe()
    kernels = check_kernels(engine.stats)
    if kernels is not None:
        report.add(kernels)
    speed = trial_speed(trial)
    report.speed["engine"] = dataclasses.asdict(speed)
    report.add(Check("speed", "pass", speed.describe()))
    if reference is not None:
        of_reference = speed_of(reference)
        report.speed["reference"] = dataclasses.asdict(of_reference)
        report.add(Check("speed of reference", "pass", of_reference.describe()))


def _broken(engine: Engine, error: Exception) -> Check:
    """Describe an engine that could not go on."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    advice = {
        "openai": "see the server's own log",
        "torch": "use --device cpu until it is mended, and send the report of --json",
    }.get(engine.name, "use --engine torch until it is mended, and send the report of --json")
    return Check("engine", "fail", text, advice)


def _is_here(model: str) -> bool:
    """Whether a model is on this machine: a server's need not be."""
    return model == DEMO or Path(model).exists() or cached_folder(model) is not None


def _takes_detail(model: str) -> bool:
    """Whether a model can take a picture as one tile; true where that is not known."""
    if not _is_here(model):
        return True
    try:
        return find_checkpoint(model).config.get("model_type") in TILED_TYPES
    except (ModelLoadError, ValueError):
        return True
