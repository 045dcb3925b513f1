"""Findings about this machine, one line for each thing that a run depends on, with advice where it
is missing.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vlmbatch.cli.folders import with_user_folders
from vlmbatch.cli.waiting import users_policy
from vlmbatch.wording import number_of

VIDEO_CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg")
IMAGE_FORMATS = {
    "JPEG": "jpg",
    "PNG": "zlib",
    "WebP": "webp",
    "TIFF": "libtiff",
    "AVIF": "avif",
    "JPEG 2000": "jpg_2000",
}
OPENCV_BUILDS = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)
"""Distributions that install the module cv2; the first one needs no display."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: a name, what was found, and what to do if something is missing."""

    name: str
    found: str
    advice: str = ""


def look() -> Iterator[Finding]:
    """Check everything that a run depends on."""
    yield from _engines()
    yield from _processor()
    yield from _devices()
    yield from _formats()
    yield from _opencv()
    yield from _extras()
    yield from _models()
    yield from _folder()


def _engines() -> Iterator[Finding]:
    import torch

    yield Finding("engine torch", str(torch.__version__))
    version = installed_version("transformers")
    yield Finding(
        "engine transformers",
        version or "transformers is not installed",
        "" if version else "pip install transformers",
    )
    yield _onnx()
    yield _llama_server()


def _onnx() -> Finding:
    """Find ONNX Runtime, and what it can compute with."""
    from vlmbatch.engine.onnx.providers import PROVIDERS, installed_providers

    there = installed_providers()
    version = installed_version("onnxruntime") or installed_version("onnxruntime-gpu")
    if not there or version is None:
        return Finding(
            "engine onnx", "no ONNX Runtime", "if you need it: pip install 'vlmbatch[onnx]'"
        )
    names = [name for name in PROVIDERS if name in there]
    return Finding("engine onnx", f"ONNX Runtime {version}: {', '.join(names)}")


def _llama_server() -> Finding:
    """Find llama.cpp's server and the package that writes its files."""
    program, package = shutil.which("llama-server"), installed_version("xllamacpp")
    found = program or (f"xllamacpp {package}" if package else "no llama-server, no xllamacpp")
    if installed_version("gguf") is None:
        found += ", no gguf"
    is_missing = "no " in found
    advice = "if you need it: pip install 'vlmbatch[llama]'" if is_missing else ""
    return Finding("engine llama-server", found, advice)


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> Iterator[Finding]:
    """Say what this process may use of the processor, and how its threads wait."""
    from vlmbatch.engine.threads import num_threads
    from vlmbatch.job import ResourceOptions
    from vlmbatch.processor import processor_share
    from vlmbatch.selftest.one_sequence import HOW, NAME, kept_rates

    options = with_user_folders(ResourceOptions())
    threads = num_threads(options)
    share = processor_share().describe()
    yield Finding("processor", f"{share}: {number_of(threads, 'thread')}")
    policy = users_policy()
    yield Finding("threads wait", f"as {policy} says" if policy else "asleep, after few spins")
    rates = kept_rates(options.cache_folder, threads)
    if rates is None:
        yield Finding(NAME, f"not timed beside bfloat16 yet: {HOW}")
    else:
        yield Finding(NAME, rates.describe(), rates.check().advice)


def _devices() -> Iterator[Finding]:
    import torch

    from vlmbatch.engine.torch import device as devices
    from vlmbatch.engine.torch.budget import gib
    from vlmbatch.processor import processor_share

    for name in devices.device_names():
        device = torch.device(name)
        memory = devices.device_memory(device)
        dtype = str(devices.find_dtype("auto", device, 1 << 30)).removeprefix("torch.")
        label = (
            torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else processor_share().describe()
            if name == "cpu"
            else "Apple GPU"
        )
        yield Finding(
            f"device {name}",
            f"{label}, {gib(memory.free)} of {gib(memory.total)} free, computes in {dtype}",
        )
    if torch.cuda.is_available():
        yield from _kernels()
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "cuda",
            "there is an NVIDIA driver, but this torch has no CUDA",
            "install a CUDA build of torch: https://pytorch.org/get-started",
        )
    group = devices.cgroup_memory()
    if group is not None:
        yield Finding(
            "memory limit", f"{gib(group.total)} for this control group, {gib(group.free)} free"
        )


def _kernels() -> Iterator[Finding]:
    """Say whether decode steps are recorded and layers compiled on CUDA."""
    from vlmbatch.engine.torch.cuda.fused import why_not_compiled
    from vlmbatch.engine.torch.cuda.graphs import why_no_graphs

    without_graphs, not_compiled = why_no_graphs(), why_not_compiled()
    advice = "install torch 2.13 or newer" if without_graphs else ""
    yield Finding("cuda graphs", without_graphs or "decode steps are recorded", advice)
    advice = "; install torch 2.13 or newer, and triton (triton-windows on Windows)"
    yield Finding(
        "fused layers",
        not_compiled or "compiled by triton",
        f"layers are computed one operation at a time{advice}" if not_compiled else "",
    )


