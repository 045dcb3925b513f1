"""Chat requests: understood, or refused with the place that is wrong."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.serve.conftest import image_part, png, request
from vlmbatch.serve.errors import ApiError
from vlmbatch.serve.protocol import ChatRequest, read_chat_request, read_json
from vlmbatch.serve.schema import IGNORED, UNSUPPORTED
from vlmbatch.serve.settings import ServeJob

PICTURE = image_part(png())
TEXT = {"type": "text", "text": "What?"}


def read(values: Any, **options: Any) -> ChatRequest:
    return read_chat_request(values, ServeJob(**options), ["script"])


def kinds(chat: ChatRequest) -> list[tuple[str, list[str]]]:
    return [
        (role, ["picture" if piece.medium else piece.text for piece in pieces])
        for role, pieces in chat.messages
    ]


def test_a_picture_and_a_question_are_what_a_run_asks() -> None:
    for content in ([PICTURE, TEXT], [TEXT, PICTURE]):
        chat = read(request(content))
        assert kinds(chat) == [("user", ["picture"])]
        (question,) = chat.questions
        assert (question.text, question.temperature, question.max_new_tokens) == ("What?", 0, 512)
        conversation = chat.conversation()
        assert conversation.key == ""
        assert [part.kind for part in conversation.media()] == ["picture"]


def test_text_between_pictures_keeps_its_place() -> None:
    between = {"type": "text", "text": "and"}
    assert kinds(read(request([PICTURE, between, PICTURE, TEXT]))) == [
        ("user", ["picture", "and", "picture"])
    ]
    chat = read(request([TEXT, PICTURE, between]))
    assert (kinds(chat), chat.questions[0].text) == ([("user", ["What?", "picture"])], "and")


def test_turns_come_before_the_question() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [PICTURE, TEXT]},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "Why?"},
    ]
    chat = read({"model": "script", "messages": messages})
    assert kinds(chat) == [
        ("system", ["Be brief."]),
        ("user", ["picture", "What?"]),
        ("assistant", ["A dog."]),
    ]
    assert chat.questions[0].text == "Why?"


def test_a_repeated_picture_is_decoded_once() -> None:
    chat = read(request([PICTURE, PICTURE, TEXT]))
    assert len(chat.media) == 1
    first, second = chat.conversation().media()
    assert first.pixels is second.pixels


def test_detail_is_of_each_picture() -> None:
    parts = [image_part(png(seed=n), detail=word) for n, word in enumerate(("low", "high", "auto"))]
    media = read(request([*parts, TEXT])).conversation().media()
    assert [part.detail for part in media] == ["low", "full", None]


def test_options_of_generation_are_taken() -> None:
    (question, second) = read(
        request(
            n=2, temperature=0.5, top_p=0.9, seed=7, stop="END", max_tokens=9, logprobs=True,
            top_logprobs=3,
        )
    ).questions  # fmt: skip
    assert (question.temperature, question.top_p, question.seed) == (0.5, 0.9, 7)
    assert (question.stop, question.max_new_tokens, question.logprobs) == (("END",), 9, 3)
    assert second.seed == 8
    assert read(request(max_completion_tokens=5, max_tokens=9)).questions[0].max_new_tokens == 5
    assert read(request(logprobs=True)).questions[0].logprobs == 0
    nothing = read(request(stop=None, seed=None, n=None, stream_options=None)).questions
    assert nothing == read(request()).questions
    sampled = [read(request(temperature=1)).questions[0].seed for _ in range(2)]
    assert sampled[0] != sampled[1]


def test_parameters_that_change_nothing_are_accepted() -> None:
    assert read(request(**dict.fromkeys(IGNORED, "x")))
    neutral = {name: known[0] for name, known in UNSUPPORTED.items() if known}
    assert read(request(**neutral))


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_parameters_that_are_not_there_yet_are_named(name: str) -> None:
    with pytest.raises(ApiError, match=f"{name} is not supported yet") as caught:
        read(request(**{name: {"type": "something"}}))
    assert (caught.value.status, caught.value.param) == (400, name)


ASKED = [{"role": "user", "content": "x"}]
BAD: list[tuple[Any, str | None, str]] = [
    ([], None, "JSON object"),
    ({"model": "script"}, None, "has no 'messages'"),
    ({"messages": []}, None, "has no 'model'"),
    ({"model": "script", "messages": []}, "messages", "at least 1"),
    (request(frobnicate=1), "frobnicate", "unknown parameter 'frobnicate'; leave it out"),
    (request(max_tokns=1), "max_tokns", "did you mean max_tokens?"),
    (request(temperature="hot"), "temperature", "must be number or null"),
    (request(temperature=2.5), "temperature", "at most 2"),
    (request(top_p=0), "top_p", "above 0"),
    (request(n=0), "n", "at least 1"),
    (request(n=1.5), "n", "integer"),
    (request(max_tokens=0), "max_tokens", "at least 1"),
    (request(stop=["a", ""]), "stop[1]", "at least 1"),
    (request(logprobs=True, top_logprobs=21), "top_logprobs", "at most 20"),
    (request(top_logprobs=2), "top_logprobs", "logprobs: true"),
    (request(stream="yes"), "stream", "boolean"),
    (request(stream_options={"x": 1}), "stream_options", "unknown key 'x'"),
    (request(seed=2**70), "seed", "at most"),
    (request(media_io_kwargs={"video": {"fps": 0}}), "media_io_kwargs.video.fps", "above 0"),
    (request(5), "messages[0].content", "string or array"),
    (request([{"type": "audio"}]), "messages[0].content[0].type", "must be one of"),
    (request([{"type": "text"}]), "messages[0].content[0]", "has no 'text'"),
    (request([{"type": "image_url"}]), "messages[0].content[0]", "has no 'image_url'"),
    (
        request([{"type": "image_url", "image_url": {}}]),
        "messages[0].content[0].image_url",
        "has no 'url'",
    ),
    (
        {"model": "script", "messages": [{"role": "robot", "content": "x"}]},
        "messages[0].role",
        "must be one of",
    ),
    (
        {"model": "script", "messages": [{"role": "assistant", "content": "x"}]},
        "messages[0].role",
        "last message must be the user's",
    ),
    (
        {"model": "script", "messages": [{"role": "system", "content": [PICTURE]}] + ASKED},
        "messages[0].content[0]",
        "go with the role user",
    ),
    (request([PICTURE, PICTURE, TEXT], user="x"), "messages[0].content[1]", "more than 1 pictures"),
    (request(json.loads("[" * 500 + "]" * 500)), None, "nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize("values, param, words", BAD)
def test_what_is_wrong_is_named(values: Any, param: str | None, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(values, max_images=1)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert words in caught.value.message
    assert len(caught.value.message) < 500


def test_another_model_is_not_there() -> None:
    with pytest.raises(ApiError, match="there is script") as caught:
        read(request() | {"model": "gpt-7"})
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b"1" * 5000, b'"\xed\xa0\x80"']
)
def test_a_body_that_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_json(body)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "url, words",
    [
        ("data:image/png;base64,AAAA", "not a picture"),
        ("data:image/png;base64,", "empty file"),
        ("data:image/png;base64,####", "not base64"),
        ("data:image/png;base64," + base64.b64encode(png()[:60]).decode(), "broken PNG"),
        ("data:nonsense", "not a data: URL"),
        ("file:///etc/passwd", "begins with data: or https:"),
        ("http://example.com/a.png", "begins with data: or https:"),
        ("ftp://example.com/a.png", "begins with data: or https:"),
        ("https://127.0.0.1/a.png", "not a public address"),
        ("https://localhost/a.png", "not a public address"),
        ("https://[::ffff:10.0.0.1]/a.png", "not a public address"),
        ("https://169.254.169.254/latest/meta-data", "not a public address"),
        ("https://[/a.png", "messages"),
        ("", "begins with data: or https:"),
        ("/etc/passwd", "begins with data: or https:"),
    ],
)
def test_pictures_that_cannot_be_had_say_where_they_stand(url: str, words: str) -> None:
    chat = read(request([TEXT, {"type": "image_url", "image_url": {"url": url}}]))
    with pytest.raises(Exception, match=r"messages\[0\]\.content\[1\]: ") as caught:
        if chat.fetch:
            chat.fetch()
        chat.conversation()
    assert words in str(caught.value)
    assert caught.value.param == "messages[0].content[1]"  # type: ignore[attr-defined]


def test_a_data_url_may_be_percent_encoded() -> None:
    url = "data:image/x-portable-graymap," + "P5 1 1 255\n".replace(" ", "%20") + "%80"
    chat = read(request([{"type": "image_url", "image_url": {"url": url}}]))
    assert chat.conversation().media()[0].pixels is not None
