"""The transformers engine says what a page of plain transformers code says, for any family."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.checkpoints import CHAT_TEMPLATE, build_tokenizer
from tests.engine.reference import run_all
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Completion, Conversation, Part, Pixels, Question, Turn
from vlmbatch.engine import Engine, open_engine, plan_engine
from vlmbatch.engine.transformers.engine import TransformersEngine
from vlmbatch.engine.transformers.memory import MemoryLimit
from vlmbatch.engine.transformers.tiled import TiledProcessor
from vlmbatch.errors import (
    DeviceError,
    GenerateError,
    JobError,
    ModelLoadError,
    OutOfMemoryError,
    PrepareError,
)
from vlmbatch.job import EngineOptions

LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
NEW_TOKENS = 12
EDGE = 28


def options_for(folder: Path | str, **options: Any) -> EngineOptions:
    settings = {"device": "cpu", "dtype": "float32"} | options
    return EngineOptions(model=str(folder), engine="transformers", **settings)


def noise(seed: int, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def about(picture: Image.Image, key: str = "") -> Conversation:
    return Conversation.about("image", Pixels([picture]), key)


def ask(engine: Engine, conversation: Conversation, *questions: Question) -> list[Completion]:
    found = run_all(engine, [engine.prepare(conversation, questions)])
    return [found[0, number] for number in range(len(questions))]


def write_llava(folder: Path) -> Path:
    """A tiny random LLaVA in the hub's layout."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        extra_special_tokens={"image_token": "<image>"},
        chat_template=LLAVA_TEMPLATE,
    )
    clip = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    clip |= {"num_attention_heads": 2, "image_size": EDGE, "patch_size": 7}
    llama = {"vocab_size": len(tokenizer), "hidden_size": 24, "intermediate_size": 48}
    llama |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    llama |= {"eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 256}
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**clip),
        text_config=transformers.LlamaConfig(**llama),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 1.0 / weight[0].numel() ** 0.5)
    model.save_pretrained(folder)
    size = {"height": EDGE, "width": EDGE}
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": EDGE}, crop_size=size)
    processor = transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Engine:
    return open_engine(options_for(tiny, batch_size=4))


