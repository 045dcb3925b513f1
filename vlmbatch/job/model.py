"""Model options: model, engine and device."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from vlmbatch.errors import JobError
from vlmbatch.job.option import option

ENGINE_NAMES = ("torch", "transformers", "onnx", "llama-server", "openai")
LOCAL_ENGINES = (
    "torch: SmolVLM2 and Idefics3 with continuous batching. transformers: any image-text-to-text "
    "model of transformers, the reference. onnx: ONNX Runtime. llama-server: llama.cpp's, on GGUF "
    "files."
)
LISTED_ENGINES = "A list takes the first that opens."
"""Help texts about engines."""
PROVIDER_NAMES = ("cpu", "cuda", "tensorrt", "coreml", "openvino")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model and its engine. See the help text of each field."""

    model: str = option(
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "Hub id, local folder, or `demo`: SmolVLM2, or the Idefics3 family (SmolVLM, SmolDocling, "
        "granite-docling), which takes pictures only. With --engine llama-server also a GGUF file.",
        metavar="MODEL",
        is_path=True,
        group="Model",
    )
    revision: str | None = option(
        None,
        "Branch, tag or commit of a hub id; folders and `demo` have none.",
        metavar="REV",
        group="Model",
    )
    engine: str = option(
        "torch",
        f"{LOCAL_ENGINES} openai: a server, see --endpoint. {LISTED_ENGINES}",
        metavar="NAME[,NAME]",
        group="Model",
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.", metavar="DEVICE", group="Model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "Number format of the weights; auto picks the fastest that the device computes in.",
        group="Model",
    )
    quantize: Literal["none", "int8", "q4", "q8_0", "q5_0", "q4_0"] = option(
        "none",
        "int8 keeps the matrices of the language model as 8-bit integers: a quarter of float32's "
        "memory; some answers change. Faster than float32 on CPUs with VNNI or AMX; elsewhere it "
        "saves memory only. With one sequence bfloat16 may be faster: `vlmbatch doctor --selftest "
        "--quantize int8` times both. q4: 4-bit blocks, for --engine onnx. q8_0, q5_0, q4_0: "
        "blocks of 8, 5 and 4 bits, for --engine llama-server.",
        group="Model",
    )
    provider: str | None = option(
        None,
        "Execution provider of --engine onnx: cpu, cuda, tensorrt, coreml or openvino. [default: "
        "that of --device]",
        metavar="NAME",
        group="Model",
    )
    llama_server: str | None = option(
        None,
        "llama.cpp's server for --engine llama-server. [default: llama-server on PATH, else that "
        "of the package xllamacpp]",
        metavar="PATH",
        is_path=True,
        group="Model",
    )
    mmproj: str | None = option(
        None,
        "Vision encoder of a --model that is a GGUF file. [default: the mmproj file beside it]",
        metavar="FILE",
        is_path=True,
        group="Model",
    )

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines to try, in order."""
        return tuple(name.strip() for name in self.engine.split(","))

    def check_model(self) -> None:
        """Check the values of this group.

        Raises:
            JobError: A value is not allowed.
        """
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise JobError(f"device must be auto, cpu, cuda, cuda:N or mps, not {self.device!r}")
        if "llama-server" not in self.engines:
            for field in ("llama_server", "mmproj"):
                if getattr(self, field) is not None:
                    raise JobError(f"{field} goes with --engine llama-server")
        if self.provider is not None and "onnx" not in self.engines:
            raise JobError("provider goes with --engine onnx")
        if self.provider not in (None, *PROVIDER_NAMES):
            raise JobError(
                f"provider must be one of {', '.join(PROVIDER_NAMES)}, not {self.provider!r}"
            )
        for name in self.engines:
            if name not in ENGINE_NAMES:
                raise JobError(
                    f"engine must be one of {', '.join(ENGINE_NAMES)}, or several of them "
                    f"separated by commas, not {self.engine!r}"
                )
