"""Execution providers: which one is taken, and what to do where it is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmbatch.errors import DeviceError

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from vlmbatch.engine.onnx.graphs import Graph  # noqa: E402
from vlmbatch.engine.onnx.providers import (  # noqa: E402
    PROVIDERS,
    Provider,
    find_provider,
    installed_providers,
)


@pytest.mark.parametrize(
    ("device", "provider", "how"),
    [
        ("auto", "cuda", r"pip uninstall onnxruntime, then pip install 'vlmbatch\[onnx-gpu\]'"),
        ("cuda:1", None, r"no provider cuda, only .*cpu.*'vlmbatch\[onnx-gpu\]'"),
        ("auto", "tensorrt", r"'vlmbatch\[onnx-gpu\]' tensorrt"),
        ("mps", None, "no provider coreml, only .*: the package onnxruntime has it on macOS only"),
        ("auto", "openvino", "pip uninstall onnxruntime, then pip install onnxruntime-openvino"),
    ],
)
def test_what_a_missing_provider_needs_is_said(device: str, provider: str | None, how: str) -> None:
    name = provider or {"cuda": "cuda", "mps": "coreml"}[device.partition(":")[0]]
    if name in installed_providers():
        pytest.skip(f"{name} is there")
    with pytest.raises(DeviceError, match=f"{how}.*; or use --device cpu"):
        find_provider(device, provider)


@pytest.mark.parametrize(
    ("device", "provider", "home"),
    [("cpu", "coreml", "mps"), ("mps", "openvino", "cpu"), ("cpu", "tensorrt", "cuda")],
)
def test_a_provider_of_another_device_is_named(device: str, provider: str, home: str) -> None:
    said = f"--provider {provider} computes on {home}, not on --device {device}"
    with pytest.raises(DeviceError, match=said):
        find_provider(device, provider)


def test_the_cpu_is_taken_where_nothing_else_is_there() -> None:
    found = find_provider("cpu", None)
    assert (found.name, found.device, found.chain) == ("cpu", "cpu", ("CPUExecutionProvider",))
    if "cuda" not in installed_providers():
        assert find_provider("auto", None).name == "cpu"


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "openvino", "coreml"])
def test_what_a_provider_that_does_not_start_needs_is_said(name: str, tmp_path: Path) -> None:
    if name in installed_providers():
        pytest.skip(f"{name} is there")
    kind = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(each, kind, [1]) for each in ("x", "y")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "same", ends[:1], ends[1:]
    )
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "same.onnx"
    )
    provider = Provider(name, 0, (PROVIDERS[name][0], PROVIDERS["cpu"][0]))
    how = {"openvino": "install OpenVINO", "coreml": "needs macOS"}.get(name, "cuDNN")
    said = f"provider {name} does not start here.*: .*{how}.*; or use --device cpu"
    with (
        pytest.warns(UserWarning, match="not in available"),
        pytest.raises(DeviceError, match=said),
    ):
        Graph(tmp_path / "same.onnx", provider, 1)
