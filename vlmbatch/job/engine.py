"""Engine options: the groups that an engine is opened from. A server has these and no inputs."""

from __future__ import annotations

import dataclasses

from vlmbatch.job.endpoint import EndpointOptions
from vlmbatch.job.generation import GenerationOptions
from vlmbatch.job.model import ModelOptions
from vlmbatch.job.resources import ResourceOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions(ResourceOptions, GenerationOptions, EndpointOptions, ModelOptions):
    """Model, endpoint, generation and resources of a job."""

    def check_engine(self) -> None:
        """Check the values of these groups.

        Raises:
            JobError: A value is not allowed.
        """
        self.check_model()
        self.check_endpoint(self.engines)
        self.check_generation()
        self.check_resources()
