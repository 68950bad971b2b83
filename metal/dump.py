"""Writes each Metal kernel as a file that `xcrun metal` can compile on its own.

    python -m mlxhog.metal.dump FOLDER           every text: MLX's of each kernel and instance, and
                                                 PyTorch's whole .metal files
    python -m mlxhog.metal.dump --golden FOLDER  only what MLX writes around our headers; run it
                                                 after an upgrade of MLX, on tests/metal/golden

MLX itself says what it would compile; that works on machines without Metal, too.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from mlxhog.errors import EnvironmentLacks, MetalError
from mlxhog.metal import source
from mlxhog.metal.host import capture, request
from mlxhog.metal.kernel import Kernel
from mlxhog.metal.registry import KERNELS

PREFIX = """\
#include <metal_stdlib>
using namespace metal;
typedef half float16_t;
typedef bfloat bfloat16_t;
"""
"""Stands for the header that MLX puts before every kernel; ours use no more of it than this."""


def mlx_texts(kernels: Collection[Kernel] = KERNELS.values()) -> dict[str, str]:
    """Return what MLX would compile, without its own header, by file name.

    Raises:
        EnvironmentLacks: MLX is not installed.
        MetalError: MLX refuses a kernel.
    """
    if not capture.mlx_version():
        raise EnvironmentLacks(
            "MLX is not installed, and only MLX says what it would compile; "
            "python -m pip install mlx, on Linux mlx[cpu]"
        )
    wanted = {
        f"{kernel.name}-{instance}.metal".replace("-.", "."): request.of(kernel, instance)
        for kernel in kernels
        for instance in kernel.instances or ("",)
    }
    with tempfile.TemporaryDirectory() as folder:
        return dict(zip(wanted, capture.texts(list(wanted.values()), Path(folder)), strict=True))


def mlx_wrappers(kernels: Collection[Kernel] = KERNELS.values()) -> dict[str, str]:
    """Return what MLX writes around our headers, by file name: the kernel with its parameters.

    Raises:
        EnvironmentLacks: MLX is not installed.
        MetalError: MLX refuses a kernel, or does not begin its text with our header.
    """
    headers = {kernel.name: source.read(kernel.header) for kernel in kernels}
    wrappers = {}
    for name, text in mlx_texts(kernels).items():
        header = headers[re.split(r"[-.]", name)[0]]
        if not text.startswith(header):
            raise MetalError(
                f"MLX {capture.mlx_version()} does not begin {name} with the kernel's header; it "
                f"begins with\n{text[:400]}"
            )
        wrappers[name] = text.removeprefix(header)
    return wrappers


def mps_texts(kernels: Collection[Kernel] = KERNELS.values()) -> dict[str, str]:
    """Return the whole kernels that PyTorch would compile, by file name."""
    files = {str(Path(kernel.header).with_suffix(".metal")) for kernel in kernels}
    return {file: source.read(file) for file in sorted(files)}


def texts() -> dict[str, str]:
    """Return every text, whole enough to be compiled, by file name: `mlx-...` and `mps-...`."""
    return {
        **{f"mlx-{name}": PREFIX + text for name, text in mlx_texts().items()},
        **{f"mps-{name}": text for name, text in mps_texts().items()},
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
        prog="python -m mlxhog.metal.dump",
        description="Write each Metal kernel as a file that xcrun metal can compile on its own.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--golden", action="store_true", help="only what MLX writes around our headers"
    )
    options = parser.parse_args(arguments)
    named = mlx_wrappers() if options.golden else texts()
    try:
        write(options.folder, named)
    except OSError as error:
        parser.error(f"cannot write to {options.folder}: {error.strerror}; name another folder")
    print(f"{len(named)} files in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
