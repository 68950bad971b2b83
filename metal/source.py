"""The text of Metal sources, with project includes put in place.

PyTorch resolves includes of its own headers only, and MLX none, so texts are joined here.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from pathlib import Path

KERNELS = Path(str(files("mlxhog.metal"))) / "kernels"
_OWN = re.compile(r'^#include "([\w./]+)"\n', re.MULTILINE)


@cache
def read(name: str, *, lines: bool = False) -> str:
    """Return `metal/kernels/<name>`, each of our own headers included once.

    Args:
        name: a file of that folder, or an absolute path.
        lines: say where every line came from (`#line`), for a compiler's messages.
    """
    return _inlined(KERNELS / name, set(), lines)


def _inlined(path: Path, seen: set[Path], lines: bool) -> str:
    if path in seen:
        return ""
    seen.add(path)
    text = path.read_text(encoding="utf-8").replace("#pragma once\n", "\n" if lines else "")

    def inner(match: re.Match[str]) -> str:
        own = _inlined(path.parent / match[1], seen, lines)
        return own + _line(text[: match.end()].count("\n") + 1, path) if lines else own

    return (_line(1, path) if lines else "") + _OWN.sub(inner, text)


def _line(number: int, path: Path) -> str:
    return f'#line {number} "{path}"\n'
