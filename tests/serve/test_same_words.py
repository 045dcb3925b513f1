"""The same picture and question get the words that a run gives them: streamed or not, alone or
among others.
"""

from __future__ import annotations

import concurrent.futures
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.media import write_video
from tests.serve.conftest import LiveServer, image_part, live
from vlmbatch.engine import open_engine
from vlmbatch.job import EngineOptions, Job
from vlmbatch.run.from_python import run

SAMPLES = Path(__file__).parents[2] / "sample_data" / "images"
QUESTION = "What is in this picture?"
ASKED = {"type": "text", "text": QUESTION}


def rgb() -> Image.Image:
    return Image.open(SAMPLES / "circle.png").convert("RGB")


def exif(image: Image.Image) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = 6
    return saved(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=tags, quality=95)


def saved(image: Image.Image, form: str, **rest: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **rest)
    return file.getvalue()


def alpha(image: Image.Image) -> bytes:
    ramp = np.tile(np.linspace(0, 255, image.width, dtype=np.uint8), (image.height, 1))
    image.putalpha(Image.fromarray(ramp))
    return saved(image, "PNG")


def deep(image: Image.Image) -> bytes:
    grey = np.asarray(image.convert("L"), np.uint16) * 257
    return saved(Image.fromarray(grey), "PNG")


