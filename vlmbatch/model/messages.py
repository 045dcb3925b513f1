"""Chats as Python programs write them, dicts with a role and content, to a conversation and the
question that ends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, cast

from vlmbatch.core import Conversation, Part, Role, Turn
from vlmbatch.errors import JobError
from vlmbatch.model.pictures import load_clip, load_picture

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles of messages, and of the turns that they become."""

DETAILS: Mapping[str | None, Literal["full", "low"] | None] = {
    "low": "low",
    "high": "full",
    "full": "full",
    "auto": None,
    None: None,
}
"""Details of pictures as OpenAI's clients name them, and ours; None is the model's."""

_PICTURE_KEYS = ("image", "path", "url", "base64")
_VIDEO_KEYS = ("video", "path", "url")


def read_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[Conversation, str]:
    """Load the pictures and clips of a chat.

    Args:
        messages: Each with ``role`` (system, user or assistant) and ``content``: a string, or a
            list of parts as transformers and OpenAI's clients write them. The last one is the
            user's.

    Returns:
        The conversation, and the text that continues it: the end of the last message.

    Raises:
        JobError: The messages are not of this form; the error names the message.
        ItemError: A picture or video cannot be read.
    """
    if isinstance(messages, (str, Mapping)) or not messages:
        raise JobError('messages is a list such as [{"role": "user", "content": "Hello."}]')
    turns = [_turn(message, f"message {place}") for place, message in enumerate(messages, 1)]
    last = turns.pop()
    if last.role != "user":
        raise JobError(f"the last message must be the user's, not the {last.role}'s")
    *before, end = last.parts
    kept = before if end.kind == "text" else last.parts
    if kept or (turns and turns[-1].role == "user"):
        turns.append(Turn("user", tuple(kept)))
    return Conversation(tuple(turns)), end.text


def _turn(message: Mapping[str, Any], place: str) -> Turn:
    if not isinstance(message, Mapping):
        raise JobError(f"{place} must be a dict with role and content, not {message!r:.100}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise JobError(f"{place}: role must be one of {', '.join(ROLES)}, not {role!r}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or not content:
        raise JobError(
            f"{place}: content must be text or a list of parts, not {content!r:.100}; a part is "
            'such as {"type": "text", "text": "Hello."} or {"type": "image", "path": "cat.jpg"}'
        )
    parts = (_part(part, f"{place}, part {number}") for number, part in enumerate(content, 1))
    return Turn(cast(Role, ROLES[role]), tuple(parts))


def _part(part: Any, place: str) -> Part:
    if isinstance(part, str):
        return Part("text", part)
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return Part("text", _text(part, place))
    if kind in ("image", "image_url"):
        is_url = kind == "image_url"
        value = _url(part, kind, place) if is_url else _value(part, _PICTURE_KEYS, place)
        return Part("picture", pixels=load_picture(value), detail=_detail(part, kind, place))
    if kind in ("video", "video_url"):
        value = _value(part, _VIDEO_KEYS, place) if kind == "video" else _url(part, kind, place)
        return Part("clip", pixels=load_clip(value, part.get("fps"), part.get("num_frames")))
    raise JobError(
        f"{place}: type must be text, image, image_url, video or video_url, not {kind!r}"
    )


def _text(part: Mapping[str, Any], place: str) -> str:
    text = part.get("text")
    if not isinstance(text, str):
        raise JobError(f"{place}: text must be text, not {text!r:.100}")
    return text


def _value(part: Mapping[str, Any], keys: Sequence[str], place: str) -> Any:
    """The value of the one key that names a picture or video."""
    found = [key for key in keys if part.get(key) is not None]
    if len(found) != 1:
        _wrong_keys(keys, found, place)
    value = part[found[0]]
    is_bare = found[0] == "base64" and not str(value).startswith("data:")
    return f"data:image/png;base64,{value}" if is_bare else value


def _url(part: Mapping[str, Any], key: str, place: str) -> Any:
    """The URL in ``{"url": …}``, as OpenAI's clients write it, or by itself."""
    value = part.get(key)
    if isinstance(value, Mapping):
        value = value.get("url")
    if not isinstance(value, str):
        raise JobError(f'{place}: {key} must be {{"url": "…"}}, not {value!r:.100}')
    return value


def _detail(part: Mapping[str, Any], kind: str, place: str) -> Literal["full", "low"] | None:
    """The detail of a picture, beside it or beside its URL; None for the model's."""
    inside = part.get(kind)
    found = part.get("detail", inside.get("detail") if isinstance(inside, Mapping) else None)
    if found not in DETAILS:
        names = ", ".join(name for name in DETAILS if name)
        raise JobError(f"{place}: detail must be one of {names}, not {found!r}")
    return DETAILS[found]


def _wrong_keys(keys: Sequence[str], found: Sequence[str], place: str) -> NoReturn:
    given = f"both {' and '.join(found)}" if found else "none of them"
    raise JobError(f"{place}: give one of {', '.join(keys)}; it has {given}")
