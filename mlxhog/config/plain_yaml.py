"""YAML of plain values: null, booleans, numbers, text, lists and mappings, and nothing else.

PyYAML's safe loader also makes dates, sets and bytes; takes the last of two equal keys; raises
`KeyError` for `!!bool maybe`; and shares one object between all aliases of an anchor, so that a few
hundred bytes stand for gigabytes of text. Here a date is text, and each of the others is an error
that names its line.
"""

from __future__ import annotations

from typing import Any

import yaml

from mlxhog.config.limits import MOST_CONFIG_BYTES, MOST_DEPTH, MOST_DIGITS, said, shown

_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = tuple(
    f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")
)
_SPELLINGS = {
    f"{_TAG}{name}": tuple(f"{_TAG}{one}" for one in found)
    for name, found in {"bool": ["bool"], "int": ["int"], "float": ["float", "int"]}.items()
}
"""What the text of a scalar has to look like to PyYAML, by its tag."""
MOST_CHARACTERS = MOST_CONFIG_BYTES
"""Of all values together, each alias counted as what it stands for."""


class NotYaml(ValueError):
    """A text is no YAML of plain values.

    Attributes:
        problem: what is wrong.
        line: where, from 1; None where no line is to blame.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem if line is None else f"line {line}: {problem}")
        self.problem, self.line = problem, line


def loads(text: str) -> Any:  # whatever the text spells
    """Return the value of a text; None where it is empty.

    Raises:
        NotYaml: the text is no YAML, has a key twice, holds other than plain values, or is beyond
            the limits of `mlxhog.config.limits`.
    """
    with _Reading(text) as loader:
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node)


def entries(text: str) -> list[tuple[str, Any, int]] | None:
    """Return (key, value, line) of every entry of a mapping, in which a key may stand twice.

    An empty text has none; where a text is something else than a mapping, the result is None.

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
                raise NotYaml("a list or mapping is no name", key.start_mark.line + 1)
        return [
            (str(key.value), loader.construct_document(value), key.start_mark.line + 1)
            for key, value in node.value
        ]


class _Reading:
    """A loader whose every failure becomes `NotYaml`."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __enter__(self) -> _Loader:
        if len(self._text) > MOST_CHARACTERS:
            raise NotYaml(f"it has more than {MOST_CHARACTERS:,} characters")
        try:
            return _Loader(self._text)  # which looks at every character
        except yaml.YAMLError as error:
            raise NotYaml(said(error)) from error

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, yaml.MarkedYAMLError):
            line = error.problem_mark.line + 1 if error.problem_mark else None
            raise NotYaml(str(error.problem or error.context), line) from error
        # An escape beyond Unicode, or a %YAML directive of a thousand digits.
        if isinstance(error, yaml.YAMLError | ValueError | OverflowError | RecursionError):
            if not isinstance(error, NotYaml):
                raise NotYaml(said(error)) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with fewer types and more refusals."""

    yaml_implicit_resolvers = {
        first: [
            (tag, form) for tag, form in found if tag not in (f"{_TAG}timestamp", f"{_TAG}value")
        ]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
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
                raise _problem("an alias of the list or mapping that it stands in", mark)
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
                        f"{shown(key.value)} stands already in line {lines[name]}", key.start_mark
                    )
                lines[name] = key.start_mark.line + 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Make a plain value, whose spelling has to be that of its type."""
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
                raise _problem(f"{shown(node.value)} is no {kind}", node.start_mark)
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
