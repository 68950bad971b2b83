"""Read the typed fields of a config from a mapping; for a typo the error suggests a name."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from mlxhog.errors import MOST_SHOWN, ConfigError, shown

MOST = 2**31 - 1
"""Largest whole number of a field."""
MOST_WIDTH = 2**20
"""Largest width of a layer, and most heads: fifty times the widest known model."""
MOST_LAYERS = 4096
"""Most layers or blocks; a config lists each of them."""
MOST_FLOAT = 1e30
"""Largest number of a field; times a width it is still finite in float32."""

DOC = "mlxhog.doc"


def doc(text: str) -> dict[str, str]:
    """Return the metadata of a dataclass field that people may set, with a short description."""
    return {DOC: text}


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


def check_most(name: str, value: float, most: int = MOST_WIDTH) -> None:
    """Refuse a size that no model has, before anything of this size is computed.

    Raises:
        ConfigError: it is above `most`.
    """
    if value > most:
        raise ConfigError(f"{name} is {value}; set it to {most} at most")


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
    near = difflib.get_close_matches(name[:MOST_SHOWN], list(fields), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(fields))}"
    return f"unknown architecture field {shown(name)}; {hint}"
