"""The text of Metal sources, with project includes put in place.

PyTorch resolves includes of its own headers only, and MLX none, so texts are joined here.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_OWN = re.compile(r'^#include "([\w.]+)"\n', re.MULTILINE)


@cache
def read(name: str) -> str:
    """Return `metal/kernels/<name>`, each of our own headers included once."""
    return _inlined(name, set())


def _inlined(name: str, seen: set[str]) -> str:
    if name in seen:
        return ""
    seen.add(name)
    text = files("mlxhog.metal").joinpath("kernels", name).read_text(encoding="utf-8")
    return _OWN.sub(lambda match: _inlined(match[1], seen), text.replace("#pragma once\n", ""))
