"""What is refused before a server is started, and which files a model has."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.engine.llama_server.conftest import engine_options
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.convert import ConvertOptions, convert
from vlmbatch.engine import plan_engine
from vlmbatch.engine.llama_server import opening
from vlmbatch.engine.llama_server.files import find_model
from vlmbatch.errors import JobError, MissingDependencyError, ModelLoadError, OutOfMemoryError
from vlmbatch.job import Job


@pytest.fixture(scope="module")
def gguf(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of one type."""
    folder = tmp_path_factory.mktemp("gguf")
    convert(find_checkpoint(str(tiny)), "gguf", ConvertOptions(folder, "f16"))
    return folder


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"quantize": "int8"}, r"no --quantize int8; use q8_0"),
        ({"quantize": "q8_0", "dtype": "float16"}, r"no --quantize q8_0 with --dtype float16"),
        ({"detail": "native"}, "no --detail native: llama.cpp enlarges every picture"),
        ({"llama_server": "/no/such/program"}, "--llama-server /no/such/program: no such program"),
        ({"device": "cuda:1"}, "--device cuda:1 needs a llama-server that was built for it"),
        ({"mmproj": "eyes.gguf"}, "--mmproj goes with a GGUF file"),
    ],
)
def test_options_that_it_cannot_honour_are_named(
    tiny: Path, cache: Path, option: dict[str, str], message: str
) -> None:
    with pytest.raises(JobError, match=message) as caught:
        plan_engine(engine_options(tiny, cache, **option))
    assert caught.value.exit_code == 2


def test_its_options_go_with_this_engine(tmp_path: Path) -> None:
    for name in ("llama_server", "mmproj"):
        with pytest.raises(JobError, match=f"{name} goes with --engine llama-server"):
            Job(inputs=(str(tmp_path),), model="demo", **{name: "x"})  # type: ignore[arg-type]


def test_without_a_server_the_extra_is_named(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "PACKAGE", "no_such_package")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match=r"pip install 'vlmbatch\[llama\]'"):
        plan_engine(engine_options(tiny, cache))


def test_a_server_on_path_comes_before_the_package(
    tiny: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho 'version: 10597 (abc)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(ModelLoadError, match=r"build 10597 .*from build 10598 on: install a newer"):
        plan_engine(engine_options(tiny, cache)).open()


@pytest.mark.parametrize(
    ("version", "build"),
    [
        ("version: 10598 (56db501e7)\nbuilt with GNU", 10598),
        ("version: 0 (unknown)", None),
        ("2026.10.11549", 11549),
        ("version: 0.5.0-dev (build 10864, commit 0c1e570)", 10864),
        ("version: 0.5.0-dev (build 1, commit 0c1e570)", None),
        ("nothing", None),
    ],
)
def test_the_build_is_read_from_a_version(version: str, build: int | None) -> None:
    assert opening.build_number(version) == build


def test_a_model_that_does_not_fit_is_refused(tiny: Path, cache: Path) -> None:
    with pytest.raises(OutOfMemoryError, match=r"for one context, and may have 0\.00 GiB"):
        plan_engine(engine_options(tiny, cache, max_memory="1MB")).open()


def test_a_file_finds_its_mmproj_and_a_folder_both(gguf: Path, cache: Path) -> None:
    text, vision = gguf / "tiny-F16.gguf", gguf / "mmproj-tiny-F16.gguf"
    for model in (text, gguf):
        assert find_model(engine_options(model, cache)).given == (text, vision)
    named = find_model(engine_options(text, cache, mmproj=str(vision)))
    assert named.given == (text, vision)
    assert named.revision == find_model(engine_options(gguf, cache)).revision


def test_what_is_missing_or_ambiguous_is_named(gguf: Path, cache: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(gguf / "tiny-F16.gguf", alone)
    with pytest.raises(ModelLoadError, match=r"no mmproj file in .*--mmproj FILE"):
        find_model(engine_options(alone, cache))
    two = shutil.copytree(gguf, tmp_path / "two")
    shutil.copy(two / "tiny-F16.gguf", two / "tiny-Q8_0.gguf")
    with pytest.raises(ModelLoadError, match=r"several language models .*--model FILE"):
        find_model(engine_options(two, cache))
    shutil.copy(two / "mmproj-tiny-F16.gguf", two / "mmproj-tiny-Q8_0.gguf")
    found = find_model(engine_options(two / "tiny-Q8_0.gguf", cache)).given
    assert found == (two / "tiny-Q8_0.gguf", two / "mmproj-tiny-Q8_0.gguf")
    with pytest.raises(ModelLoadError, match="no such model"):
        find_model(engine_options(tmp_path / "nothing.gguf", cache))


def test_a_dtype_must_be_the_files(gguf: Path, cache: Path) -> None:
    assert find_model(engine_options(gguf, cache, dtype="float16")).given is not None
    with pytest.raises(JobError, match=r"the weights in tiny-F16\.gguf are float16"):
        find_model(engine_options(gguf, cache, dtype="float32"))


def test_files_of_another_kind_are_refused(gguf: Path, cache: Path, tmp_path: Path) -> None:
    text, vision = gguf / "tiny-F16.gguf", gguf / "mmproj-tiny-F16.gguf"
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and nothing else")
    for model, eyes, message in (
        (text, text, "vision encoder of type unknown"),
        (vision, vision, "is not a language model"),
        (tmp_path / "broken.gguf", vision, "not a GGUF file that can be read"),
    ):
        with pytest.raises(ModelLoadError, match=message):
            find_model(engine_options(model, cache, mmproj=str(eyes))).ready()


def test_a_checkpoint_that_cannot_be_converted_is_named(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelLoadError, match=r"cannot be converted: .*model.safetensors"):
        find_model(engine_options(folder, tmp_path / "cache")).ready()
    assert not list((tmp_path / "cache" / "gguf").iterdir())
