"""Fields and their new values in one text, as `--set` takes them: `hidden_size=256, slstm_at=[1]`.

A comma outside of brackets separates them. A value is YAML: a number, a word, true, null, a list.
A field that stands twice has its last value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlxhog.config import plain_yaml
from mlxhog.config.limits import shown

WANTED = "NAME=VALUE, such as hidden_size=256"


def parse(text: str | None) -> dict[str, Any]:
    """Return the value of every field that the text names, in its order.

    Raises:
        ValueError: a part is no assignment, or its value is no YAML.

    >>> parse("hidden_size=256, slstm_at=[1, 5], bias=true")
    {'hidden_size': 256, 'slstm_at': [1, 5], 'bias': True}
    """
    values: dict[str, Any] = {}
    for part in _parts(text or ""):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name and equals and value):
            raise ValueError(f"{shown(part.strip())} is not {WANTED}")
        values.pop(name, None)
        try:
            values[name] = plain_yaml.loads(value)
        except plain_yaml.NotYaml as error:
            raise ValueError(f"the value of {shown(name)} is {shown(value)}: {error}") from error
    return values


def to_text(value: object) -> str:
    """Return a text, a list of texts, or a mapping of values as one text that `parse` reads.

    Raises:
        ValueError: it is something else.

    >>> to_text({"hidden_size": 256, "slstm_at": [1, 5]})
    'hidden_size=256, slstm_at=[1, 5]'
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={json.dumps(one)}" for name, one in value.items())
    if isinstance(value, Sequence) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    raise ValueError(f"wanted {WANTED}")


def _parts(text: str) -> Iterator[str]:
    """Yield what stands between commas that are in no bracket."""
    depth, start = 0, 0
    for at, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            yield text[start:at]
            start = at + 1
    if text[start:].strip():
        yield text[start:]