def _formats() -> Iterator[Finding]:
    from PIL import features

    missing = [name for name, feature in IMAGE_FORMATS.items() if not features.check(feature)]
    advice = (
        "install Pillow from its wheel: pip install --force-reinstall pillow" if missing else ""
    )
    found = ", ".join(name for name in IMAGE_FORMATS if name not in missing)
    yield Finding("pictures", found + (f"; not {', '.join(missing)}" if missing else ""), advice)
    import av
    from av.codec import codecs_available

    lacking = [codec for codec in VIDEO_CODECS if codec not in codecs_available]
    version = ".".join(map(str, av.library_versions["libavcodec"]))
    text = ", ".join(codec for codec in VIDEO_CODECS if codec not in lacking) + (
        f"; not {', '.join(lacking)}" if lacking else ""
    )
    yield Finding(
        "videos",
        f"{text} (PyAV {av.__version__}, libavcodec {version})",
        "install PyAV from its wheel: pip install --force-reinstall av" if lacking else "",
    )
    yield Finding(
        "outputs", f"jsonl, csv, parquet (pyarrow {importlib.metadata.version('pyarrow')})"
    )


def _opencv() -> Iterator[Finding]:
    """Name the build of OpenCV, or several: their files overwrite each other."""
    versions = {name: installed_version(name) for name in OPENCV_BUILDS}
    there = [name for name in OPENCV_BUILDS if versions[name]]
    found, advice = ", ".join(f"{name} {versions[name]}" for name in there), ""
    if len(there) > 1:
        advice = "they overwrite each other's files: pip uninstall -y "
        advice += f"{' '.join(there)}, then pip install {OPENCV_BUILDS[0]}"
    elif not there and not importlib.util.find_spec("cv2"):
        found, advice = "not installed", f"pip install {OPENCV_BUILDS[0]}"
    yield Finding("OpenCV", found or "cv2", advice)


def _extras() -> Iterator[Finding]:
    from vlmbatch.finetune.extras import NEEDED
    from vlmbatch.read.extras import EXTRAS, REMOTE, is_there
    from vlmbatch.serve.extras import SERVER

    needed = {extra: (what, [module]) for extra, (what, module, _) in EXTRAS.items()} | {
        "remote": ("URLs", list(REMOTE.values())),
        "constraints": ("constrained answers", ["llguidance"]),
        "serve": ("serve, batch", list(SERVER)),
        "metrics": ("stats --metrics", ["prometheus_client"]),
        "eval": ("error rates of eval", ["jiwer", "sacrebleu"]),
        "finetune": ("finetune", list(NEEDED)),
    }
    for extra, (what, modules) in needed.items():
        missing = [module for module in modules if not is_there(module)]
        yield Finding(
            what,
            f"no {', '.join(missing)}" if missing else ", ".join(modules),
            f"if you need them: pip install 'vlmbatch[{extra}]'" if missing else "",
        )


def _models() -> Iterator[Finding]:
    import huggingface_hub.constants

    from vlmbatch.checkpoint import DEMO, IDEFICS3_MODELS, KNOWN_MODELS, find_checkpoint
    from vlmbatch.errors import ModelLoadError
    from vlmbatch.hub import cached_folder
    from vlmbatch.job import Job

    try:
        find_checkpoint(DEMO).weight_files()
        yield Finding("model demo", "in the package")
    except ModelLoadError as error:
        yield Finding("model demo", f"missing: {error}", "reinstall vlmbatch")
    offline = " (HF_HUB_OFFLINE is set)" if huggingface_hub.constants.HF_HUB_OFFLINE else ""
    yield Finding("hub cache", f"{huggingface_hub.constants.HF_HUB_CACHE}{offline}")
    default = next(field.default for field in dataclasses.fields(Job) if field.name == "model")
    for name in KNOWN_MODELS + IDEFICS3_MODELS:
        fetched = cached_folder(name) is not None
        advice = f"vlmbatch models fetch {name}" if name == default and not fetched else ""
        yield Finding(
            f"model {name.split('/')[1].removeprefix('SmolVLM2-')}",
            "in the cache" if fetched else "not fetched",
            advice,
        )


def _folder() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    writable = os.access(Path.cwd(), os.W_OK)
    yield Finding(
        "this folder",
        f"{free / 1e9:.1f} GB free, {'writable' if writable else 'not writable'}",
        "" if writable else "use -o PATH to write elsewhere",
    )