PICTURES: dict[str, Callable[[Image.Image], bytes]] = {
    "plain.png": lambda image: saved(image, "PNG"),
    "exif.jpg": exif,
    "alpha.png": alpha,
    "palette.gif": lambda image: saved(image.quantize(16), "GIF"),
    "deep.png": deep,
    "cmyk.jpg": lambda image: saved(image.convert("CMYK"), "JPEG"),
    "wide.webp": lambda image: saved(image.resize((300, 90)), "WEBP"),
    "grey.bmp": lambda image: saved(image.convert("L"), "BMP"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many kinds, and the samples."""
    found = tmp_path_factory.mktemp("pictures")
    for name, make in PICTURES.items():
        (found / name).write_bytes(make(rgb()))
    for sample in sorted(SAMPLES.glob("*.*"))[:24]:
        (found / f"sample-{sample.name}").write_bytes(sample.read_bytes())
    return found


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, str]:
    """What a run says, by file name."""
    output = folder.parent / "answers.jsonl"
    job = Job(
        inputs=(str(folder),), task="vqa", questions=(QUESTION,), model="demo", device="cpu",
        max_new_tokens=32, output=str(output),
    )  # fmt: skip
    run(job)
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    return {row["id"]: row["text"] for row in rows if row["status"] == "ok"}


def ask(demo: LiveServer, data: bytes, **rest: Any) -> str:
    content = [{"type": "text", "text": QUESTION}, image_part(data)]
    found = demo.chat(content, model="demo", max_tokens=32, **rest)
    assert found.status_code == 200, found.text
    if not rest.get("stream"):
        return str(found.json()["choices"][0]["message"]["content"])
    pieces = [
        json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        for line in found.text.split("\n\n")
        if line.startswith("data: {")
    ]
    return "".join(pieces)


@pytest.mark.parametrize("name", PICTURES)
def test_alone_streamed_or_not(
    demo: LiveServer, folder: Path, answers: dict[str, str], name: str
) -> None:
    data = (folder / name).read_bytes()
    assert " ".join(ask(demo, data).split()) == answers[name]
    assert " ".join(ask(demo, data, stream=True).split()) == answers[name]


def test_among_32_others(demo: LiveServer, folder: Path, answers: dict[str, str]) -> None:
    names = [*answers] * 2
    assert len(names) > 32
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        found = pool.map(
            lambda entry: (
                ask(
                    demo,
                    (folder / entry[1]).read_bytes(),
                    stream=entry[0] % 2 == 1,
                    n=1 + entry[0] % 3,
                )
                if entry[0] % 2 == 0
                else ask(demo, (folder / entry[1]).read_bytes(), stream=True)
            ),
            enumerate(names),
        )
        assert [" ".join(text.split()) for text in found] == [answers[name] for name in names]


def test_a_video_as_a_clip(demo: LiveServer, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", 60)
    for asked, job_options in (
        ({}, {}),
        ({"fps": 2}, {"fps": 2.0}),
        ({"video": {"num_frames": 3}}, {"num_frames": 3}),
    ):
        output = tmp_path / "clip.jsonl"
        run(
            Job(
                inputs=(str(clip),),
                media="video",
                per="clip",
                task="vqa",
                questions=(QUESTION,),
                model="demo",
                device="cpu",
                max_new_tokens=16,
                output=str(output),
                overwrite=True,
                **job_options,
            )
        )
        row = json.loads(output.read_text("utf-8"))
        url = image_part(clip.read_bytes())["image_url"]["url"].replace("image/png", "video/mp4")
        content = [
            {"type": "video_url", "video_url": {"url": url}},
            {"type": "text", "text": QUESTION},
        ]
        found = demo.chat(content, model="demo", max_tokens=16, media_io_kwargs=asked)
        reply = found.json()
        assert " ".join(reply["choices"][0]["message"]["content"].split()) == row["text"]
        assert reply["usage"]["prompt_tokens"] == row["prompt_tokens"]


def test_low_detail_is_one_tile_and_high_is_all(demo: LiveServer) -> None:
    data = saved(rgb().resize((900, 700)), "PNG")
    tokens = {}
    for detail in ("low", "high", "auto"):
        content = [image_part(data, detail=detail), {"type": "text", "text": QUESTION}]
        found = demo.chat(content, model="demo", max_tokens=1)
        tokens[detail] = found.json()["usage"]["prompt_tokens_details"]["image_tokens"]
    assert 0 < tokens["low"] < tokens["high"] == tokens["auto"]


def test_earlier_turns_are_not_computed_again(demo: LiveServer) -> None:
    first = {
        "role": "user",
        "content": [image_part((SAMPLES / "corner-star.png").read_bytes(), detail="low"), ASKED],
    }
    settings = {"model": "demo", "max_tokens": 8}

    def reply(*messages: Any) -> Any:
        body = {**settings, "messages": messages}
        return demo.client.post("/v1/chat/completions", json=body).json()

    answer = reply(first)
    said = {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}
    again = {"role": "user", "content": "What colour is it?"}
    usage = reply(first, said, again)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= answer["usage"]["prompt_tokens"] - 1
    assert usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


def test_sampling_follows_the_seed(demo: LiveServer) -> None:
    def texts(**rest: Any) -> list[str]:
        settings = {"temperature": 2, "max_tokens": 12, "n": 3, "model": "demo", **rest}
        found = demo.chat("Tell me something.", **settings)
        return [choice["message"]["content"] for choice in found.json()["choices"]]

    first = texts(seed=5)
    assert texts(seed=5) == first
    assert len(set(first)) > 1
    assert texts(seed=6) != first


def test_log_probabilities_have_a_token_each(demo: LiveServer) -> None:
    reply = demo.chat("Hello?", model="demo", max_tokens=4, logprobs=True, top_logprobs=2).json()
    tokens = reply["choices"][0]["logprobs"]["content"]
    assert len(tokens) == reply["usage"]["completion_tokens"]
    for token in tokens:
        assert token["logprob"] <= 0
        assert len(token["top_logprobs"]) == 2
        assert token["top_logprobs"][0]["logprob"] == pytest.approx(token["logprob"])
        assert bytes(token["bytes"]).decode() == token["token"]


def test_what_does_not_fit_into_the_context_is_a_400(demo: LiveServer) -> None:
    found = demo.chat("word " * 20_000, model="demo")
    assert found.status_code == 400
    assert "the model's context is" in found.json()["error"]["message"]
    data = saved(rgb(), "PNG")
    found = demo.chat([*[image_part(data)] * 20, {"type": "text", "text": QUESTION}], model="demo")
    assert found.status_code == 400
    assert "--max-images" in found.json()["error"]["message"]


def test_another_engine_serves_too(folder: Path, answers: dict[str, str]) -> None:
    with live(
        open_engine(EngineOptions(model="demo", device="cpu", engine="transformers"))
    ) as server:
        for name, rest in (("exif.jpg", {}), ("alpha.png", {"stream": True})):
            text = ask(server, (folder / name).read_bytes(), **rest)
            assert " ".join(text.split()) == answers[name]
