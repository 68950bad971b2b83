"""The typed fields of a configuration, read from a mapping; for a typo the error suggests a name.

A field is an `option`, as those of a run are: it has a type, limits, and a line for people. A field
of `custom` is itself such a configuration, or has a reader of its own.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from types import MappingProxyType
from typing import Any, ClassVar, get_args, get_type_hints

from mlxhog.config.options import convert_fields, option, options
from mlxhog.errors import ConfigError, nearest, shown

MOST = 2**31 - 1
"""Largest number of a field, unless it says another one."""
MAX_WIDTH = 2**20
"""Largest width of a layer, and most heads: fifty times the widest known model."""
MAX_LAYERS = 4096
"""Most layers or blocks; a config lists each of them."""

_HELP, _READ = "mlxhog.help", "mlxhog.read"


def positive(help: str, default: object = MISSING, *, high: float = MOST) -> Any:
    """Return a field for a number above 0."""
    return option(default, help, above=0, high=high)


def custom(help: str, default: object, read: Callable[[Any], object] | None = None) -> Any:
    """Return a field that `read` makes of a file's value; a configuration without it.

    The default may be a class, which makes one.
    """
    how: dict[str, Any] = {"metadata": {_HELP: help, _READ: read}}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, **how)
    return dataclasses.field(default=default, **how)


def described(kind: type[Any]) -> dict[str, str]:
    """Return the fields that people may set, with their descriptions, in their order."""
    specs = options(kind)
    return {
        one.name: specs[one.name].help if one.name in specs else one.metadata[_HELP]
        for one in dataclasses.fields(kind)
        if one.name in specs or _HELP in one.metadata
    }


def check_most(name: str, value: float, most: int = MAX_WIDTH) -> None:
    """Refuse a size that no model has, before anything of this size is computed.

    Raises:
        ConfigError: it is above `most`.
    """
    if value > most:
        raise ConfigError(f"{name} is {shown(value)}; set it to {most} at most")


def check_names(where: str, data: Mapping[Any, Any]) -> None:
    """Refuse a mapping with a key that is not text, as YAML reads `1: 2` or `yes: 2`."""
    for key in data:
        if not isinstance(key, str):
            raise ConfigError(
                f"{where} has the field {shown(key)}, which is not a name; put it in quotes"
            )


class Fields:
    """Base of a configuration that is read from a file: a frozen dataclass with such fields."""

    spellings: ClassVar[Mapping[str, str]] = MappingProxyType({})  # aliases of fields
    no_effect: ClassVar[frozenset[str]] = frozenset()  # accepted keys that are not used
    only: ClassVar[Mapping[str, object]] = MappingProxyType({})  # keys with one allowed value
    private: ClassVar[str] = "\n"  # prefix of names that are left out

    def __post_init__(self) -> None:
        """Convert every field, and refuse one out of range."""
        if problems := convert_fields(self):
            raise ConfigError("\n".join(problems))


def read(
    kind: type[Any], data: object, *, strict: bool, where: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the fields of a configuration, of `Fields`, or of a layer from a mapping.

    Null is the default of a field, and numbers may be text, since PyYAML reads `1e-6` as a string.
    A field whose type is such a configuration is read in the same way, under its own names. Unknown
    fields are refused if `strict` (a YAML written by hand), else kept. `where` is the prefix of
    names in messages, such as "mlstm_block.mlstm.".

    Returns:
        The values by field, and the fields that are not read.

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
        name = rules.spellings.get(key, key)
        if name in rules.only:
            if value != (one := rules.only[name]):
                raise ConfigError(
                    f"{where}{key} is {shown(value)}, and only {one!r} is supported; remove it"
                )
        elif name not in own:
            if key.startswith(rules.private):
                continue
            if strict and name not in rules.no_effect:
                names = sorted(where + n for n in (*own, *rules.spellings, *rules.no_effect))
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
