"""Match the ids of an OUTPUT with those of a reference, by the end of the path if necessary."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Set


@dataclasses.dataclass(frozen=True)
class IdMatch:
    """Translation of OUTPUT's ids to the reference's.

    Attributes:
        prefix: Text before every id of OUTPUT.
        by_path_end: The reference's id of each of OUTPUT's that is joined by the end of the path.
    """

    prefix: str = ""
    by_path_end: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def name(self, id: str) -> str:
        """Return the reference's id for an id of OUTPUT."""
        return self.by_path_end.get(id, self.prefix + id)

    def differences(self) -> list[tuple[str, str, int]]:
        """Return what ids of OUTPUT and of the reference begin with, and how many do."""
        counts: collections.Counter[tuple[str, str]] = collections.Counter()
        for id, name in self.by_path_end.items():
            shared = min(len(id), len(name))
            counts[id[:-shared], name[:-shared]] += 1
        return [(*start, number) for start, number in counts.most_common()]


def match_ids(ids: Iterable[str], known: Set[str], prefix: str = "") -> IdMatch:
    """Match ids as they are or, if not one of them is known, by the end of the path.

    Args:
        ids: Ids of OUTPUT; read up to the first one that is known.
        known: Ids of the reference.
        prefix: Text that the user puts before the ids of OUTPUT; nothing else is tried then.
    """
    unknown: dict[str, None] = {}
    for id in ids:
        if prefix or id in known:
            return IdMatch(prefix)
        unknown[id] = None
    return IdMatch(by_path_end=_match_path_ends(unknown, known))


def _match_path_ends(ids: Collection[str], known: Set[str]) -> dict[str, str]:
    """Pair ids of which one is the end of the other's path, each at most once.

    An id may be the end of several: x/a/1.jpg and x/1.jpg both end in 1.jpg. The start that most
    pairs have (x/) decides, as there is mostly one folder that all paths begin with. A tie pairs
    nothing.
    """
    pairs = [
        *((end, name, name.removesuffix(end)) for name in known for end in _path_ends(name, ids)),
        *((id, end, id.removesuffix(end)) for id in ids for end in _path_ends(id, known)),
    ]
    votes = collections.Counter(start for *_, start in pairs)
    best: dict[tuple[bool, str], tuple[int, int]] = {}
    for id, name, start in pairs:
        for key in ((True, id), (False, name)):
            most, number = best.get(key, (0, 0))
            if votes[start] >= most:
                best[key] = (votes[start], number + 1 if votes[start] == most else 1)
    return {
        id: name
        for id, name, start in pairs
        if best[True, id] == best[False, name] == (votes[start], 1)
    }


def _path_ends(path: str, among: Collection[str]) -> Iterator[str]:
    """Yield a path without its first folder, without its first two …, as far as they are known."""
    while path := path.partition("/")[2]:
        if path in among:
            yield path
