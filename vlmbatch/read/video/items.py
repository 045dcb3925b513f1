"""The Items of one video, numbered in their order."""

from __future__ import annotations

from collections.abc import Callable

from vlmbatch.core import Item, Media, Pixels
from vlmbatch.errors import ItemError
from vlmbatch.read.base import failing_load, with_carried
from vlmbatch.read.files.source import Listed


class VideoItems:
    """A maker of the Items of one video.

    Attributes:
        count: Items made so far.
        digest: Returns the digest of the video's content; None until it was opened.
    """

    def __init__(self, found: Listed, number: int, media: Media) -> None:
        """Take the video, its number among the sources, and the media of its Items."""
        self._found, self._number, self._media = found, number, media
        self.count = 0
        self.digest: Callable[[], str] | None = None

    def again(self) -> VideoItems:
        """Return another maker of the same Items, from the first on."""
        items = VideoItems(self._found, self._number, self._media)
        items.digest = self.digest
        return items

    def item(
        self,
        mark: str,
        load: Callable[[], Pixels],
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        similar_to: str | None = None,
    ) -> Item:
        """Make the next Item.

        Args:
            mark: The end of its id, behind the video's.
            load: Gives its pixels.
            start_seconds: Its time.
            end_seconds: The end of its time.
            similar_to: Mark of an Item whose answer is taken for it.
        """
        found = self._found
        item = Item(
            found.id + mark,
            found.source,
            (self._number, self.count),
            self._media,
            load,
            start_seconds,
            end_seconds,
            found.fingerprint,
            found.questions,
            found.extra,
            similar_to=None if similar_to is None else found.id + similar_to,
            digest=with_carried(self.digest, found.extra),
        )
        self.count += 1
        return item

    def failed(self, error: ItemError) -> Item:
        """Make an Item of the video itself whose load raises an error."""
        return self.item("", failing_load(type(error), str(error)))
