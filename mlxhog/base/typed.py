"""Read dataclasses from JSON by the types of their fields.

    read(cls, record)   strict: a wrong or missing field is an error that names it
    fill(cls, record)   lenient, for files that may be damaged: such a field gets its default

A tuple is a list, of a fixed length unless its type ends with `...`; a mapping is an object whose
keys are converted, a dataclass an object. Numbers are finite; integers have 64 bits, and may be
floats.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import cache
from typing import Any, TypeVar

from mlxhog.errors import shown

T = TypeVar("T")
_MISSING = object()
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def read(cls: type[T], record: Mapping[str, Any]) -> T:
    """Return the dataclass of a record; unknown fields are ignored.

    Raises:
        ValueError: a field is missing or has another type; the message begins with its name.
    """
    return _dataclass(cls, record, lenient=False)


def fill(cls: type[T], record: Mapping[str, Any]) -> T:
    """Return the dataclass of a record; a missing or wrong field gets its default.

    An entry of a list or mapping that cannot be read is left out.

    Raises:
        ValueError: such a field has no default.
    """
    return _dataclass(cls, record, lenient=True)


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return typing.get_origin(hint), typing.get_args(hint)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _dataclass(cls: type[T], record: Mapping[str, Any], *, lenient: bool) -> T:
    values = {}
    for name, hint in _hints(cls).items():  # type: ignore[arg-type]
        value = record.get(name, _MISSING)
        if value is not _MISSING:
            try:
                values[name] = _value(hint, value, lenient)
            except ValueError as error:
                if not lenient:
                    raise ValueError(f"{name} {error}") from None
    try:
        return cls(**values)
    except TypeError as error:  # a field without a default
        raise ValueError(str(error).rpartition(": ")[2] + " is missing") from None


def _value(hint: Any, value: Any, lenient: bool) -> Any:  # known at run time only
    if type(value) is hint and hint in _NAMES and _is_usual(value):
        return value
    origin, arguments = _parts(hint)
    forgiving = suppress(ValueError) if lenient else nullcontext()
    if origin in (types.UnionType, typing.Union):
        for each in arguments:
            with suppress(ValueError):
                return _value(each, value, lenient)
    elif hint is types.NoneType:
        if value is None:
            return None
    elif hint is Any:
        return value
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = arguments if Ellipsis not in arguments else arguments[:1] * len(value)
        if len(kinds) == len(value):
            entries = []
            for kind, one in zip(kinds, value, strict=True):
                with forgiving:
                    entries.append(_value(kind, one, lenient))
            return tuple(entries)
    elif origin is Mapping and isinstance(value, Mapping):
        filled = {}
        for key, one in value.items():
            with forgiving:
                key = _value(arguments[0], arguments[0](key), lenient)
                filled[key] = _value(arguments[1], one, lenient)
        return filled
    elif dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _dataclass(hint, value, lenient=lenient)  # type: ignore[arg-type]
    elif hint is float and type(value) in (int, float):
        with suppress(OverflowError):
            if math.isfinite(number := float(value)):
                return number
    raise ValueError(f"is {shown(value)}; wanted {_name_of(hint)}")


def _is_usual(value: bool | int | float | str) -> bool:
    """Whether a value is not a number, or finite and of 64 bits."""
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return type(value) is not float or math.isfinite(value)


def _name_of(hint: Any) -> str:
    """Return the name of a type for messages.

    >>> _name_of(tuple[int | None, ...])
    'a list of a whole number or null'
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_name_of, arguments))
    if origin is tuple:
        return f"a list of {_name_of(arguments[0])}"
    return "null" if hint is types.NoneType else _NAMES.get(hint, "an object")
