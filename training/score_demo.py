"""Scores a checkpoint on scenes of another seed, as a user would: files, `vlmbatch vqa`, `vlmbatch
video`, `vlmbatch eval`.

    python -m training.score_demo build/demo_score --model vlmbatch/demo   # prints the card's table

Pictures are 64 to 1600 pixels behind JPEG compression of quality 60 to 95, clips are H.264. The
same pictures are asked about at every detail.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

from training import scenes
from training.examples import question_kind

SEED = 987_655
DETAILS = ("full", "native", "low")
READ_PROMPT = scenes.OCR_PROMPTS[0]


class Asked(NamedTuple):
    """One question with what it is scored under; ``part`` is what of its kind is scored by itself,
    too.
    """

    id: str
    kind: str
    question: str
    answer: str
    part: str = ""


KINDS = {
    "captions": "captions",
    "color": "colour",
    "shape": "shape",
    "position": "where it is",
    "count": "counts above zero",
    "zero": "counts of zero",
    "yes": "`Is there …?` yes",
    "no": "`Is there …?` no",
    "relation": "`What is to the left of …?` and the like",
    "words": "words and numbers of 1 to 6 characters read exactly right",
    "about words": "word or number, how many characters",
    "pages": "pages of small words read exactly right",
    "clip captions": "captions of clips",
    "direction": "direction of movement",
    "clip questions": "colour and shape of what moves",
}
"""What is scored, with its name in the table."""
PARTS = {
    "words": "words and numbers by length",
    "relation": "neighbours in a row or column of three",
}
"""Kinds of which parts are scored, with what is said of them."""
IN_A_ROW_OF_THREE = "three"


def about_shapes(name: str, scene: scenes.Scene, rng: np.random.Generator) -> list[Asked]:
    """A caption, one question of each kind, and one about what is not there."""
    kinds: dict[str, list[scenes.Question]] = defaultdict(list)
    for question, answer in scene.questions:
        kinds[question_kind(question, answer)].append((question, answer))
    shapes = [scenes.shape_named(question) for question, _ in kinds["yes"]]
    kinds["no"] = scenes.absent_questions(shapes, rng, 1)
    asked = [Asked(name, "captions", scenes.CAPTION_PROMPTS[0], scene.caption)]
    picked = [
        (kind, *found[int(rng.integers(len(found)))]) for kind, found in sorted(kinds.items())
    ]
    return asked + [
        Asked(name, kind, question, answer, IN_A_ROW_OF_THREE * ("directly" in question))
        for kind, question, answer in picked
    ]


def about_words(name: str, scene: scenes.Scene) -> list[Asked]:
    """The text, and all that is asked about it."""
    others = [
        Asked(name, "about words", question, answer)
        for question, answer in scene.questions
        if answer not in (scene.text, "0")
    ]
    return [Asked(name, "words", READ_PROMPT, scene.text, str(len(scene.text))), *others]


def about_clip(name: str, clip: scenes.Clip) -> list[Asked]:
    """The caption, the direction, and what moves."""
    asked = [Asked(name, "clip captions", scenes.CLIP_PROMPTS[0], clip.caption)]
    return asked + [
        Asked(
            name,
            "direction" if question.startswith("Which way") else "clip questions",
            question,
            answer,
        )
        for question, answer in clip.questions
    ]


def write_clip(path: Path, clip: scenes.Clip) -> None:
    """Writes the frames as H.264, one a second."""
    height, width = (edge // 2 * 2 for edge in clip.frames[0].shape[:2])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, 1)
        for pixels in clip.frames:
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(
                        np.ascontiguousarray(pixels[:height, :width]), format="rgb24"
                    )
                )
            )
        container.mux(stream.encode())


def draw(folder: Path, count: int, seed: int) -> dict[str, list[Asked]]:
    """Writes ``count`` files of each sort under folders ``pictures``, ``pages`` and ``clips``, and
    gives what to ask in each.
    """
    rng = np.random.default_rng(seed)
    asked: dict[str, list[Asked]] = {"pictures": [], "pages": [], "clips": []}
    for sort in asked:
        (folder / sort).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        page = scenes.random_page(rng, int(rng.integers(160, 1600)))
        for sort, name, scene in (
            ("pictures", f"shapes-{number:04}.jpg", scenes.random_scene(rng, reading=0.0)),
            ("pictures", f"words-{number:04}.jpg", scenes.random_scene(rng, reading=1.0)),
            ("pages", f"page-{number:04}.jpg", page),
        ):
            Image.fromarray(scene.pixels).save(
                folder / sort / name, quality=int(rng.integers(60, 96))
            )
            if scene is page:
                asked[sort].append(Asked(name, "pages", READ_PROMPT, scene.text))
            else:
                asked[sort] += (
                    about_shapes(name, scene, rng)
                    if name.startswith("shapes")
                    else about_words(name, scene)
                )
        clip = scenes.random_clip(rng)
        write_clip(folder / "clips" / f"clip-{number:04}.mp4", clip)
        asked["clips"] += about_clip(f"clip-{number:04}.mp4", clip)
    return asked


def vlmbatch(*arguments: str) -> str:
    """Runs a command of vlmbatch and gives what it prints."""
    return subprocess.run(
        [sys.executable, "-m", "vlmbatch", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def score(folder: Path, asked: dict[str, list[Asked]], model: str) -> dict[str, dict[str, float]]:
    """Share of answers exactly right, by kind (or kind and part, with a blank between) and detail,
    as ``vlmbatch eval`` counts them.
    """
    shares: dict[str, dict[str, float]] = defaultdict(dict)
    for sort, questions in asked.items():
        with open(folder / f"{sort}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [("id", "question"), *((a.id, a.question) for a in questions)]
            )
        groups: dict[str, list[Asked]] = defaultdict(list)
        for a in questions:
            for name in dict.fromkeys((a.kind, f"{a.kind} {a.part}".rstrip())):
                groups[name].append(a)
        for name, group in groups.items():
            rows = [
                json.dumps({"id": a.id, "prompt": a.question, "answer": a.answer}) for a in group
            ]
            (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        for detail in DETAILS if sort == "pictures" else DETAILS[:1]:
            output = str(folder / f"{sort}-{detail}.jsonl")
            settings = [
                "--questions",
                str(folder / f"{sort}.csv"),
                "--model",
                model,
                "--overwrite",
                "-o",
                output,
                "--quiet",
            ]
            if sort == "clips":
                vlmbatch(
                    "video",
                    str(folder / sort),
                    "--task",
                    "vqa",
                    "--per",
                    "clip",
                    "--fps",
                    "1",
                    *settings,
                )
            else:
                vlmbatch("vqa", str(folder / sort), "--detail", detail, *settings)
            for name in sorted(groups):
                result = json.loads(
                    vlmbatch(
                        "eval",
                        output,
                        "--reference",
                        str(folder / f"{name}.jsonl"),
                        "--metric",
                        "exact",
                        "--json",
                        "-",
                    )
                )
                shares[name][detail] = result["all"]["scores"]["exact"]["value"]
    return shares


def table(shares: dict[str, dict[str, float]]) -> str:
    """The shares as the card's Markdown table, and a line for each kind that has parts."""
    lines = [
        "| | " + " | ".join(f"`{detail}`" for detail in DETAILS) + " |",
        "|---" * (1 + len(DETAILS)) + "|",
    ]
    for kind, name in KINDS.items():
        cells = (
            f"{100 * shares[kind][detail]:.1f} %" if detail in shares[kind] else ""
            for detail in DETAILS
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for kind, name in PARTS.items():
        parts = [shares[part] for part in sorted(shares) if part.startswith(f"{kind} ")]
        said = (
            f"`{detail}` {', '.join(f'{100 * part[detail]:.1f}' for part in parts)} %"
            for detail in DETAILS
        )
        lines += ["", f"{name}: {'; '.join(said)}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where files, OUTPUTs and references are written")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--count", type=int, default=400, help="files of each sort")
    parser.add_argument(
        "--seed", type=int, default=SEED, help="of the drawings; training uses small ones"
    )
    arguments = parser.parse_args()
    print(
        table(
            score(
                arguments.folder,
                draw(arguments.folder, arguments.count, arguments.seed),
                arguments.model,
            )
        )
    )


if __name__ == "__main__":
    main()
