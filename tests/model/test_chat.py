"""``Model.chat``: messages as transformers' and OpenAI's users write them, answered as by
transformers.
"""

from __future__ import annotations

import base64
import gc
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlmbatch
from tests.chats import Oracle, random_chat
from tests.media import write_video
from vlmbatch import DecodeError, JobError, PrepareError, ReadError
from vlmbatch.core import Part, Pixels, Turn
from vlmbatch.read.video.load import load_frame
from vlmbatch.sample.fps import clip_indices

IMAGES = Path(__file__).parents[2] / "sample_data" / "images"
CIRCLE = IMAGES / "circle.png"
ASKED = [
    {
        "role": "user",
        "content": [{"type": "image", "path": CIRCLE}, {"type": "text", "text": "What is this?"}],
    }
]


@pytest.fixture(scope="module")
def tiny_model(tiny: Path) -> Iterator[vlmbatch.Model]:
    with vlmbatch.Model(tiny, device="cpu", dtype="float32") as opened:
        yield opened


def message_of(turn: Turn) -> dict[str, Any]:
    """A turn as a message; a single text as a string."""
    if len(turn.parts) == 1 and turn.parts[0].kind == "text":
        return {"role": turn.role, "content": turn.parts[0].text}
    content = []
    for part in turn.parts:
        if part.kind == "text":
            content.append({"type": "text", "text": part.text})
        else:
            assert part.pixels is not None
            content.append({"type": "image", "image": part.pixels.frames[0]})
    return {"role": turn.role, "content": content}


def test_random_chats_are_answered_as_by_transformers(
    tiny_model: vlmbatch.Model, tiny: Path
) -> None:
    oracle, rng = Oracle(tiny), random.Random(4)
    for _ in range(8):
        chat, question = random_chat(rng)
        *before, last = chat.turns
        last = Turn("user", (*last.parts, Part("text", question.text)))
        reply = tiny_model.chat([message_of(turn) for turn in (*before, last)], max_new_tokens=6)
        expected = oracle.answer(chat.turns, question.text, 6)
        assert list(reply.token_ids) == expected[: len(reply.token_ids)]
        assert reply.prompt_tokens == len(oracle.ids(chat.turns, question.text))


def test_a_video_is_sampled_and_answered_as_by_transformers(
    tiny_model: vlmbatch.Model, tiny: Path, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "a.mp4", 70, fps=10)
    times = [number / 10 for number in clip_indices(70, 7.0, 1.0)]
    frames = [load_frame(str(path), 10**9, seconds).frames[0] for seconds in times]
    clip = Part("clip", pixels=Pixels(frames, tuple(times), 7.0))
    turns = [Turn("user", (Part("text", "Before. "), clip))]
    expected = Oracle(tiny).answer(turns, "After?", 6)
    for part in (
        {"type": "video", "path": str(path)},
        {"type": "video", "video": path},
        {"type": "video_url", "video_url": {"url": str(path)}},
        {"type": "video", "video": path.read_bytes()},
        {
            "type": "video_url",
            "video_url": {
                "url": f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
            },
        },
    ):
        content = ["Before. ", part, {"type": "text", "text": "After?"}]
        reply = tiny_model.chat([{"role": "user", "content": content}], max_new_tokens=6)
        assert list(reply.token_ids) == expected[: len(reply.token_ids)]
    few = {"type": "video", "path": str(path), "num_frames": 2}
    many = {"type": "video", "path": str(path), "fps": 2}
    short, long = (
        tiny_model.chat([{"role": "user", "content": [part, "?"]}], max_new_tokens=1).prompt_tokens
        for part in (few, many)
    )
    assert short is not None
    assert long is not None
    assert short < long


