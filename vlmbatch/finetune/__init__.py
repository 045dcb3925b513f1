"""Teaches a checkpoint the user's own answers: rows of pictures, prompts and answers in, a complete
checkpoint out.

    rows.py -> check.py -> examples.py -> trainer.py -> merge.py        (wired together in run.py)

transformers' Trainer does the loop and peft the adapters; what a row becomes is what ``prepare/``
makes of it when the model answers. Importing this package loads none of them.
"""

from __future__ import annotations

from vlmbatch.finetune.job import FinetuneJob

__all__ = ["FinetuneJob"]
