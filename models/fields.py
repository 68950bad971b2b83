"""Read the typed fields of a configuration from a mapping; for a typo the error suggests a name."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from types import MappingProxyType
from typing import Any, ClassVar, get_args, get_type_hints

from mlxhog.errors import ConfigError, nearest, shown

MOST = 2**31 - 1
"""Largest whole number of a field."""
MOST_WIDTH = 2**20
"""Largest width of a layer, and most heads: fifty times the widest known model."""
MOST_LAYERS = 4096
"""Most layers or blocks; a config lists each of them."""
MOST_FLOAT = 1e30
"""Largest number of a field; times a width it is still finite in float32."""

DOC, CHECK, READ = "mlxhog.doc", "mlxhog.check", "mlxhog.read"

Check = Callable[[str, Any], None]
"""Refuses a value of the named field."""


def setting(
    text: str,
    default: object = MISSING,
    *,
    most: int = MOST,
    check: Check | None = None,
    read: Callable[[Any], object] | None = None,
) -> Any:
    """Return a dataclass field that people may set.

    Args:
        text: a short description.
        default: its value where it is absent or null; a class makes one.
        most: largest value of a number.
        check: refuses values, in place of the rule that numbers are above 0, and at most `most`.
        read: makes the value from that of a file, in place of its type.
    """

    def positive(name: str, value: object) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} is {value}; set it to a finite number above 0")
            check_most(name, value, most)

    metadata = {DOC: text, CHECK: positive if check is None else check, READ: read}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_most(name: str, value: float, most: int = MOST_WIDTH) -> None:
    """Refuse a size that no model has, before anything of this size is computed.

    Raises:
        ConfigError: it is above `most`.
    """
    if value > most:
        raise ConfigError(f"{name} is {value}; set it to {most} at most")


def check_rate(name: str, rate: float) -> None:
    """Refuse a rate that is no probability, or that would drop everything."""
    if not 0.0 <= rate < 1.0:
        raise ConfigError(f"{name} is {rate}; set it to 0 for none, or to a number below 1")


def one_of(*choices: str) -> Check:
    """Return the check of a field with a fixed set of values."""

    def check(name: str, value: object) -> None:
        if value not in choices:
            raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(sorted(choices))}")

    return check


def anything(name: str, value: object) -> None:
    """Check nothing."""


def check_fields(config: Any, where: str = "") -> None:
    """Refuse a configuration with a field out of range; the message names it and its range.

    Raises:
        ConfigError: a field is, here or in a nested configuration.
    """
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        if dataclasses.is_dataclass(value):
            check_fields(value, f"{where}{one.name}.")
        elif CHECK in one.metadata:
            one.metadata[CHECK](where + one.name, value)


def check_names(where: str, data: Mapping[Any, Any]) -> None:
    """Refuse a mapping with a key that is not text, as YAML reads `1: 2` or `yes: 2`."""
    for key in data:
        if not isinstance(key, str):
            raise ConfigError(
                f"{where} has the field {shown(key)}, which is not a name; put it in quotes"
            )


def convert(name: str, value: object, kind: object) -> object:
    """Convert one value to the annotated type of its field: bool, str, int or float, or int | None.

    Numbers may be text, since PyYAML reads `1e-6` as a string.

    Raises:
        ConfigError: the value is of another type.
    """
    if kind == int | None:
        if value is None:
            return None
        kind = int
    if kind in (bool, str) and type(value) is kind:
        return value
    if kind in (int, float) and isinstance(value, int | float | str):
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (ValueError, OverflowError):
            number = math.nan
        most = MOST if kind is int else MOST_FLOAT
        if math.isfinite(number) and abs(number) > most:
            raise ConfigError(f"{name} is {shown(value)}; set it to {most:,} at most")
        if math.isfinite(number) and (kind is float or number.is_integer()):
            return number if kind is float else int(number)
    raise ConfigError(
        f"{name} is {shown(value)} of type {type(value).__name__}; give it as "
        f"{getattr(kind, '__name__', kind)}"
    )


class Fields:
    """Base of a configuration that is read from a file: a dataclass with fields of `setting`.

    Attributes:
        spellings: other names of fields.
        no_effect: names that a YAML file may have, too, and that are not read.
        only: names with the one supported value.
        private: the beginning of names that are left out.
    """

    spellings: ClassVar[Mapping[str, str]] = MappingProxyType({})
    no_effect: ClassVar[frozenset[str]] = frozenset()
    only: ClassVar[Mapping[str, object]] = MappingProxyType({})
    private: ClassVar[str] = "\n"


def read(
    kind: type[Any], data: object, *, strict: bool, where: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the fields of a configuration from a mapping; null is the default of a field.

    A field whose type is such a configuration is read in the same way, under its own names.

    Args:
        kind: the configuration, of `Fields`, or a layer.
        data: field -> value; numbers may be text, since PyYAML reads `1e-6` as a string.
        strict: refuse unknown fields (a YAML written by hand) instead of keeping them.
        where: prefix of the fields' names in messages, such as "mlstm_block.mlstm.".

    Returns:
        The values by field, and the fields that are not read.

    Raises:
        ConfigError: a field is unknown, missing, of the wrong type or given twice differently.
    """
    rules: type[Fields] = kind if issubclass(kind, Fields) else Fields
    every = dataclasses.fields(kind)
    own = {one.name: one for one in every if DOC in one.metadata or rules is not kind}
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{where[:-1]} is {data!r}; give it fields such as {next(iter(own))}, or {{}} for the "
            "defaults"
        )
    check_names(where.removesuffix(".") or "the architecture", data)
    types, values, extra = get_type_hints(kind), dict[str, Any](), dict[str, Any]()
    for key, value in data.items():
        name = rules.spellings.get(key, key)
        if name not in own:
            if name in rules.only:
                if value != (one := rules.only[name]):
                    raise ConfigError(
                        f"{where}{key} is {value!r}, and only {one!r} is supported; remove it"
                    )
            elif not key.startswith(rules.private):
                if strict and name not in rules.no_effect:
                    known = sorted(where + n for n in (*own, *rules.spellings, *rules.no_effect))
                    near = nearest(where + key, known)
                    hint = f"did you mean {near!r}?" if near else f"known are {', '.join(known)}"
                    raise ConfigError(f"unknown architecture field {shown(where + key)}; {hint}")
                extra[key] = value
            continue
        inner, reader = _nested(types[name]), own[name].metadata.get(READ)
        if value is None:
            if not (inner and type(None) in get_args(types[name])):
                continue
        elif inner:
            parts, unread = read(inner, value, strict=strict, where=f"{where}{name}.")
            value, extra = inner(**parts), extra | ({name: unread} if unread else {})
        else:
            value = reader(value) if reader else convert(where + key, value, types[name])
        if values.setdefault(name, value) != value:
            raise ConfigError(
                f"{where}{name} is {values[name]} and, as {key}, {value}; keep the one that the "
                "tensors fit"
            )
    required = [one.name for one in own.values() if one.default is one.default_factory is MISSING]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"the architecture lacks {', '.join(missing)}; add it")
    return values, extra


def _nested(kind: object) -> type[Any] | None:
    """The dataclass that a field of this type has, or may have; None for another type."""
    return next((one for one in (kind, *get_args(kind)) if dataclasses.is_dataclass(one)), None)  # type: ignore[return-value]
