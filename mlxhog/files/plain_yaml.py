"""YAML with plain values only: null, booleans, numbers, text, lists and mappings.

The text is a file, or assignments in one line as in `--set`.

PyYAML's safe loader also makes dates, sets and bytes; it takes the last of two equal keys; it
raises `KeyError` for `!!bool maybe`; and all aliases of an anchor share one object, so that a few
hundred bytes expand to gigabytes of text. Here a date is text, and each of the other cases is an
error with its line number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from mlxhog.errors import message_of, shown
from mlxhog.files.reading import MOST_CONFIG_BYTES, MOST_DEPTH, MOST_DIGITS

_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = tuple(
    f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")
)
_SPELLINGS = {
    f"{_TAG}{name}": tuple(f"{_TAG}{one}" for one in tags)
    for name, tags in {"bool": ["bool"], "int": ["int"], "float": ["float", "int"]}.items()
}
"""For each tag, the tags that PyYAML may infer from a scalar's text."""
ASSIGNMENT = "NAME=VALUE, such as hidden_size=256"
MOST_CHARACTERS = MOST_CONFIG_BYTES
"""Limit for all values together, with every alias expanded."""


class NotYaml(ValueError):
    """A text is not YAML of plain values.

    Attributes:
        problem: the fault, in words.
        line: its line, from 1; None if the fault has no line.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem if line is None else f"line {line}: {problem}")
        self.problem, self.line = problem, line


def loads(text: str) -> Any:  # any plain value
    """Return the value of a text; None if it is empty.

    Raises:
        NotYaml: the text is not YAML, has a key twice, has a value that is not plain, or exceeds
            the limits of `mlxhog.files.reading`.
    """
    with _Reading(text) as loader:
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node)


def entries(text: str) -> list[tuple[str, Any, int]] | None:
    """Return (key, value, line) of every entry of a mapping; a key may occur twice.

    An empty text has no entries. If the text is not a mapping, the result is None.

    Raises:
        NotYaml: as `loads`.
    """
    with _Reading(text) as loader:
        loader.repeats_on_top = True
        node = loader.get_single_node()
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            return None
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise NotYaml("a list or mapping is not a name", key.start_mark.line + 1)
        return [
            (str(key.value), loader.construct_document(value), key.start_mark.line + 1)
            for key, value in node.value
        ]


def assignments(text: str | None) -> dict[str, Any]:
    """Return name -> value of a text such as `hidden_size=256, slstm_at=[1]`.

    Commas outside of brackets separate assignments, which keep their order. A value is YAML: a
    number, a word, true, null, a list. If a name occurs twice, its last value holds.

    Raises:
        ValueError: a part is not an assignment, or its value is not YAML.

    >>> assignments("hidden_size=256, slstm_at=[1, 5], bias=true")
    {'hidden_size': 256, 'slstm_at': [1, 5], 'bias': True}
    """
    values: dict[str, Any] = {}
    for part in _parts(text or ""):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name and equals and value):
            raise ValueError(f"{shown(part.strip())} is not {ASSIGNMENT}")
        values.pop(name, None)
        try:
            values[name] = loads(value)
        except NotYaml as error:
            raise ValueError(f"the value of {shown(name)} is {shown(value)}: {error}") from error
    return values


def as_assignments(value: object) -> str:
    """Return a text, a list of texts, or a mapping of values as one text that `assignments` reads.

    Raises:
        ValueError: it has another type.

    >>> as_assignments({"hidden_size": 256, "slstm_at": [1, 5]})
    'hidden_size=256, slstm_at=[1, 5]'
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={json.dumps(one)}" for name, one in value.items())
    if isinstance(value, Sequence) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    raise ValueError(f"wanted {ASSIGNMENT}")


def _parts(text: str) -> Iterator[str]:
    """Yield the parts of a text between commas outside of brackets."""
    depth, start = 0, 0
    for at, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            yield text[start:at]
            start = at + 1
    if text[start:].strip():
        yield text[start:]


class _Reading:
    """A loader whose every failure becomes `NotYaml`."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __enter__(self) -> _Loader:
        if len(self._text) > MOST_CHARACTERS:
            raise NotYaml(f"it has more than {MOST_CHARACTERS:,} characters")
        try:
            return _Loader(self._text)  # its constructor checks every character
        except yaml.YAMLError as error:
            raise NotYaml(message_of(error)) from error

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, yaml.MarkedYAMLError):
            line = error.problem_mark.line + 1 if error.problem_mark else None
            raise NotYaml(str(error.problem or error.context), line) from error
        # An escape beyond Unicode, or a %YAML directive of a thousand digits.
        if isinstance(error, yaml.YAMLError | ValueError | OverflowError | RecursionError):
            if not isinstance(error, NotYaml):
                raise NotYaml(message_of(error)) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with fewer types and more refusals."""

    yaml_implicit_resolvers = {
        first: [
            (tag, form) for tag, form in forms if tag not in (f"{_TAG}timestamp", f"{_TAG}value")
        ]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeats_on_top = False
        self._depth = 0
        self._characters = 0
        self._weights: dict[int, int] = {}  # of every composed node, by its id

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node within the limits; an alias weighs as much as its anchor."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._weights:
                raise _problem("a list or mapping contains an alias of itself", mark)
            self._count(self._weights[id(node)], mark)
            return node
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _problem(f"lists or mappings are nested more than {MOST_DEPTH} deep", mark)
        before = self._characters
        node = super().compose_node(parent, index)
        assert node is not None, "there is an event, and no alias"
        self._depth -= 1
        self._count(1 + len(node.value) * isinstance(node, yaml.ScalarNode), mark)
        self._weights[id(node)] = self._characters - before
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Compose a mapping, and refuse a second value for one of its keys."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if self.repeats_on_top and self._depth == 1:
                break
            if isinstance(key, yaml.ScalarNode):
                name = (key.tag, key.value)
                if name in lines:
                    raise _problem(
                        f"{shown(key.value)} is already in line {lines[name]}", key.start_mark
                    )
                lines[name] = key.start_mark.line + 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Make a plain value; its text must be a valid spelling of its type."""
        if node.tag not in _PLAIN_TAGS:
            raise _problem(
                f"the tag {shown(node.tag.replace(_TAG, '!!'))} is not supported; wanted text, "
                "numbers, true, false, null, lists and mappings",
                node.start_mark,
            )
        allowed = _SPELLINGS.get(node.tag)
        if allowed and isinstance(node, yaml.ScalarNode):
            looks = self.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
            if looks not in allowed:
                kind = node.tag.removeprefix(_TAG)
                raise _problem(f"{shown(node.value)} is not of type {kind}", node.start_mark)
            if len(node.value) > MOST_DIGITS:
                raise _problem(f"a number has more than {MOST_DIGITS} digits", node.start_mark)
        return super().construct_object(node, deep)

    def _count(self, characters: int, mark: Any) -> None:
        self._characters += characters
        if self._characters > MOST_CHARACTERS:
            raise _problem(
                f"the values have more than {MOST_CHARACTERS:,} characters with all aliases "
                "written out",
                mark,
            )


def _problem(what: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=mark)
