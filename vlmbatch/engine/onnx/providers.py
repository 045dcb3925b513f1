"""Execution providers of ONNX Runtime: which one computes, and what it is called."""

from __future__ import annotations

import dataclasses
from typing import Any

from vlmbatch.errors import DeviceError

PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "cpu"),
    "cuda": ("CUDAExecutionProvider", "cuda"),
    "tensorrt": ("TensorrtExecutionProvider", "cuda"),
    "coreml": ("CoreMLExecutionProvider", "mps"),
    "openvino": ("OpenVINOExecutionProvider", "cpu"),
}
"""ONNX Runtime's name of each ``--provider``, and the kind of device that it goes with."""
_IN_PLACE = "pip uninstall onnxruntime, then pip install "
INSTALL = {
    "cpu": "pip install 'vlmbatch[onnx]'",
    "cuda": f"{_IN_PLACE}'vlmbatch[onnx-gpu]'",
    "tensorrt": f"{_IN_PLACE}'vlmbatch[onnx-gpu]' tensorrt",
    "coreml": "the package onnxruntime has it on macOS only",
    "openvino": f"{_IN_PLACE}onnxruntime-openvino",
}
"""What to do where ONNX Runtime lacks a provider. Its packages stand in one folder: two of them
overwrite each other.
"""
LIBRARIES = {
    "cuda": "install CUDA and cuDNN, as with pip install 'onnxruntime-gpu[cuda,cudnn]', and look "
    "with nvidia-smi whether the GPU is seen",
    "tensorrt": "install TensorRT beside CUDA and cuDNN, as with pip install tensorrt "
    "'onnxruntime-gpu[cuda,cudnn]'",
    "coreml": "it needs macOS",
    "openvino": "install OpenVINO, as with pip install openvino",
}
"""What to do where a provider is there and does not start."""


@dataclasses.dataclass(frozen=True)
class Provider:
    """The provider that computes.

    Attributes:
        name: Its name here, a key of ``PROVIDERS``.
        index: Number of the GPU.
        chain: What a session takes: the provider, and those for nodes that it lacks.
    """

    name: str
    index: int
    chain: tuple[Any, ...]

    @property
    def device(self) -> str:
        """The device, as records have it."""
        if self.name in ("cpu", "coreml", "openvino"):
            return self.name
        return f"cuda:{self.index}"

    @property
    def cache_device(self) -> str:
        """ONNX Runtime's name of the memory with keys and values."""
        return "cuda" if self.name in ("cuda", "tensorrt") else "cpu"


def installed_providers() -> tuple[str, ...]:
    """Return the names of the providers that are installed; none without ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError:
        return ()
    installed = onnxruntime.get_available_providers()
    return tuple(name for name, (own, _) in PROVIDERS.items() if own in installed)


def find_provider(device: str, provider: str | None) -> Provider:
    """Choose the provider of ``--device`` and ``--provider``.

    Raises:
        DeviceError: It is not installed, or does not go with the device.
    """
    there = installed_providers()
    kind, _, number = device.partition(":")
    if provider is None:
        by_device = {"cpu": "cpu", "cuda": "cuda", "mps": "coreml"}
        provider = by_device.get(kind) or ("cuda" if "cuda" in there else "cpu")
    own, home = PROVIDERS[provider]
    if kind not in ("auto", home):
        raise DeviceError(f"--provider {provider} computes on {home}, not on --device {device}")
    if provider not in there:
        raise DeviceError(
            f"this ONNX Runtime has no provider {provider}, only {', '.join(there)}: "
            f"{INSTALL[provider]}; or use --device cpu"
        )
    index = int(number or 0)
    chain: list[Any] = [(own, {"device_id": str(index)}) if home == "cuda" else own]
    if provider == "tensorrt":
        chain.append((PROVIDERS["cuda"][0], {"device_id": str(index)}))
    if provider != "cpu":
        chain.append(PROVIDERS["cpu"][0])
    return Provider(provider, index, tuple(chain))
