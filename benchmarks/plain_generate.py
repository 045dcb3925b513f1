"""Caption pictures with transformers alone, as a script of a few lines does: read, process,
`generate`, in batches.

    python -m benchmarks.plain_generate MODEL OUT.json PICTURE...
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image, ImageOps

from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Conversation, Pixels
from vlmbatch.engine.transformers.tiled import TiledProcessor
from vlmbatch.tasks import DEFAULT_PROMPTS


def caption(
    folder: Path, pictures: list[Path], new_tokens: int, batch: int
) -> dict[str, list[int]]:
    """Return the new tokens of each picture. All prompts are equally long: one tile each."""
    checkpoint = find_checkpoint(str(folder))
    config = transformers.AutoConfig.from_pretrained(folder)
    process = TiledProcessor(checkpoint, config, "low")
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    found = {}
    for begin in range(0, len(pictures), batch):
        some = pictures[begin : begin + batch]
        payloads = []
        for path in some:
            with Image.open(path) as opened:
                upright = ImageOps.exif_transpose(opened).convert("RGB")
            about = Conversation.about("image", Pixels([upright]), path.name)
            payloads.append(process(about, [DEFAULT_PROMPTS["caption"]]))
        ids = torch.cat([payload.prompts[0]["input_ids"] for payload in payloads])
        pixels = torch.cat([payload.media["pixel_values"] for payload in payloads])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels,
                max_new_tokens=new_tokens,
                do_sample=False,
            )
        for path, row in zip(some, out, strict=True):
            found[path.name] = row[ids.shape[1] :].tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()
    found = caption(arguments.model, arguments.pictures, arguments.new_tokens, arguments.batch)
    arguments.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
