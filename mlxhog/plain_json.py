"""JSON of values that hold NumPy scalars, paths and numbers that are not finite."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def dumps(value: object, *, indent: int | None = None) -> bytes:
    """Return strict JSON in UTF-8: NaN and infinities become null, NumPy values plain ones.

    Raises:
        TypeError: the value holds something that JSON has no form for.
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False).encode()


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
