"""Fine-tune a checkpoint on rows of pictures, prompts and answers; the result is a checkpoint.

    rows.py -> check.py -> examples.py -> trainer.py -> merge.py        (joined by run.py)

transformers' Trainer runs the loop, and peft makes the adapters. ``prepare/`` prepares a row as it
prepares a request. Importing this package loads none of them.
"""

from __future__ import annotations

from vlmbatch.finetune.job import FinetuneJob

__all__ = ["FinetuneJob"]
