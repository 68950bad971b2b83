"""YAML with plain values only: null, true, false, numbers, text, lists and mappings.

PyYAML's safe loader reads `no` as false, `010` as 8, `1:30` as 90 and a date as an object, and uses
the last of two equal keys. Here these values are text, which an option converts to its type, and
duplicate keys are errors. So are tags, anchors and aliases, by which a few hundred bytes can expand
to gigabytes. `yaml.safe_dump` writes nothing that is read differently here.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mlxhog.base.darwin import reason
from mlxhog.base.quantities import python_number
from mlxhog.base.reading import MAX_DEPTH, MAX_YAML_BYTES, read_text, text_of
from mlxhog.errors import ConfigError, message_of, shown

_FORMS = {
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?(0|[1-9][0-9]{0,99})",
    "float": r"([-+]?[0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
"""Types of a scalar without quotes; every other one is text, also `1e-3`, as in PyYAML."""
ASSIGNMENT = "NAME=VALUE, such as hidden_size=256"
_SIGNS = re.compile(
    # A text in quotes, to the end if it is open: a search from each quote takes quadratic time.
    r"""(?<!\w)(?:"(?:\\.?|[^"\\])*+(?:"|\Z)|'[^']*+(?:'|\Z))"""
    r"|[(\[{]|[)\]}]"
    r"|,(?=\s*(?:[\w.]+\s*=|$))",  # before the next name, or at the end
    re.DOTALL,
)


class NotYaml(ValueError):
    """A text that is not YAML of plain values: the problem, and its line if it has one."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem if line is None else f"line {line}: {problem}")
        self.problem, self.line = problem, line


def loads(text: str) -> Any:  # any plain value
    """Return the value of a text; None if it is empty.

    Raises:
        NotYaml: the text is not YAML, has a key twice, has a value that is not plain, or is nested
            more than `MAX_DEPTH` deep.
    """
    with _reading(text) as loader:
        return loader.get_single_data()


def read_fields(
    path: Path, what: str, read: Callable[[Path], str | bytes] = read_text
) -> dict[str, Any]:
    """Return the fields of a YAML or JSON file; `what` names it in errors.

    Raises:
        ConfigError: it cannot be read, is no YAML or JSON, or has no fields.
    """
    try:
        content = read(path)
        text = content if isinstance(content, str) else text_of(content)
        if path.suffix == ".json":
            from mlxhog.base import plain_json  # it imports NumPy

            data = plain_json.loads(text)
        else:
            data = loads(text)
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else error
        way = "" if "; " in str(why) else "; correct the file"
        raise ConfigError(f"cannot read {what} {path}: {why}{way}") from error
    if isinstance(data, dict):
        return data
    got = "empty" if data is None else shown(data)
    raise ConfigError(f"{what} {path} is {got}; write lines such as 'name: value'")


def entries(text: str) -> list[tuple[str, Any, int]] | None:
    """Return (key, value, line) of every entry of a mapping.

    An empty text has no entries. If the text is not a mapping, the result is None.

    Raises:
        NotYaml: as `loads`.
    """
    with _reading(text) as loader:
        node = loader.get_single_node()
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            return None
        return [
            (str(key.value), loader.construct_document(value), key.start_mark.line + 1)
            for key, value in node.value
        ]


def assignments(text: str | None) -> dict[str, Any]:
    """Return name -> value of a text such as `hidden_size=256, slstm_at=[1]`.

    Commas outside of brackets and quotes separate assignments, which keep their order. Values are
    YAML. The last of two equal names counts.

    Raises:
        ValueError: a part is not an assignment, or its value is not YAML.

    >>> assignments("hidden_size=256, slstm_at=[1, 5], bias=true")
    {'hidden_size': 256, 'slstm_at': [1, 5], 'bias': True}
    """
    values: dict[str, Any] = {}
    for part in filter(str.strip, _split(text or "")):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name and equals and value):
            raise ValueError(f"{shown(part.strip())} is not {ASSIGNMENT}")
        values.pop(name, None)
        try:
            values[name] = loads(value)
        except NotYaml as error:
            raise ValueError(f"the value of {shown(name)} is {shown(value)}: {error}") from error
    return values


def _split(text: str) -> Iterator[str]:
    """Yield the assignments of a text, as `assignments` separates them."""
    start = depth = 0
    for match in _SIGNS.finditer(text):
        sign = match[0]
        if sign == "," and not depth:
            yield text[start : match.start()]
            start = match.end()
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth = max(0, depth - 1)
    yield text[start:]


def as_assignments(value: object) -> str:
    """Return a text, a list of texts or a mapping as one text for `assignments`.

    Raises:
        ValueError: it has another type.

    >>> as_assignments({"hidden_size": 256, "slstm_at": [1, 5]})
    'hidden_size=256, slstm_at=[1, 5]'
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        texts = {name: json.dumps(one, default=_for_json) for name, one in value.items()}
        return ", ".join(f"{name}={text}" for name, text in texts.items())
    if isinstance(value, Sequence) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    raise ValueError(f"wanted {ASSIGNMENT}")


def _for_json(value: object) -> object:
    if (number := python_number(value)) is value:
        raise ValueError(f"wanted {ASSIGNMENT}")
    return number


@contextmanager
def _reading(text: str) -> "Iterator[_Loader]":
    if len(text) > MAX_YAML_BYTES:
        raise NotYaml(f"more than {MAX_YAML_BYTES:,} bytes")
    try:
        yield _Loader(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise NotYaml(str(error.problem or error.context), line) from error
    # A character or an escape beyond Unicode, or a %YAML directive of a thousand digits.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise NotYaml(message_of(error)) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with fewer types and more refusals."""

    yaml_implicit_resolvers = {
        None: [
            (f"tag:yaml.org,2002:{name}", re.compile(rf"({form})\Z"))
            for name, form in _FORMS.items()
        ]
    }
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node without tag, anchor or alias, and not too deep."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if event.anchor is not None or getattr(event, "tag", None) is not None:
            problem = "a tag, anchor or alias (!, & or *) is not supported; write the value itself"
            raise _problem(problem, event)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _problem(f"lists or mappings are nested more than {MAX_DEPTH} deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Compose a mapping whose keys are scalars that occur once."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a list or mapping is not a name", key)
            if key.value in lines:
                raise _problem(f"{shown(key.value)} is already in line {lines[key.value]}", key)
            lines[key.value] = key.start_mark.line + 1
        return node


def _problem(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)