def plain_smolvlm(folder: Path, picture: Image.Image, question: str) -> list[int]:
    """What a page of plain code answers; the prompt is written out by hand."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    processor = SmolVLMImageProcessorPil(
        size=settings["size"], max_image_size=settings["max_image_size"]
    )
    found = processor([[picture]], return_row_col_info=True, return_tensors="pt")
    rows, cols = found["rows"][0][0], found["cols"][0][0]
    tile = "<image>" * 4
    words = "".join(
        "".join(
            f"<fake_token_around_image><row_{row + 1}_col_{col + 1}>{tile}" for col in range(cols)
        )
        + "\n"
        for row in range(rows)
    )
    words += "\n" if rows else ""
    words += f"<fake_token_around_image><global-img>{tile}<fake_token_around_image>"
    text = f"<|im_start|>User:{words}{question}<end_of_utterance>\nAssistant:"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    model = transformers.SmolVLMForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    )
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=found["pixel_values"],
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
    )
    return [int(token) for token in out[0, ids.shape[1] :]]


def plain_llava(folder: Path, pictures: Sequence[Image.Image], question: str) -> list[int]:
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    text = "USER: " + "<image>\n" * len(pictures) + f"{question} ASSISTANT:"
    inputs = processor(text=text, images=list(pictures) or None, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return [int(token) for token in out[0, inputs["input_ids"].shape[1] :]]


def test_a_padded_batch_answers_as_plain_code_does_one_by_one(tiny: Path, engine: Engine) -> None:
    sizes = [(100, 80), (30, 20), (200, 33), (64, 64), (20, 150), (32, 32)]
    pictures = [noise(seed, *size) for seed, size in enumerate(sizes)]
    questions = [f"What is{' very' * seed} odd here?" for seed in range(len(sizes))]
    requests = [
        engine.prepare(about(picture), [Question(question, NEW_TOKENS)])
        for picture, question in zip(pictures, questions, strict=True)
    ]
    found = run_all(engine, requests)
    assert engine.stats.max_sequences == 4
    for seed, (picture, question) in enumerate(zip(pictures, questions, strict=True)):
        wanted = plain_smolvlm(tiny, picture, question)
        assert list(found[seed, 0].token_ids) == wanted
        assert found[seed, 0].error is None
    assert len({tuple(completion.token_ids) for completion in found.values()}) == len(sizes)


def test_another_family_answers_as_plain_code_does(llava: Path) -> None:
    engine = open_engine(options_for(llava, batch_size=3))
    pictures = [noise(seed, 40 + seed, 60 - seed) for seed in range(3)]
    both = (Part("picture", pixels=Pixels([picture])) for picture in pictures[:2])
    conversations = [*map(about, pictures), Conversation((Turn("user", tuple(both)),))]
    asked = ["What?", "What is here?"]
    requests = [
        engine.prepare(conversation, [Question(text, NEW_TOKENS) for text in asked])
        for conversation in [*conversations, Conversation()]
    ]
    found = run_all(engine, requests)
    shown: list[list[Image.Image]] = [*([picture] for picture in pictures), pictures[:2], []]
    for number, seen in enumerate(shown):
        for question, text in enumerate(asked):
            wanted = plain_llava(llava, seen, text)
            assert list(found[number, question].token_ids) == wanted, (number, text)
    assert engine.model == str(llava)
    assert requests[0].tiles is None


def test_a_family_without_tiles_takes_neither_tiles_nor_clips_nor_detail(llava: Path) -> None:
    engine = open_engine(options_for(llava))
    for media in ("clip", "tile"):
        conversation = Conversation.about(media, Pixels([noise(0, 30, 30)], (0.0,), 1.0))  # type: ignore[arg-type]
        with pytest.raises(PrepareError, match="--per frame"):
            engine.prepare(conversation, [Question("What?")])
    with pytest.raises(PrepareError, match="<image>"):
        engine.prepare(about(noise(0, 30, 30)), [Question("An <image>?")])
    for detail in ("native", "low"):
        with pytest.raises(JobError, match=f"--detail {detail}.*llava"):
            plan_engine(options_for(llava, detail=detail))


def test_a_clip_has_the_words_of_the_video_prompt(tiny: Path, engine: Engine) -> None:
    frames = [noise(seed, 60, 40) for seed in range(3)]
    clip = Conversation.about("clip", Pixels(frames, (0.0, 61.5, 62.9), 3723.4))
    request = engine.prepare(clip, [Question("What happens?")])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    frame = "<fake_token_around_image><global-img>" + "<image>" * 4 + "<fake_token_around_image>"
    assert tokenizer.decode(request.payload.prompts[0]["input_ids"][0]) == (
        "<|im_start|>User: You are provided the following series of three frames from a 1:02:03 "
        f"[H:MM:SS] video.\n\nFrame from 00:00:{frame}\nFrame from 01:01:{frame}"
        f"\nFrame from 01:02:{frame}\n\nWhat happens?<end_of_utterance>\nAssistant:"
    )
    oracle = SmolVLMImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    wanted = oracle([frames], return_tensors="pt")["pixel_values"]
    assert torch.equal(request.payload.media["pixel_values"], wanted)
    assert request.tiles == 3
    assert run_all(engine, [request])[0, 0].text


@pytest.mark.parametrize(
    ("detail", "tiles"), [("full", 4 * 3 + 1), ("native", 2 * 2 + 1), ("low", 1)]
)
def test_detail_says_how_many_tiles_a_picture_takes(tiny: Path, detail: str, tiles: int) -> None:
    engine = open_engine(options_for(tiny, detail=detail))
    request = engine.prepare(about(noise(0, 60, 45)), [Question("What?")])
    assert request.tiles == tiles
    assert request.payload_bytes == tiles * 3 * 32 * 32 * 4
    assert request.conversation == about(noise(0, 60, 45)).without_pixels()


def test_a_tile_is_taken_as_it_is(engine: Engine) -> None:
    tile = noise(0, 32, 32)
    request = engine.prepare(Conversation.about("tile", Pixels([tile])), [Question("What?")])
    pixels = np.asarray(tile, np.float32).transpose(2, 0, 1) / 255 * 2 - 1
    np.testing.assert_allclose(request.payload.media["pixel_values"][0, 0], pixels, atol=1e-6)
    with pytest.raises(PrepareError, match="32 x 32"):
        engine.prepare(Conversation.about("tile", Pixels([noise(0, 64, 64)])), [Question("What?")])


def test_several_turns_and_pictures_follow_the_template(tiny: Path, engine: Engine) -> None:
    turns = (
        Turn("system", (Part("text", "Be brief."),)),
        Turn(
            "user",
            (Part("picture", pixels=Pixels([noise(0, 20, 20)])), Part("text", "What is this?")),
        ),
        Turn("assistant", (Part("text", "Noise."),)),
        Turn("user", (Part("text", "And "), Part("picture", pixels=Pixels([noise(1, 20, 20)])))),
    )
    request = engine.prepare(Conversation(turns), [Question("that?"), Question("this?")])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    text = tokenizer.decode(request.payload.prompts[1]["input_ids"][0])
    for words in ("<image>" * 4, "<row_1_col_1>", "<fake_token_around_image>"):
        assert words in text
    outside = [part for part in text.split("<fake_token_around_image>") if "<image>" not in part]
    assert "".join(outside) == (
        "<|im_start|>System: Be brief.<end_of_utterance>\nUser:What is this?<end_of_utterance>\n"
        "Assistant: Noise.<end_of_utterance>\nUser: And this?<end_of_utterance>\nAssistant:"
    )
    assert CHAT_TEMPLATE.startswith("<|im_start|>")
    assert request.tiles == 2 * 17


def test_what_cannot_be_prepared_is_said(engine: Engine) -> None:
    gray = Image.new("L", (9, 9))
    wrong = np.zeros((5, 5), np.uint8)
    for conversation, message in (
        (about(gray), "RGB"),
        (Conversation.about("image", Pixels([wrong])), "uint8"),
        (Conversation.about("image", Pixels([])), "no pixels"),
        (Conversation.about("clip", Pixels([noise(0, 9, 9)], (), 1.0)), "1 frames and 0 times"),
        (Conversation((Turn("user", (Part("text", "x" * 3000),)),)), "context is 2048"),
        (Conversation((Turn("user", (Part("text", "an <image>"),)),)), "stands for pixels"),
        (Conversation((Turn("user", ()), Turn("assistant", ()))), "chat template"),
    ):
        with pytest.raises(PrepareError, match=message):
            engine.prepare(conversation, [Question("What?")])


def test_plans_know_model_and_revision_and_load_nothing(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}', encoding="utf-8")
    plan = plan_engine(options_for(tmp_path))
    assert (plan.name, plan.model, plan.can_cut) == ("transformers", str(tmp_path), False)
    assert plan.revision == find_checkpoint(str(tmp_path)).revision
    with pytest.raises(ModelLoadError, match=r"no model\.safetensors"):
        plan.open()


@pytest.mark.parametrize(
    ("config", "options", "error", "message"),
    [
        ("smolvlm", {"quantize": "int8"}, JobError, "--quantize int8"),
        ("bert", {}, ModelLoadError, "no image-text-to-text model of type bert"),
        ("llama4", {}, ModelLoadError, "llama4 needs torchvision"),
        (None, {}, ModelLoadError, "of type None"),
    ],
)
def test_what_this_engine_cannot_do_is_refused_before_anything_is_loaded(
    tmp_path: Path, config: str | None, options: dict[str, Any], error: Any, message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": config}), encoding="utf-8")
    with pytest.raises(error, match=message):
        plan_engine(options_for(tmp_path, **options))


def test_weights_that_are_missing_or_do_not_fit_are_refused(tiny: Path, tmp_path: Path) -> None:
    for path in tiny.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["num_hidden_layers"] += 1
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelLoadError, match="missing keys"):
        open_engine(options_for(tmp_path))
    with pytest.raises(OutOfMemoryError, match=r"may take 0\.00 GiB"):
        open_engine(options_for(tiny, max_memory="100K"))
    with pytest.raises(DeviceError, match="no device cuda:9"):
        open_engine(options_for(tiny, device="cuda:9"))


def test_batches_are_as_large_as_the_memory_that_is_left(tiny: Path) -> None:
    requests: dict[str, int] = {}
    for limit in ("20M", "40M", "2GiB"):
        engine = open_engine(options_for(tiny, max_memory=limit))
        asked = [engine.prepare(about(noise(n, 30, 30)), [Question("?", 2)]) for n in range(9)]
        assert all(found.error is None for found in run_all(engine, asked).values())
        requests[limit] = engine.stats.max_sequences
    assert requests["20M"] < requests["40M"] < requests["2GiB"] == 9


def test_memory_that_runs_out_halves_the_batch_and_loses_nothing(tiny: Path) -> None:
    """Batches of more than two run out, first at the prompt and then in the middle of answers."""
    checkpoint = find_checkpoint(str(tiny))
    model = transformers.AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32)
    limits = {"prompt": 4, "token": 2}
    steps = 0

    def run_out(module: object, args: object, inputs: dict[str, Any]) -> None:
        nonlocal steps
        count, width = inputs["input_ids"].shape
        steps += width == 1
        if count > limits["prompt"] or (width == 1 and steps % 5 == 0 and count > limits["token"]):
            raise torch.OutOfMemoryError("CUDA out of memory, as it was told to be")

    model.register_forward_pre_hook(run_out, with_kwargs=True)
    engine = TransformersEngine(
        model,
        TiledProcessor(checkpoint, model.config, "full"),
        MemoryLimit.of(0.8, None, 1 << 33),
        name="transformers",
        checkpoint=checkpoint,
    )
    heard: list[list[str]] = [[] for _ in range(8)]
    questions = [
        Question("What?", NEW_TOKENS, temperature=number % 2 * 1.3, on_text=listen.append)
        for number, listen in enumerate(heard)
    ]
    requests = [
        engine.prepare(about(noise(number, 40, 30), str(number)), [question])
        for number, question in enumerate(questions)
    ]
    found = run_all(engine, requests)
    assert [event["size"] for event in engine.stats.oom_events] == [8, 4]
    limits.update(prompt=0)
    alone = open_engine(options_for(tiny, batch_size=1))
    for number, question in enumerate(questions):
        assert "".join(heard[number]).strip() == found[number, 0].text
        plain = Question("What?", NEW_TOKENS, temperature=question.temperature)
        (wanted,) = ask(alone, about(noise(number, 40, 30), str(number)), plain)
        assert found[number, 0].token_ids == wanted.token_ids
    (hopeless,) = ask(engine, about(noise(0, 40, 30)), Question("What?"))
    assert isinstance(hopeless.error, GenerateError)
    assert "out of memory" in str(hopeless.error)


def test_mean_logprob_is_that_of_the_answer(tiny: Path, engine: Engine) -> None:
    request = engine.prepare(about(noise(0, 40, 30)), [Question("What?", 9, logprobs=0)])
    found = run_all(engine, [request])[0, 0]
    model = transformers.AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32)
    prompt = request.payload.prompts[0]["input_ids"]
    ids = torch.cat([prompt, torch.tensor([list(found.token_ids)])], dim=1)
    with torch.inference_mode():
        logits = model(input_ids=ids, **request.payload.media).logits[0].float()
    places = range(prompt.shape[1] - 1, ids.shape[1] - 1)
    wanted = [float(logits[place].log_softmax(-1)[ids[0, place + 1]]) for place in places]
    assert found.mean_logprob == pytest.approx(np.mean(wanted), abs=1e-4)
    assert [row.logprob for row in found.logprobs] == pytest.approx(wanted, abs=1e-4)


def test_random_options_in_one_run_are_answered_as_alone(tiny: Path) -> None:
    rng = np.random.default_rng(0)
    engine = open_engine(options_for(tiny, batch_size=8))
    asked = []
    for number in range(40):
        question = Question(
            "What" + " now" * int(rng.integers(4)),
            int(rng.integers(1, 20)),
            temperature=float(rng.choice([0.0, 0.8, 1.5])),
            top_p=float(rng.choice([0.5, 0.9, 1.0])),
            seed=int(rng.integers(99)),
            stop=tuple(rng.choice(list("abcdef"), int(rng.integers(3)))),
            ignore_eos=bool(rng.integers(2)),
        )
        size = [int(edge) for edge in rng.integers(10, 90, 2)]
        asked.append((about(noise(number, *size), str(number)), question))
    found = run_all(engine, [engine.prepare(seen, [question]) for seen, question in asked])
    alone = open_engine(options_for(tiny, batch_size=1))
    for number, (seen, question) in enumerate(asked):
        (wanted,) = ask(alone, seen, question)
        assert found[number, 0].text == wanted.text
        assert found[number, 0].token_ids == wanted.token_ids
        assert found[number, 0].finish_reason == wanted.finish_reason
    assert {one.finish_reason for one in found.values()} == {"stop", "length"}
