"""Constraint options: what the text of every answer must satisfy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmbatch.errors import JobError, one_line
from vlmbatch.job.option import option
from vlmbatch.text_files import open_text, parse_json

if TYPE_CHECKING:
    from vlmbatch.core import Constraint

CONSTRAINTS = ("schema", "regex", "choices")
"""The options of this group, of which a job has one."""
CONSTRAINED_ENGINES = ("torch", "onnx")
"""Engines that honour them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstraintOptions:
    """The constraint of answers. See the help text of each field."""

    schema: str | None = option(
        None,
        "Every answer is JSON that is valid under this JSON Schema.",
        metavar="FILE",
        is_path=True,
        group="Generation",
    )
    regex: str | None = option(
        None,
        "Every answer as a whole matches this regular expression.",
        metavar="RE",
        group="Generation",
    )
    choices: Sequence[str] = option(
        (), "Every answer is one of these texts.", metavar="A,B,…", group="Generation"
    )

    def check_constraint(self) -> None:
        """Check the values of this group. Whether they can be compiled, an engine says.

        Raises:
            JobError: There are several, or one is empty.
        """
        given = [name for name in CONSTRAINTS if getattr(self, name) not in (None, ())]
        if len(given) > 1:
            raise JobError(f"give one of {' and '.join(given)}: an answer has one constraint")
        if self.regex == "":
            raise JobError("regex is empty: it matches no answer")
        if not all(self.choices):
            raise JobError("choices must not be empty texts; write them as a,b,c")

    @property
    def constraint_option(self) -> str | None:
        """Name of the option that is given; None if answers are free."""
        return next((name for name in CONSTRAINTS if getattr(self, name)), None)

    def read_constraint(self) -> Constraint | None:
        """Return the constraint of answers; None for any text. Reads the file of a schema.

        Raises:
            JobError: The file cannot be read, or is no JSON Schema.
        """
        from vlmbatch.core import Constraint  # loads what pixels need; --help does without

        if self.regex is not None:
            return Constraint("regex", self.regex)
        if self.choices:
            return Constraint("choices", json.dumps(self.choices, ensure_ascii=False))
        return None if self.schema is None else read_schema(self.schema)

    def constraint_identity(self) -> dict[str, str]:
        """Return the constraint as OUTPUT's identity has it: nothing if answers are free."""
        constraint = self.read_constraint()
        return {} if constraint is None else {constraint.kind: constraint.digest}


def read_schema(path: str) -> Constraint:
    """Read a JSON Schema from a file.

    Raises:
        JobError: It cannot be read, or is no JSON object.
    """
    try:
        with open_text(path, errors="strict") as file:
            schema = parse_json(file.read())
    except (OSError, ValueError) as error:  # bytes that are not text are a ValueError
        raise JobError(f"schema {path}: {one_line(error)}") from error
    return schema_constraint(schema, f"schema {path}")


def schema_constraint(schema: Any, name: str = "schema") -> Constraint:
    """Return the constraint to a JSON Schema. The order of its keys counts.

    Raises:
        JobError: It is no JSON object.
    """
    from vlmbatch.core import Constraint

    if not isinstance(schema, dict):
        raise JobError(f"{name}: a JSON Schema is an object, such as {{'type': 'object'}}")
    return Constraint("schema", json.dumps(schema, ensure_ascii=False))


def split_choices(value: Any) -> Any:
    """Return choices as a job has them: of ``a,b,c``, or of a list, whose entries may hold commas.
    Whole numbers become texts.
    """
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple):
        value = (value,)
    texts = [
        str(entry) if isinstance(entry, int) and not isinstance(entry, bool) else entry
        for entry in value
    ]
    stripped = [text.strip() if isinstance(text, str) else text for text in texts]
    return tuple(text for place, text in enumerate(stripped) if text not in stripped[:place])
