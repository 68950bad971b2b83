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
from mlxhog.metal.kernel import MetalKernel, amalgamated_source, read_source
from mlxhog.metal.registry import instances

_PRELUDE = "mlx/backend/metal/kernels/utils.h"
"""In the folder of MLX's headers: what it puts before the text of every custom kernel."""
_INCLUDE = re.compile(r'^#include "([\w./]+)"\n', re.MULTILINE)
_MACRO = re.compile(r"^#define (\w+)(?:[^\\\n]|\\\n)*", re.MULTILINE)
_QUIET = ("push", 'ignored "-Weverything"', "pop")


def mlx_text(kernel: MetalKernel, instance: str) -> str:
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

    As the build of MLX makes it (`make_compiled_preamble.sh`): the headers one after the other, in
    the order in which their inclusion ends, without their own includes. They are not preprocessed,
    so their macros and conditions are Metal's to expand, before our text and in it.

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
    year, rule = "\n// Copyright \N{COPYRIGHT SIGN} 2025 Apple Inc.\n\n", f"{'/' * 79}\n"
    parts = [f"{year}// Auto generated source for {_PRELUDE}\n\n"]
    for name, text in _headers(folder, _PRELUDE, {}).items():
        parts.append(f'{rule}// Contents from "{name}"\n{rule}\n#line 1 "{name}"\n{text}\n')
    return "".join([*parts, rule])


def _headers(folder: Path, name: str, texts: dict[str, str]) -> dict[str, str]:
    """Add one of MLX's headers, after those that it includes, to `texts`; return these."""
    text = (folder / name).read_text(encoding="utf-8").removesuffix("\n") + "\n"
    for inner in _INCLUDE.findall(text):
        if inner not in texts:
            _headers(folder, inner, texts)
    texts[name] = _INCLUDE.sub("", text).replace("#pragma once\n", "")
    return texts


def mlx_macros() -> dict[str, str]:
    """Return the macros of MLX's prelude, the first of each name: their whole directives."""
    macros = dict[str, str]()
    for directive in _MACRO.finditer(mlx_prelude()):
        macros.setdefault(directive[1], directive[0])
    return macros


def texts(prelude: str | None = None) -> dict[str, str]:
    """Return every text, whole as it is compiled, by file name: `mlx-...` and `mps-...`.

    MLX's begin with `prelude`, by default its own, of which no warning is ours.
    """
    if prelude is None:
        push, ignore, pop = (f"#pragma clang diagnostic {word}\n" for word in _QUIET)
        prelude = f"{push}{ignore}{mlx_prelude()}{pop}"
    named = dict[str, str]()
    for kernel, instance in instances():
        name = kernel.entry(instance)
        own = f'#line 1 "mlx-{name}.metal"\n{mlx_text(kernel, instance)}'
        named[f"mlx-{name}.metal"] = prelude + own
        named[f"mps-{name}.metal"] = amalgamated_source(kernel, instance)
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
