"""Write JSON of NumPy values, paths and non-finite numbers; read JSON within limits.

Reading any file ends soon, with a value or a ValueError; `mlxhog.base.reading` has the limits.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlxhog.base import reading
from mlxhog.errors import shown


def dumps(value: object, *, indent: int | None = None) -> bytes:
    """Return strict JSON in UTF-8, with null for NaN and infinities, and plain NumPy values.

    Raises:
        TypeError: a part of the value has no form in JSON.
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False).encode()


def loads(text: str | bytes, *, strict: bool = True) -> Any:
    """Return the value of a JSON text.

    `strict` refuses NaN and infinities, duplicate keys, numbers of hundreds of digits, deep nesting
    and lone surrogates. Otherwise, for large files of other programs, it is Python's `json.loads`.

    Raises:
        ValueError: the text is not such JSON, or is strict and longer than
            `reading.MAX_JSON_BYTES`.
    """
    if strict and len(text) > reading.MAX_JSON_BYTES:
        raise ValueError(f"more than {reading.MAX_JSON_BYTES:,} bytes")
    try:
        if not strict:
            return json.loads(text)
        value = json.loads(
            text, parse_int=_int, parse_constant=_constant, object_pairs_hook=_object
        )
        # What cannot be written again would fail later: 1e999, half a character, deep nesting.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("a text has half a character (a lone surrogate)") from None
    return value


def read(path: Path, *, strict: bool = True, most: int = reading.MAX_JSON_BYTES) -> Any:
    """Return the value of a file as `loads`; ValueError also above `most` bytes."""
    return loads(reading.read_bytes(path, most), strict=strict)


def objects(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines, without an unfinished last line.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not an object, or has more than `reading.MAX_LINE_BYTES`.
    """
    with reading.open_regular(path) as file:
        while (line := file.readline(reading.MAX_LINE_BYTES + 1)).endswith(b"\n"):
            entry = loads(line)
            if not isinstance(entry, dict):
                raise ValueError("it is not a JSON object")
            yield entry
    if len(line) > reading.MAX_LINE_BYTES:
        raise ValueError(f"a line has more than {reading.MAX_LINE_BYTES:,} bytes")


def _int(digits: str) -> int:
    if len(digits) > reading.MAX_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(name)} occurs twice")
    return fields


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
