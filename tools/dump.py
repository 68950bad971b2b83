"""Writes each Metal kernel as a file that `xcrun metal` can compile on its own.

    python -m tools.dump FOLDER     every text: MLX's of each kernel and instance, with its own
                                    prelude, and PyTorch's

MLX itself says what it would compile, on machines without Metal, too: it shows a kernel's whole
text (`verbose`) while a graph is only exported.
"""

import argparse
import ctypes
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlxhog.errors import EnvironmentLacks
from mlxhog.metal.kernel import Kernel, read_source, whole_text
from mlxhog.metal.registry import instances

_PRELUDE = "mlx/backend/metal/kernels/utils.h"
"""In the folder of MLX's headers: what it puts before the text of every custom kernel."""
_INCLUDE = re.compile(r'^#include (<[\w./]+>|"([\w./]+)")\n?', re.MULTILINE)
_MACRO = re.compile(r"^#define (\w+)", re.MULTILINE)
_CONDITION = re.compile(r"^#if\b.*?^#endif\b", re.MULTILINE | re.DOTALL)


def mlx_text(kernel: Kernel, instance: str) -> str:
    """Return what MLX would compile, without its own header."""
    import mlx.core as mx

    function = mx.fast.metal_kernel(
        name=kernel.entry(instance),
        input_names=[one.name for one in kernel.inputs],
        output_names=[one.name for one in kernel.outputs],
        source=kernel.body(instance),
        header=read_source(kernel.header),
    )

    def launch(*inputs: mx.array) -> Any:
        return function(  # type: ignore[operator]
            inputs=list(inputs),
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[(1,) for _ in kernel.outputs],
            output_dtypes=[getattr(mx, one.dtype) for one in kernel.outputs],
            verbose=True,
        )

    arrays = [mx.zeros(() if one.scalar else (8,), getattr(mx, one.dtype)) for one in kernel.inputs]
    with tempfile.TemporaryDirectory() as folder:
        printed = _printed(lambda: mx.export_function(f"{folder}/kernel.mlxfn", launch, *arrays))
    return printed.split("```\n", 1)[1].rsplit("```", 1)[0]


def _printed(action: Callable[[], object]) -> str:
    """The text that an action writes to the C library's standard output."""
    libc = ctypes.CDLL(None)
    libc.fflush(None)
    saved = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            action()
            libc.fflush(None)
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        file.seek(0)
        return file.read().decode()


def mlx_prelude() -> str:
    """Return what MLX puts before the text of every custom kernel, from the headers of its wheel.

    As the build of MLX makes it (`make_compiled_preamble.sh`): the headers are preprocessed with
    MLX_METAL_JIT and without Metal's version, so their conditions are decided and their macros gone
    before Metal's compiler reads them; Metal's own headers come first. Warnings in it are MLX's.

    Raises:
        EnvironmentLacks: MLX or its headers are not installed.
    """
    spec = importlib.util.find_spec("mlx.core") if importlib.util.find_spec("mlx") else None
    folder = Path(spec.origin).parent / "include" if spec and spec.origin else None
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

    MLX's begin with `prelude`, by default its own.
    """
    prelude, named = mlx_prelude() if prelude is None else prelude, dict[str, str]()
    for kernel, instance in instances():
        name = kernel.entry(instance)
        named[f"mlx-{name}.metal"] = prelude + mlx_text(kernel, instance)
        named[f"mps-{name}.metal"] = whole_text(kernel, instance)
    return named


def main(arguments: list[str]) -> int:
    """Write the texts to the folder that the command names."""
    parser = argparse.ArgumentParser(prog="python -m tools.dump", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder, named = parser.parse_args(arguments).folder, texts()
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in named.items():
        (folder / name).write_text(text, encoding="utf-8")
    print(f"{len(named)} files in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
