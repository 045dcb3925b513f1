"""The payload of a prepared request: tiles and token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vlmbatch.core import UInt8Array


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """Tiles and token ids of a request, the torch engine's input.

    Attributes:
        tiles: uint8, (n_tiles, 3, E, E); none for text alone.
        prefix_ids: Token ids that all questions share: the chat opening and the media.
        question_ids: For each question the token ids that follow the prefix.
        seeds: For each question its sampling seed.
        tile_keys: For each tile a digest of its pixels, to find equal tiles.
    """

    tiles: UInt8Array
    prefix_ids: Sequence[int]
    question_ids: Sequence[Sequence[int]]
    seeds: Sequence[int]
    tile_keys: Sequence[bytes] = ()

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the longest prompt."""
        return len(self.prefix_ids) + max(map(len, self.question_ids))
