"""Read the typed fields of a config from a mapping; for a typo the error suggests a name."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING
from types import MappingProxyType
from typing import Any, get_type_hints

from mlxhog.errors import ConfigError, nearest, shown

MOST = 2**31 - 1
"""Largest whole number of a field."""
MOST_WIDTH = 2**20
"""Largest width of a layer, and most heads: fifty times the widest known model."""
MOST_LAYERS = 4096
"""Most layers or blocks; a config lists each of them."""
MOST_FLOAT = 1e30
"""Largest number of a field; times a width it is still finite in float32."""

DOC, CHECK = "mlxhog.doc", "mlxhog.check"


def check_positive(name: str, value: float) -> None:
    """Refuse a size or factor that is not a finite number above 0."""
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name} is {value}; set it to a finite number above 0")


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


def one_of(*choices: str) -> Callable[[str, Any], None]:
    """Return the check of a field with a fixed set of values."""

    def check(name: str, value: object) -> None:
        if value not in choices:
            raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(sorted(choices))}")

    return check


def doc(
    text: str, *, most: int = MOST, check: Callable[[str, Any], None] | None = None
) -> dict[str, Any]:
    """Return the metadata of a dataclass field that people may set.

    Args:
        text: a short description.
        most: largest value of a number.
        check: refuses values, in place of the rule that numbers are above 0, and at most `most`.
    """

    def positive(name: str, value: object) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool):
            check_positive(name, value)
            check_most(name, value, most)

    return {DOC: text, CHECK: positive if check is None else check}


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
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
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
        f"{name} is {shown(value)} of type {type(value).__name__}; give it as {kind.__name__}"
        if isinstance(kind, type)
        else f"{name} is {shown(value)}; its type is unknown"
    )


def check_reset(resets: bool, bos_token_id: int | None, vocab_size: int) -> None:
    """Check the token at which a memory is reset.

    Raises:
        ConfigError: `resets`, and the token is not set or outside the vocabulary.
    """
    if resets and (bos_token_id is None or not 0 <= bos_token_id < vocab_size):
        token = "not set" if bos_token_id is None else f"{bos_token_id} of {vocab_size} ids"
        raise ConfigError(
            f"reset_at_document_boundaries is true and bos_token_id is {token}; "
            "set bos_token_id to the token that begins every document"
        )


def unknown(name: str, fields: Iterable[str]) -> str:
    """Return the message for a field outside `fields`, with the nearest of them."""
    near = nearest(name, fields := list(fields))
    hint = f"did you mean {near!r}?" if near else f"known are {', '.join(sorted(fields))}"
    return f"unknown architecture field {shown(name)}; {hint}"


Reader = Callable[[Any], object]


def read(
    kind: type[Any],
    data: Mapping[str, Any],
    *,
    strict: bool,
    where: str = "",
    spellings: Mapping[str, str] = MappingProxyType({}),
    readers: Mapping[str, Reader] = MappingProxyType({}),
    no_effect: Iterable[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the fields of a configuration from a mapping; null is the default of a field.

    Args:
        kind: the dataclass; its fields with a `doc` are read, by their types.
        data: field -> value; numbers may be text, since PyYAML reads `1e-6` as a string.
        strict: refuse unknown fields (a YAML written by hand) instead of keeping them.
        where: prefix of the fields' names in messages, such as "mlstm_block.mlstm.".
        spellings: other names of fields.
        readers: field -> what reads its value, in place of its type.
        no_effect: names of fields that may be there and are not read.

    Returns:
        The values by field, and the fields that are not read.

    Raises:
        ConfigError: a field is unknown, missing, of the wrong type or given twice differently.
    """
    own = [one for one in dataclasses.fields(kind) if DOC in one.metadata]
    types, keys = get_type_hints(kind), dict[str, str]()
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    check_names(where.removesuffix(".") or "the architecture", data)
    names = [one.name for one in own]
    for key, given in data.items():
        name = spellings.get(key, key)
        if name not in names:
            if strict and name not in no_effect:
                known = [*names, *spellings, *no_effect]
                raise ConfigError(unknown(where + key, [where + one for one in known]))
            extra[key] = given
        elif given is not None:
            reader = readers.get(name)
            value = reader(given) if reader else convert(where + key, given, types[name])
            if values.setdefault(name, value) != value:
                raise ConfigError(
                    f"{keys[name]} is {values[name]} and its other spelling {key} is {value}; "
                    "keep the one that the tensors fit"
                )
            keys.setdefault(name, key)
    required = [one.name for one in own if one.default is one.default_factory is MISSING]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"the architecture lacks {', '.join(missing)}; add it")
    return values, extra
