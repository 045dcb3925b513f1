"""Options of a job: small groups that check themselves, and the Job of all groups."""

from __future__ import annotations

from vlmbatch.job.constraint import ConstraintOptions
from vlmbatch.job.engine import EngineOptions
from vlmbatch.job.generation import Detail, GenerationOptions
from vlmbatch.job.inputs import InputOptions
from vlmbatch.job.job import Job
from vlmbatch.job.keys import job_key
from vlmbatch.job.model import ModelOptions
from vlmbatch.job.option import Kind, option
from vlmbatch.job.output import OutputOptions
from vlmbatch.job.questions import Per, QuestionOptions
from vlmbatch.job.reporting import ReportingOptions
from vlmbatch.job.resources import ResourceOptions
from vlmbatch.job.video import (
    DEFAULT_FPS,
    DEFAULT_SCENE_THRESHOLD,
    DEFAULT_SKIP_SIMILAR,
    VideoOptions,
)

__all__ = [
    "ConstraintOptions",
    "DEFAULT_FPS",
    "DEFAULT_SCENE_THRESHOLD",
    "DEFAULT_SKIP_SIMILAR",
    "Detail",
    "EngineOptions",
    "GenerationOptions",
    "InputOptions",
    "Job",
    "Kind",
    "ModelOptions",
    "OutputOptions",
    "Per",
    "QuestionOptions",
    "ReportingOptions",
    "ResourceOptions",
    "VideoOptions",
    "job_key",
    "option",
]
