"""Rows of a folder of ``.txt`` files beside pictures."""

from __future__ import annotations

from pathlib import Path

from vlmbatch.errors import JobError, one_line
from vlmbatch.finetune.rows import TrainingData, TrainingRow, read_data
from vlmbatch.job import Job
from vlmbatch.read.files.kinds import media_of
from vlmbatch.tasks import default_prompt
from vlmbatch.text_files import read_text, texts_beside


def read_any_data(path: Path, prompt: str | None, video_job: Job) -> TrainingData:
    """Read DATA: a file, or a folder of texts.

    Args:
        path: The file or folder.
        prompt: The instruction that the texts of a folder answer; None: that of captions.
        video_job: Options that make clips of the videos of a file.

    Raises:
        JobError: It cannot be read, or has no row to train on.
    """
    if not path.is_dir():
        return read_data(path, video_job)
    instruction = prompt or default_prompt("caption") or ""
    rows: list[TrainingRow] = []
    try:
        for text, about in texts_beside(str(path)):
            if media_of(about) != "image":
                continue
            answer = read_text(str(path / text))
            error = "" if answer else "an empty text"
            rows.append(
                TrainingRow(text, "image", str(path / about), instruction, answer, error=error)
            )
    except (OSError, ValueError) as error:
        raise JobError(f"{path}: {one_line(error)}") from error
    if not rows:
        raise JobError(f"{path}: there is no .txt file beside a picture in it")
    return TrainingData(rows, video_job)
