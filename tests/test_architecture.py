"""The house keeps its order: imports point down, stages do not know each other, heavy libraries
stay where they belong.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vlmbatch
from vlmbatch import errors

PACKAGE = Path(vlmbatch.__file__).parent
FLOOR = {
    "errors",
    "tasks",
    "urls",
    "values",
    "wording",
    "text_files",
    "filesystems",
    "control_groups",
    "processor",
    "job",
    "core",
    "checkpoint",
    "cached_files",
    "gguf_files",
    "hub",
    "native_library",
}
STAGES = {"read", "sample", "prepare", "engine", "write"}
ALLOWED = {
    **dict.fromkeys(STAGES, FLOOR),
    "engine": FLOOR | {"prepare"},
    "errors": set(),
    "tasks": {"errors"},
    "urls": set(),
    "native_library": set(),
    "text_files": set(),
    "filesystems": {"errors", "urls"},
    "control_groups": set(),
    "processor": {"control_groups"},
    "core": {"errors"},
    "gguf_files": {"errors"},
    "hub": {"errors"},
    "checkpoint": {"errors", "hub", "text_files"},
    "cached_files": {"checkpoint", "errors"},
    "values": {"errors"},
    "wording": set(),
    "job": {"core", "errors", "tasks", "text_files", "urls", "values"},
    "questions": FLOOR,
    "evaluate": FLOOR | {"write"},
    "correct": FLOOR | {"write"},
    "export": FLOOR | {"write"},
    "stats": FLOOR | {"run", "write"},
    "run": FLOOR | STAGES | {"questions"},
    "serve": FLOOR | STAGES | {"questions", "run"},
    "finetune": FLOOR | STAGES,
    "bench": FLOOR | {"read", "prepare", "engine"},
    "selftest": FLOOR | {"read", "engine", "bench", "__version__"},
    "convert": FLOOR | {"engine", "prepare"},
    "compare": FLOOR | {"questions", "read", "engine"},
    "cli": FLOOR
    | STAGES
    | {
        "correct",
        "evaluate",
        "export",
        "stats",
        "run",
        "serve",
        "finetune",
        "bench",
        "selftest",
        "convert",
        "compare",
        "__version__",
    },
    "__main__": {"cli"},
    "model": FLOOR | STAGES | {"run", "serve"},
    "__init__": FLOOR | {"model", "run", "write"},
}
HOMES = {
    "torch": {"engine", "finetune", "bench", "convert", "selftest", "cli/doctor"},
    "pyarrow": {"write", "read"},
    "av": {"read", "sample", "cli/doctor"},
    "scenedetect": {"sample"},
    "cv2": {"sample", "prepare", "read/pictures/colours.py"},
    "click": {"cli"},
    "tqdm": {"run/progress.py", "cli/logs.py"},
    "llguidance": {"engine/constraints.py"},
    "transformers": {"engine/transformers", "finetune", "bench/compare.py"},
    "peft": {"finetune"},
    "accelerate": {"finetune"},
    "matplotlib": {"finetune"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "prometheus_client": {"serve", "stats/metrics.py"},
    "gguf": {"gguf_files.py"},
    "onnx": {"convert/onnx"},
    "onnxruntime": {"convert/onnx", "engine/onnx"},
}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "vlmbatch"
                else {node.module}
            )
    return found


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(path):
        if name.split(".")[0] == "vlmbatch" and name != "vlmbatch":
            there = name.split(".")[1]
            assert there == here or there in ALLOWED[here], f"{here} imports {name}"


def test_the_reference_prepares_without_our_preparation() -> None:
    for path in (PACKAGE / "engine" / "transformers").glob("*.py"):
        assert not any(name.startswith("vlmbatch.prepare") for name in imports(path)), path


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_stay_at_home(path: Path) -> None:
    inside = str(path.relative_to(PACKAGE))
    for name in imports(path):
        homes = HOMES.get(name.split(".")[0])
        if homes is not None:
            assert any(inside.startswith(home) for home in homes), f"{inside} imports {name}"


def loaded_by(*command: str) -> set[str]:
    """Modules that a command has loaded when it ends."""
    code = (
        "import sys, atexit; "
        "atexit.register(lambda: print('\\n'.join(sys.modules), file=sys.stderr)); " + command[0]
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stderr.split())


def command_line(*arguments: str) -> str:
    """Code that does what a command line does."""
    return (
        f"import sys; sys.argv = {list(arguments)}; from vlmbatch.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass"
    )


def test_help_and_import_load_nothing_heavy() -> None:
    heavy = {
        "torch",
        "transformers",
        "pyarrow",
        "av",
        "numpy",
        "PIL",
        "tokenizers",
        "huggingface_hub",
        "yaml",
        "psutil",
        "httpx2",
        "fsspec",
        "pypdfium2",
        "scenedetect",
        "cv2",
    }
    assert not loaded_by("import vlmbatch; vlmbatch.JobError") & heavy
    named = "import vlmbatch; [getattr(vlmbatch, name) for name in vlmbatch.__all__]"
    assert not loaded_by(named) & {"torch", "transformers", "pyarrow", "av", "cv2", "tqdm"}
    for command in ("caption", "video", "run", "eval", "finetune", "bench", None):
        arguments = [*([command] if command else []), "--help"]
        assert not loaded_by(command_line("vlmbatch", *arguments)) & heavy, arguments


def test_a_plain_run_loads_no_compiler_no_tables_and_no_videos(tmp_path: Path) -> None:
    """Each of these costs a tenth of a second to seconds, before the first answer."""
    heavy = {
        "torch._dynamo",
        "torch._inductor",
        "sympy",
        "pyarrow",
        "av",
        "transformers",
        "pandas",
        "matplotlib",
        "huggingface_hub",
        "peft",
        "accelerate",
    }
    heavy |= {
        "httpx2",
        "fsspec",
        "pypdfium2",
        "scenedetect",
        "cv2",
        "jiwer",
        "sacrebleu",
        "duckdb",
        "yaml",
        "tqdm.auto",
        "vlmbatch.bench",
        "vlmbatch.evaluate",
    }
    output = tmp_path / "out.jsonl"
    picture = PACKAGE.parent / "sample_data" / "images" / "circle.png"
    arguments = ["vlmbatch", "caption", str(picture), "--model", "demo", "-o", str(output)]
    loaded = loaded_by(command_line(*arguments))
    assert json.loads(output.read_text(encoding="utf-8"))["status"] == "ok"
    assert "torch" in loaded
    assert not loaded & heavy


def test_loading_the_public_names_does_not_load_torch() -> None:
    assert "torch" not in loaded_by("import vlmbatch; vlmbatch.Job; vlmbatch.Record; vlmbatch.run")


def test_the_dispatcher_loads_no_server_and_no_engine() -> None:
    heavy = {"torch", "starlette", "uvicorn", "prometheus_client"}
    assert not loaded_by("import vlmbatch.serve.dispatcher") & heavy


def test_every_public_name_is_there_and_every_error_is_public() -> None:
    for name in vlmbatch.__all__:
        assert getattr(vlmbatch, name) is not None
    tree = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.VlmbatchError)
    }
    assert tree <= set(vlmbatch.__all__)


def test_every_error_is_drawn_in_the_tree() -> None:
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert name in (errors.__doc__ or "")