def test_every_way_to_name_a_picture(model: vlmbatch.Model) -> None:
    data = CIRCLE.read_bytes()
    encoded = base64.b64encode(data).decode()
    url = f"data:image/png;base64,{encoded}"
    with Image.open(CIRCLE) as opened:
        parts: list[dict[str, Any]] = [
            {"type": "image", "image": str(CIRCLE)},
            {"type": "image", "image": opened},
            {"type": "image", "image": np.asarray(opened.convert("RGB"))},
            {"type": "image", "image": data},
            {"type": "image", "url": url},
            {"type": "image", "path": CIRCLE},
            {"type": "image", "base64": encoded},
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
            {"type": "image_url", "image_url": str(CIRCLE)},
        ]
        for part in parts:
            asked = [{"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}]
            assert model.chat(asked) == "A red circle.", part


def test_a_picture_has_a_detail_of_its_own(model: vlmbatch.Model) -> None:
    def tokens(**part: Any) -> int | None:
        asked = [{"role": "user", "content": [part, "What is this?"]}]
        return model.chat(asked, max_new_tokens=1).prompt_tokens

    path = str(IMAGES / "large.jpg")
    url = {"url": path}
    low, full = (tokens(type="image", path=path, detail=detail) for detail in ("low", "full"))
    assert low is not None
    assert full is not None
    assert low < full == tokens(type="image", path=path)
    assert low == tokens(type="image_url", image_url={**url, "detail": "low"})
    assert full == tokens(type="image_url", image_url={**url, "detail": "high"})
    assert full == tokens(type="image_url", image_url={**url, "detail": "auto"})
    with pytest.raises(
        JobError, match="part 1: detail must be one of low, high, full, auto, not 3"
    ):
        tokens(type="image_url", image_url={**url, "detail": 3})


def test_a_reply_is_text_that_says_how_it_ended(model: vlmbatch.Model) -> None:
    reply = model.chat(ASKED)
    assert (reply, reply.finish_reason) == ("A red circle.", "stop")
    assert reply.prompt_tokens
    assert reply.new_tokens == len(reply.token_ids)
    assert reply.mean_logprob is not None
    cut = model.chat(ASKED, max_new_tokens=2)
    assert (cut.finish_reason, cut.new_tokens) == ("length", 2)
    assert model.chat(ASKED, stop=[" circle"]) == "A red"
    goes_on = [
        *ASKED,
        {"role": "assistant", "content": reply},
        {"role": "user", "content": "How many shapes are there?"},
    ]
    assert model.chat(goes_on).finish_reason == "stop"


def test_a_chat_goes_on_from_what_was_computed(model: vlmbatch.Model) -> None:
    reply = model.chat(ASKED)
    goes_on = [
        *ASKED,
        {"role": "assistant", "content": reply},
        {"role": "user", "content": "How many shapes are there?"},
    ]
    first = model.chat(goes_on)
    assert reply.prompt_tokens is not None
    assert first.cached_tokens is not None
    assert first.cached_tokens >= reply.prompt_tokens
    with vlmbatch.Model("demo", device="cpu", dtype="float32") as fresh:
        assert fresh.chat(goes_on).token_ids == first.token_ids


def test_sampling_follows_its_seed(model: vlmbatch.Model) -> None:
    hot = {"temperature": 5.0, "max_new_tokens": 12}
    texts = [model.chat(ASKED, seed=seed, **hot) for seed in (1, 1, 2)]  # type: ignore[arg-type]
    assert texts[0] == texts[1] != texts[2]


def test_pieces_make_up_the_reply(model: vlmbatch.Model) -> None:
    pieces = model.chat(ASKED, stream=True)
    heard = list(pieces)
    assert len(heard) > 1
    assert "".join(heard) == pieces.reply == model.chat(ASKED)
    assert list(pieces) == []
    assert model.chat(ASKED, stream=True).reply == "A red circle."


def test_a_stream_that_is_closed_ends(model: vlmbatch.Model) -> None:
    with model.chat(ASKED, stream=True) as pieces:
        next(pieces)
    assert list(pieces) in ([], [" red", " circle", "."]) or len(list(pieces)) < 4
    assert model.chat(ASKED) == "A red circle."


def test_a_model_that_nobody_holds_answers_what_was_asked() -> None:
    stream = vlmbatch.Model("demo", device="cpu").chat(ASKED, stream=True)
    records = vlmbatch.Model("demo", device="cpu").ask([CIRCLE] * 2, "What is this?")
    gc.collect()
    assert "".join(stream) == "A red circle."
    assert [record.text for record in records] == ["A red circle."] * 2


@pytest.mark.parametrize(
    ("messages", "error", "message"),
    [
        ([], JobError, "messages is a list"),
        ("Hello.", JobError, "messages is a list"),
        (ASKED[0], JobError, "messages is a list"),
        (["Hello."], JobError, "message 1 must be a dict"),
        ([{"content": "a"}], JobError, "message 1: role must be one of system, .* not None"),
        ([*ASKED, {"role": "tool", "content": "a"}], JobError, "message 2: role .* not 'tool'"),
        ([{"role": "user"}], JobError, "message 1: content must be text or a list of parts"),
        ([{"role": "user", "content": []}], JobError, "content must be text or a list of parts"),
        ([{"role": "user", "content": [{"type": "sound"}]}], JobError, "part 1: type must be text"),
        ([{"role": "user", "content": [7]}], JobError, "part 1: type must be text"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            JobError,
            "text must be text, not None",
        ),
        ([{"role": "user", "content": [{"type": "image"}]}], JobError, "give one of image, path"),
        (
            [{"role": "user", "content": [{"type": "image", "path": "a", "url": "b"}]}],
            JobError,
            "it has both path and url",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            JobError,
            "image_url must be",
        ),
        (
            [{"role": "user", "content": [{"type": "image", "path": str(IMAGES)}]}],
            JobError,
            "holds several pictures",
        ),
        (
            [{"role": "user", "content": [{"type": "video", "path": str(CIRCLE)}]}],
            JobError,
            "picture",
        ),
        ([{"role": "system", "content": "a"}], JobError, "the last message must be the user's"),
        (
            [{"role": "user", "content": [{"type": "video", "path": "gone.mp4"}]}],
            ReadError,
            "no such file",
        ),
        (
            [{"role": "user", "content": [{"type": "video", "video": b"no video"}]}],
            (ReadError, DecodeError),
            "video|data|Invalid",
        ),
        (
            [{"role": "user", "content": [{"type": "video", "path": "gone.mp4", "fps": 0}]}],
            JobError,
            "fps must be above 0",
        ),
        (
            [{"role": "user", "content": [{"type": "image", "path": "gone.png"}]}],
            ReadError,
            "no such file",
        ),
        (
            [{"role": "user", "content": [{"type": "image", "image": b"no picture"}]}],
            DecodeError,
            "not a picture",
        ),
        ([{"role": "user", "content": "an <image>?"}], PrepareError, "<image>"),
        ([{"role": "user", "content": "word " * 9000}], PrepareError, "the model's context is"),
    ],
)
def test_what_is_wrong_with_a_chat_is_said(
    model: vlmbatch.Model,
    messages: Any,
    error: type[Exception] | tuple[type[Exception], ...],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        model.chat(messages)


def test_pictures_of_many_turns_are_seen(model: vlmbatch.Model) -> None:
    buffer = io.BytesIO()
    Image.open(IMAGES / "corner-star.png").save(buffer, "PNG")
    later = [
        *ASKED,
        {"role": "assistant", "content": "A red circle."},
        {
            "role": "user",
            "content": [{"type": "image", "image": buffer.getvalue()}, "What is this?"],
        },
    ]
    once = model.chat(ASKED, max_new_tokens=1).prompt_tokens
    twice = model.chat(later, max_new_tokens=1).prompt_tokens
    assert once is not None
    assert twice is not None
    assert twice > 2 * once
