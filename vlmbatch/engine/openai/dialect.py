"""Parameters that not every server takes: asked for until they are refused."""

from __future__ import annotations

import logging

from vlmbatch.engine.openai.client import Refused

logger = logging.getLogger(__name__)

REFUSING = (400, 422, 501)
"""Statuses with which servers refuse a parameter."""


class Dialect:
    """Parameters that the endpoint takes, as far as it is known.

    Attributes:
        logprobs: Whether log-probabilities are asked for.
        stream_usage: Whether streams are asked to end with their usage.
        limit: Name of the limit of new tokens.
    """

    def __init__(self) -> None:
        self.logprobs = self.stream_usage = True
        self.limit = "max_tokens"

    def learn(self, refused: Refused, body: dict[str, object]) -> bool:
        """Leave out what was refused.

        Args:
            refused: The endpoint's answer.
            body: The request.

        Returns:
            Whether the request is to be sent again, with other parameters.
        """
        message = str(refused)
        if refused.status not in REFUSING:
            return False
        if "logprob" in message and "logprobs" in body:
            if self.logprobs:
                logger.warning("%s; asking without log-probabilities", refused)
            self.logprobs = False
        elif "stream_options" in message and "stream_options" in body:
            self.stream_usage = False
        elif "max_completion_tokens" in message and "max_tokens" in body:
            self.limit = "max_completion_tokens"
        else:
            return False
        return True
