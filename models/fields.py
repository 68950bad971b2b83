"""The typed fields of a model's configuration, read from a mapping.

A field is an `option`, with a type, limits and a help. A `custom` field is a nested configuration,
or has a reader of its own.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from types import MappingProxyType
from typing import Any, ClassVar, get_args, get_type_hints

from mlxhog.config.options import convert_fields, option, options
from mlxhog.errors import ConfigError, nearest, shown

MAX_NUMBER = 2**31 - 1
"""Default upper limit of a field."""
MAX_WIDTH = 2**20
"""Largest width of a layer, and number of heads: fifty times the widest known model."""
MAX_LAYERS = 4096
"""Largest number of layers or blocks; a config lists each of them."""

_HELP, _READ = "mlxhog.help", "mlxhog.read"


def positive(help: str, default: object = MISSING, *, high: float = MAX_NUMBER) -> Any:
    """Declare a field for a number above 0."""
    return option(default, help, above=0, high=high)


def custom(help: str, default: object, read: Callable[[Any], object] | None = None) -> Any:
    """Declare a field that `read` parses; without it, a nested configuration.

    The default may be a class, which is called.
    """
    how: dict[str, Any] = {"metadata": {_HELP: help, _READ: read}}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, **how)
    return dataclasses.field(default=default, **how)


def described(kind: type[Any]) -> dict[str, str]:
    """Return the fields that users may set, with their helps, in order."""
    specs = options(kind)
    return {
        one.name: specs[one.name].help if one.name in specs else one.metadata[_HELP]
        for one in dataclasses.fields(kind)
        if one.name in specs or _HELP in one.metadata
    }


def check_max(name: str, value: float, limit: int = MAX_WIDTH) -> None:
    """Refuse a size above a limit, before anything of this size is computed, by a ConfigError."""
    if value > limit:
        raise ConfigError(f"{name} is {shown(value)}; set it to {limit} at most")


def check_names(where: str, data: Mapping[Any, Any]) -> None:
    """Refuse a mapping with a key that is not text, as YAML reads `1: 2` or `yes: 2`."""
    for key in data:
        if not isinstance(key, str):
            raise ConfigError(
                f"{where} has the field {shown(key)}, which is not a name; put it in quotes"
            )


class Fields:
    """Base of a configuration that is read from a file: a frozen dataclass with such fields."""

    aliases: ClassVar[Mapping[str, str]] = MappingProxyType({})  # alias -> field
    ignored: ClassVar[frozenset[str]] = frozenset()  # accepted but unused keys
    fixed: ClassVar[Mapping[str, object]] = MappingProxyType({})  # keys with one allowed value
    private_prefix: ClassVar[str] = "\n"  # prefix of keys that are dropped

    def __post_init__(self) -> None:
        """Convert every field; refuse one out of range."""
        if problems := convert_fields(self):
            raise ConfigError("\n".join(problems))


def read(
    kind: type[Any], data: object, *, strict: bool, where: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the fields of a `Fields` class or of a layer from a mapping, nested ones likewise.

    Null is the default of a field, and numbers may be text, since PyYAML reads `1e-6` as a string.
    Unknown fields are refused if `strict` (a YAML written by hand), else returned. `where` is the
    prefix of names in messages, such as "mlstm_block.mlstm.".

    Returns:
        The values by field, and the unknown fields.

    Raises:
        ConfigError: a field is unknown, missing, of the wrong type or given twice differently.
    """
    rules: type[Fields] = kind if issubclass(kind, Fields) else Fields
    known, specs = described(kind), options(kind)
    own = {one.name: one for one in dataclasses.fields(kind) if one.name in known}
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{where[:-1]} is {shown(data)}; give it fields such as {next(iter(own))}, or {{}} for "
            "the defaults"
        )
    check_names(where.removesuffix(".") or "the architecture", data)
    types, values, extra = get_type_hints(kind), dict[str, Any](), dict[str, Any]()
    for key, value in data.items():
        name = rules.aliases.get(key, key)
        if name in rules.fixed:
            if value != (one := rules.fixed[name]):
                raise ConfigError(
                    f"{where}{key} is {shown(value)}, and only {one!r} is supported; remove it"
                )
        elif name not in own:
            if key.startswith(rules.private_prefix):
                continue
            if strict and name not in rules.ignored:
                names = sorted(where + n for n in (*own, *rules.aliases, *rules.ignored))
                near = nearest(where + key, names)
                hint = f"did you mean {near!r}?" if near else f"known are {', '.join(names)}"
                raise ConfigError(f"unknown architecture field {shown(where + key)}; {hint}")
            extra[key] = value
        else:
            kinds = (types[name], *get_args(types[name]))
            inner: Any = next((one for one in kinds if dataclasses.is_dataclass(one)), None)
            if value is None and not (inner and type(None) in kinds):
                continue
            if inner and value is not None:
                parts, unread = read(inner, value, strict=strict, where=f"{where}{name}.")
                value, extra = inner(**parts), extra | ({name: unread} if unread else {})
            elif name in specs:
                try:
                    value = specs[name].convert(value)
                except ValueError as error:
                    raise ConfigError(f"{where}{key} {error}") from error
            elif value is not None:
                value = own[name].metadata[_READ](value)
            if values.setdefault(name, value) != value:
                raise ConfigError(
                    f"{where}{name} is {values[name]} and, as {key}, {value}; keep the one that "
                    "the tensors fit"
                )
    required = [one.name for one in own.values() if one.default is one.default_factory is MISSING]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"the architecture lacks {', '.join(missing)}; add it")
    return values, extra
