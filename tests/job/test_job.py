"""Jobs have one place for defaults, check their values, and come back from YAML as they were."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlmbatch.errors import JobError
from vlmbatch.job import DEFAULT_SKIP_SIMILAR, Job
from vlmbatch.values import parse_size

INPUTS = {"inputs": ["photos"]}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"task": "vqa", "questions": ["Why?", "Wo?"], "output": "x.parquet"},
        {"task": "ocr", "per": "tile", "sidecar": "txt", "sidecar_dir": "texts"},
        {"media": "video", "at": [1, 2.5], "start": 1},
        {"media": "video", "per": "window", "window": 10, "fps": 2.0, "model": "demo"},
        {"media": "video", "scenes": True, "skip_similar": 0.1},
        {"quantize": "int8", "dtype": "bfloat16"},
        {
            "batch_size": "auto",
            "max_errors": "5%",
            "max_memory": "6GiB",
            "temperature": 1,
            "include": ["*.png"],
        },
    ],
)
def test_a_job_comes_back_from_its_yaml(values: dict[str, object]) -> None:
    job = Job.from_dict({**INPUTS, **values})
    text = yaml.safe_dump(job.to_dict())
    assert Job.from_dict(yaml.safe_load(text)) == job


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": "demo"}, "unknown key 'modle'; did you mean 'model'"),
        ({"task": "translate"}, "task must be one of caption, ocr, vqa"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"limit": "3"}, "limit must be a whole number"),
        ({"limit": True}, "limit must be a whole number"),
        ({"detail": "high"}, "detail must be one of full, native, low"),
        ({"quantize": "int4"}, "quantize must be one of none, int8"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda, cuda:N or mps"),
        ({"temperature": -1}, "temperature must be from 0"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"memory_fraction": 2}, "memory_fraction"),
        ({"max_memory": "lots"}, "not a size"),
        ({"max_errors": "many"}, "max_errors must be"),
        ({"output": "x.txt"}, "output must end in .jsonl, .parquet, .csv"),
        ({"task": "vqa"}, "vqa needs questions"),
        ({"task": "vqa", "questions": ["a"], "questions_file": "b.txt"}, "not from both"),
        ({"task": "vqa", "questions": ["a"], "prompt": "b"}, "vqa takes questions"),
        ({"questions": ["a"]}, "questions go with the task vqa: choose it with --task vqa"),
        ({"task": "vqa", "questions": {"a b": "c"}}, "a name is a word of letters"),
        ({"task": "vqa", "questions": {"a": ["c"]}}, "names and texts such as `color: What"),
        ({"output": "$NOWHERE/x.jsonl"}, r"output: there is no \$NOWHERE, and variables"),
        ({"inputs": ["a", "b/${NOT_HERE}/*.png"]}, r"inputs: there is no b/\$\{NOT_HERE\}"),
        ({"prompt": "  "}, "an empty question or prompt"),
        ({"fps": 1.0}, "fps goes with videos"),
        ({"media": "video", "fps": 1, "every": 2}, "fps and every are different ways"),
        ({"media": "video", "fps": 0}, "fps must be above 0"),
        (
            {"media": "video", "keyframes": True, "scenes": True},
            "keyframes and scenes are different ways",
        ),
        (
            {"media": "video", "num_frames": 3, "scenes": True},
            "num_frames and scenes are different ways",
        ),
        (
            {"media": "video", "scenes": True, "per": "window"},
            "scenes goes with --per frame or --per clip",
        ),
        (
            {"media": "video", "skip_similar": True, "per": "clip"},
            "skip_similar goes with --per frame",
        ),
        (
            {"media": "video", "skip_similar": True, "shuffle": True},
            "skip_similar compares frames in their order",
        ),
        ({"media": "video", "skip_similar": 1.5}, "skip_similar must be from 0 to 1"),
        ({"media": "video", "skip_similar": "much"}, "skip_similar must be a number"),
        ({"keyframes": True}, "keyframes goes with videos"),
        ({"media": "video", "start": 5, "end": 5}, "end .* must come after start"),
        ({"media": "video", "at": [-1]}, "must not be below 0"),
        ({"media": "video", "window": 5}, "window goes with --per window"),
        ({"per": "frame"}, "per must be one of page, tile for images"),
        ({"per": "book"}, "per must be one of frame, clip"),
        ({"per": "tile"}, "per tile goes with the task ocr"),
        (
            {"media": "video", "per": "tile", "task": "ocr"},
            "per must be one of frame, clip, window for videos",
        ),
        ({"sidecar": "srt"}, "sidecar srt goes with videos"),
        ({"sidecar": "md"}, "sidecar must be one of txt, srt, vtt"),
        ({"sidecar_dir": "x"}, "sidecar_dir goes with sidecar"),
        ({"sidecar": "txt", "output": "-"}, "give a file with -o"),
        ({"inputs": 3}, "inputs must be text"),
    ],
)
def test_what_is_not_allowed_is_refused_with_what_is(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(JobError, match=message) as error:
        Job.from_dict({**INPUTS, **values})
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


def test_yaml_s_own_readings_are_understood() -> None:
    assert Job.from_dict({**INPUTS, "progress": False}).progress == "off"
    video = Job.from_dict({**INPUTS, "media": "video", "at": "1,2:05", "end": "1:30"})
    assert (video.at, video.end) == ((1.0, 125.0), 90.0)
    for values in ({"at": "soon"}, {"end": float("nan")}, {"start": float("inf")}):
        with pytest.raises(JobError, match="time"):
            Job.from_dict({**INPUTS, "media": "video", **values})


def test_skip_similar_needs_no_number() -> None:
    video = {**INPUTS, "media": "video"}
    assert Job.from_dict({**video, "skip_similar": True}).skip_similar == DEFAULT_SKIP_SIMILAR
    assert Job.from_dict({**video, "skip_similar": False}).skip_similar is None
    assert Job.from_dict({**video, "skip_similar": 0}).skip_similar == 0.0


def test_frames_chosen_in_another_way_have_no_rate() -> None:
    video = {**INPUTS, "media": "video"}
    assert Job.from_dict(video).sampling_fps == 1.0
    for way in ({"keyframes": True}, {"scenes": True}, {"every": 2}):
        assert Job.from_dict({**video, **way}).sampling_fps is None
        assert Job.from_dict({**video, **way}).identity() != Job.from_dict(video).identity()


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Job(inputs=("a",)).limit = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GiB", 6 << 30),
        ("800M", 800 << 20),
        ("1.5 GB", 1_500_000_000),
        ("2g", 2 << 30),
        ("100", 100),
        ("1TiB", 1 << 40),
        ("3kB", 3000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("inputs", "name"),
    [
        (["photos"], "photos.caption.jsonl"),
        (["a/b/photos/"], "photos.caption.jsonl"),
        (["-"], "stdin.caption.jsonl"),
        (["x/*.jpg"], "x.caption.jsonl"),
        (["x/a.jpg"], "a.jpg.caption.jsonl"),
    ],
)
def test_the_output_has_the_name_of_the_input(inputs: list[str], name: str) -> None:
    assert Job.from_dict({"inputs": inputs}).output_path == name


def test_the_error_limit_counts_items_or_a_share_of_those_done() -> None:
    assert Job.from_dict({**INPUTS, "max_errors": 10}).error_limit(1000) == 10
    share = Job.from_dict({**INPUTS, "max_errors": "5%"})
    assert share.error_limit(10) == float("inf")
    assert share.error_limit(10, is_all=True) == 0.5
    assert share.error_limit(1000) == 50
    assert Job.from_dict(INPUTS).error_limit(5) == float("inf")


def test_identity_holds_what_an_answer_depends_on_and_no_more() -> None:
    job = Job.from_dict(INPUTS)
    same = [
        {"batch_size": 3},
        {"read_workers": 1},
        {"output": "x.csv"},
        {"seed": 5},
        {"limit": 2},
        {"device": "cpu"},
    ]
    other = [
        {"quantize": "int8"},
        {"detail": "low"},
        {"max_new_tokens": 3},
        {"model": "demo"},
        {"temperature": 0.5},
    ]
    for values in same:
        assert Job.from_dict({**INPUTS, **values}).identity() == job.identity()
    for values in other:
        assert Job.from_dict({**INPUTS, **values}).identity() != job.identity()
    hot = {**INPUTS, "temperature": 1}
    assert (
        Job.from_dict({**hot, "seed": 1}).identity() != Job.from_dict({**hot, "seed": 2}).identity()
    )


def test_choices_are_texts_between_commas_or_a_list() -> None:
    for given in ("red, dark blue,3", ["red", "dark blue", 3], ("red ", "dark blue", "3", "red")):
        assert Job.from_dict({**INPUTS, "choices": given}).choices == ("red", "dark blue", "3")
        assert Job(inputs=("a",), choices=given).choices == ("red", "dark blue", "3")  # type: ignore[arg-type]
    assert Job.from_dict({**INPUTS, "choices": ["a,b", "c"]}).choices == ("a,b", "c")


def test_identity_has_the_digest_of_the_form_of_the_task_and_none_without_one(
    tmp_path: Path,
) -> None:
    free = Job.from_dict(INPUTS).identity()
    assert not set(free["tasks"]["caption"]) & {"schema", "regex", "choices"}
    path = tmp_path / "a.json"

    def of(**form: object) -> dict[str, object]:
        identity = Job.from_dict({**INPUTS, **form}).identity()
        rest = dict(identity["tasks"]["caption"])
        found = {name: rest.pop(name) for name in form}
        assert {**identity, "tasks": {"caption": rest}} == free
        return found

    assert of(choices="a,b") == of(choices=["a", "b"]) != of(choices=["b", "a"])
    assert of(regex="a,b") != of(regex="a")
    path.write_text('{"type": "object",  "minProperties": 1}')
    first = of(schema=str(path))
    assert str(first["schema"]).startswith("sha256:")
    path.write_text('{"type":"object","minProperties":1}')
    assert of(schema=str(path)) == first
    path.write_text('{"type":"object","minProperties":2}')
    assert of(schema=str(path)) != first


def test_python_programs_write_lists_paths_and_single_entries(tmp_path: Path) -> None:
    job = Job(inputs=["photos", tmp_path], task="vqa", questions=["a?", "b?"])
    assert (job.inputs, job.questions) == (("photos", str(tmp_path)), ("a?", "b?"))
    job = Job(inputs=tmp_path, task="vqa", questions="a?", output=tmp_path / "out.csv")
    assert (job.inputs, job.questions) == ((str(tmp_path),), ("a?",))
    assert job.output == str(tmp_path / "out.csv")
    assert Job(inputs="photos", exclude="*.gif").exclude == ("*.gif",)
    with pytest.raises(JobError, match="inputs must be text, not 3"):
        Job(inputs=[3])  # type: ignore[list-item]
    with pytest.raises(JobError, match="inputs must be a list, not 3"):
        Job(inputs=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "way_out"), [("2s", "--fps 0.5 "), ("0.5 seconds", "--fps 2 "), ("often", "--fps F ")]
)
def test_every_counts_frames_and_seconds_are_sent_to_fps(text: str, way_out: str) -> None:
    with pytest.raises(JobError, match=re.escape(way_out)):
        Job.from_dict({**INPUTS, "media": "video", "every": text})
    assert Job.from_dict({**INPUTS, "media": "video", "every": "25"}).every == 25


def test_questions_may_be_names_and_texts() -> None:
    for given in ({"color": "Which?", "n": "How many?"}, [{"color": "Which?"}, "n=How many?"]):
        job = Job.from_dict({**INPUTS, "task": "vqa", "questions": given})
        assert job.questions == ("color=Which?", "n=How many?")


def test_a_tilde_is_the_home_folder_in_paths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/mine")
    job = Job.from_dict(
        {
            "inputs": ["~/photos", "a/~/b", "~nobody-of-this-name", "https://host/~me/a.png"],
            "output": "~/out.jsonl",
            "cache_dir": "~",
            "task": "vqa",
            "questions": "~/what?",
            "exclude": "~*",
        }
    )
    assert job.inputs[0] == "/home/of/mine/photos"
    assert job.inputs[1:] == ("a/~/b", "~nobody-of-this-name", "https://host/~me/a.png")
    assert (job.output, job.cache_dir) == ("/home/of/mine/out.jsonl", "/home/of/mine")
    assert (job.questions, job.exclude) == (("~/what?",), ("~*",))


def test_a_file_may_have_the_name_of_a_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Job(inputs="~root/a.png").inputs == (os.path.expanduser("~root/a.png"),)
    (tmp_path / "~root").mkdir()
    (tmp_path / "~root" / "a.png").touch()
    assert Job(inputs="~root/a.png").inputs == ("~root/a.png",)


def test_a_dollar_is_a_character_of_names_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "$HOME").mkdir()
    monkeypatch.chdir(tmp_path)
    job = Job(inputs=["$HOME", "price$5.png"], output="$HOME/a$b.csv")
    assert (job.inputs, job.output) == (("$HOME", "price$5.png"), "$HOME/a$b.csv")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": "demo"}, "Job has no option modle; did you mean model?"),
        ({"input": "photos"}, "Job has no option input; did you mean inputs?"),
        ({"zzzz": 1}, "Job has no option zzzz; there are inputs, "),
    ],
)
def test_a_wrong_keyword_names_the_nearest_option(values: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=re.escape(message)):
        Job(**values)


def test_a_job_takes_keywords_and_says_so() -> None:
    with pytest.raises(JobError, match=re.escape("such as Job(inputs='photos')")):
        Job("photos")  # type: ignore[misc]


def test_a_job_is_read_from_a_file_as_the_command_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("input: photos\nmax-new-tokens: 8\ndry_run: true\nlimit: 5\n")
    expected = Job(inputs="photos", max_new_tokens=8, limit=2)
    assert Job.from_yaml(path, limit=2) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: demo", "unknown key 'modle'; did you mean 'model'?"),
        ("serve:\n  port: 8000", "is the file of a server, not of a job: use `vlmbatch run`"),
        ("- photos", "a job file holds keys and values"),
        (None, "No such file"),
    ],
)
def test_a_job_file_that_is_none_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(JobError, match=re.escape(message)) as caught:
        Job.from_yaml(path)
    assert str(path) in str(caught.value)


def test_an_error_notes_the_keywords_of_the_options_that_it_names() -> None:
    with pytest.raises(JobError, match="-q TEXT") as caught:
        Job(inputs="photos", task="vqa")
    (note,) = caught.value.__notes__
    assert note == "As keywords: -q is questions, --questions is questions_file"
