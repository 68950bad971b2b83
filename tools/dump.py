"""Writes each Metal kernel as a file that `xcrun metal` can compile on its own.

    python -m tools.dump FOLDER     every text: MLX's of each kernel and instance, with its own
                                    prelude, and PyTorch's

MLX itself says what it would compile; that works on machines without Metal, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from mlxhog.errors import EnvironmentLacks
from mlxhog.metal.kernel import whole_text
from tools import mlx_text

_MLX_HEADERS = "include"
_PRELUDE = "mlx/backend/metal/kernels/utils.h"
"""In the folder of MLX's headers: what it puts before the text of every custom kernel."""
_INCLUDE = re.compile(r'^#include (<[\w./]+>|"([\w./]+)")\n?', re.MULTILINE)
_MACRO = re.compile(r"^#define (\w+)", re.MULTILINE)
_CONDITION = re.compile(r"^#if\b.*?^#endif\b", re.MULTILINE | re.DOTALL)


def mlx_texts() -> dict[str, str]:
    """Return what MLX would compile, without its own header, by the name of the whole kernel.

    Raises:
        EnvironmentLacks: MLX is not installed.
        MetalError: MLX refuses a kernel.
    """
    if importlib.util.find_spec("mlx") is None:
        raise EnvironmentLacks(
            "MLX is not installed, and only MLX says what it would compile; "
            "python -m pip install mlx, on Linux mlx[cpu]"
        )
    names = list(mlx_text.entries())
    return dict(zip(names, mlx_text.texts(names), strict=True))


def own_texts() -> dict[str, str]:
    """Return what PyTorch would compile, by the name of the whole kernel."""
    return {name: whole_text(*each) for name, each in mlx_text.entries().items()}


def mlx_prelude() -> str:
    """Return what MLX puts before the text of every custom kernel, from the headers of its wheel.

    As the build of MLX makes it (`make_compiled_preamble.sh`): the headers are preprocessed with
    MLX_METAL_JIT and without Metal's version, so their conditions are decided and their macros gone
    before Metal's compiler reads them; Metal's own headers come first. Warnings in it are MLX's.

    Raises:
        EnvironmentLacks: MLX or its headers are not installed.
    """
    spec = importlib.util.find_spec("mlx.core") if importlib.util.find_spec("mlx") else None
    folder = Path(spec.origin).parent / _MLX_HEADERS if spec and spec.origin else None
    if folder is None or not (folder / _PRELUDE).is_file():
        raise EnvironmentLacks(
            f"MLX's header {_PRELUDE} is not installed, and it is the beginning of what MLX "
            "compiles; python -m pip install mlx, on Linux mlx[cpu]"
        )
    metal: list[str] = []
    text = _header(folder, _PRELUDE, set(), metal)
    macros = dict.fromkeys(_MACRO.findall(text))
    return "\n".join(
        [
            *(f"#include {name}" for name in dict.fromkeys(metal)),
            "#pragma clang diagnostic push",
            '#pragma clang diagnostic ignored "-Weverything"',
            '#pragma push_macro("__METAL_VERSION__")',
            "#undef __METAL_VERSION__",
            "#define MLX_METAL_JIT",
            text,
            *(f"#undef {name}" for name in ("MLX_METAL_JIT", *macros)),
            '#pragma pop_macro("__METAL_VERSION__")',
            "#pragma clang diagnostic pop",
            "",
        ]
    )


def _header(folder: Path, name: str, seen: set[str], metal: list[str]) -> str:
    """One of MLX's headers with those that it includes; Metal's go to `metal`."""
    if name in seen:
        return ""
    seen.add(name)
    text = (folder / name).read_text(encoding="utf-8").replace("#pragma once\n", "")
    conditions = [range(*match.span()) for match in _CONDITION.finditer(text)]

    def inner(match: re.Match[str]) -> str:
        if match[2]:
            return _header(folder, match[2], seen, metal) + "\n"
        if any(match.start() in condition for condition in conditions):
            return match[0]
        metal.append(match[1])
        return ""

    return _INCLUDE.sub(inner, text)


def texts(prelude: str | None = None) -> dict[str, str]:
    """Return every text, whole as it is compiled, by file name: `mlx-...` and `mps-...`.

    Args:
        prelude: what to begin MLX's texts with; default is `mlx_prelude`.
    """
    prelude = mlx_prelude() if prelude is None else prelude
    return {
        **{f"mlx-{name}.metal": prelude + text for name, text in mlx_texts().items()},
        **{f"mps-{name}.metal": text for name, text in own_texts().items()},
    }


def write(folder: Path, named: Mapping[str, str]) -> None:
    """Make `folder` hold these texts and no other .metal file."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.metal"):
        if old.name not in named:
            old.unlink()
    for name, text in named.items():
        (folder / name).write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Write the texts to the folder that the command names."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.dump",
        description="Write each Metal kernel as a file that xcrun metal can compile on its own.",
    )
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    named = texts()
    try:
        write(options.folder, named)
    except OSError as error:
        parser.error(f"cannot write to {options.folder}: {error.strerror}; name another folder")
    print(f"{len(named)} files in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
