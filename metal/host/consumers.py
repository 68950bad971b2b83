"""Whose text is run: what MLX compiles for a kernel, or what PyTorch does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlxhog.errors import MetalError
from mlxhog.metal import source
from mlxhog.metal.host import capture, request, translate, wrap
from mlxhog.metal.host.signature import Signature, kernels
from mlxhog.metal.kernel import Kernel


@dataclass(frozen=True)
class Program:
    """What a framework compiles.

    Attributes:
        name: of the file that holds it.
        text: the same as C++.
        signature: of the kernel that was asked for.
    """

    name: str
    text: str
    signature: Signature


def mlx(kernel: Kernel, instance: str, cache: Path) -> Program:
    """MLX wraps one call into a kernel; it says itself how, and without MLX we state it.

    Raises:
        MetalError: MLX refuses the kernel.
    """
    wanted = request.of(kernel, instance)
    text = capture.texts([wanted], cache)[0] if capture.mlx_version() else wrap.text(wanted)
    (signature,) = kernels(text).values()
    header = source.read(kernel.header, lines=True)  # the same, and where its lines are from
    wrapper = f'#line 1 "MLX kernel {kernel.name}"\n{text.removeprefix(wanted.header)}'
    return Program(
        name=f"{kernel.name}-{instance}".rstrip("-"),
        text=translate.library(header + wrapper, mlx=True),
        signature=signature,
    )


def mps(kernel: Kernel, instance: str, _cache: Path) -> Program:
    """PyTorch compiles a file of whole kernels, and finds them by name.

    Raises:
        MetalError: the file has no such kernel.
    """
    file = str(Path(kernel.header).with_suffix(".metal"))
    text = source.read(file, lines=True)
    name, found = f"{kernel.name}_{instance}".rstrip("_"), kernels(text)
    if name not in found:
        raise MetalError(f"{file} has no kernel {name}; it has {', '.join(found)}")
    return Program(Path(file).stem, translate.library(text), found[name])


CONSUMERS: dict[str, Callable[[Kernel, str, Path], Program]] = {"mlx": mlx, "mps": mps}
