"""The checkpoint's chat template: from turns to the text of a prompt."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vlmbatch.errors import ModelLoadError, PrepareError

VIDEO_CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}"
    "{% elif line['type'] == 'video' %}{{ '<video>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""The template for a conversation with a clip. The published ones have no video; transformers'
SmolVLM processor then uses this one (``DEFAULT_CHAT_TEMPLATE``).
"""

Message = tuple[str, Sequence[tuple[str, str]]]
"""A role, and its parts as (type, text): ``text`` with its text, ``image`` or ``video`` without."""


class ChatTemplate:
    """A Jinja template, rendered in a sandbox. Can be pickled."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        """Take a template.

        Args:
            source: Jinja source.
            special: Further variables, such as ``bos_token``.
        """
        self._source, self._special = source, dict(special)

    def render(self, messages: Sequence[Message], *, opens_answer: bool = True) -> str:
        """Return the text of a conversation.

        Args:
            messages: The conversation.
            opens_answer: Whether the start of the assistant's next turn follows.

        Raises:
            ModelLoadError: The template cannot be compiled.
            PrepareError: The template refuses the conversation.
        """
        values = [
            {
                "role": role,
                "content": [
                    {"type": kind, "text": text} if kind == "text" else {"type": kind}
                    for kind, text in parts
                ],
            }
            for role, parts in messages
        ]
        has_video = any(kind == "video" for _, parts in messages for kind, _ in parts)
        template = _compile(VIDEO_CHAT_TEMPLATE if has_video else self._source)
        try:
            text: str = template.render(
                messages=values,
                tools=None,
                documents=None,
                add_generation_prompt=opens_answer,
                **self._special,
            )
        except Exception as error:  # a template may raise anything
            raise PrepareError(f"the chat template refuses the conversation: {error}") from error
        return text


def fill_in(text: str, markers: Sequence[str], media: Sequence[str]) -> str:
    """Replace the markers of media by their texts, in order.

    Args:
        text: A rendered conversation.
        markers: The template's marker of each medium.
        media: The replacements.

    Raises:
        PrepareError: The template dropped a medium, or a text looks like a marker.
    """
    pieces: list[str] = []
    for marker, medium in zip(markers, media, strict=True):
        before, found, text = text.partition(marker)
        if not found:
            raise PrepareError(f"the chat template has no place for {marker}")
        pieces += [before, medium]
    for marker in set(markers):
        if marker in text:
            raise PrepareError(f"a text may not hold {marker}, which stands for pixels")
    return "".join([*pieces, text])


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> Any:
    """Compile a template with what transformers gives to chat templates."""
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """``{% generation %}`` marks the assistant's words for training; they are rendered."""

        tags = {"generation"}  # noqa: RUF012 (so declared by jinja2)

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, **({"ensure_ascii": False} | options)
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except Exception as error:  # jinja2 raises errors of its own
        raise ModelLoadError(f"the checkpoint's chat template is broken: {error}") from error
