"""From a launch to the memory that a kernel sees, by the argument rules of MLX or of PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import MetalError, ShapeError
from mlxhog.metal.host.request import SMALL
from mlxhog.metal.host.signature import Signature
from mlxhog.metal.kernel import Argument, Kernel, Launch

SLOTS = 31


def bound(
    launch: Launch, signature: Signature, outputs: Mapping[str, NDArray[Any]], *, mlx: bool
) -> list[NDArray[Any]]:
    """Return the arrays of a kernel by slot; arrays that it writes are the caller's own.

    Args:
        launch: with arguments that `launching.check` has passed.
        signature: of the kernel as it is compiled.
        outputs: fresh arrays by name.
        mlx: MLX's rules: an input of fewer than 8 elements is padded. Otherwise PyTorch's: a number
            travels as 64-bit integer or 32-bit float.

    Raises:
        ShapeError: a number does not fit, or an array cannot be written in place.
        MetalError: the kernel's parameters are not those that were declared.
    """
    kernel = launch.kernel
    _same_parameters(kernel, signature)
    arrays = []
    for argument in kernel.inputs:
        value, what = launch.inputs[argument.name], f"kernel {kernel.name}: {argument.name}"
        if argument.scalar:
            arrays.append(_scalar(value, argument, what, mlx=mlx))
        else:
            arrays.append(_array(value, argument, what, mlx=mlx))
    return [*arrays, *outputs.values()]


def _same_parameters(kernel: Kernel, signature: Signature) -> None:
    wanted = [
        (slot, argument.name, "&" if argument.scalar else "*")
        for slot, argument in enumerate((*kernel.inputs, *kernel.outputs))
    ]
    got = [(parameter.slot, parameter.name, parameter.form) for parameter in signature.buffers]
    if got != wanted:
        raise MetalError(
            f"kernel {signature.name} has the buffers {got}, its declaration {wanted}; "
            "make them agree in order, name and kind (* array, & scalar)"
        )
    if len(got) > SLOTS:
        raise MetalError(f"kernel {signature.name} has {len(got)} buffers; Metal has {SLOTS} slots")


def _scalar(value: Any, argument: Argument, what: str, *, mlx: bool) -> NDArray[Any]:
    dtype = np.dtype(argument.dtype)
    number = np.asarray(value).reshape(())
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not limits.min <= number <= limits.max or number != np.floor(number):
            raise ShapeError(f"{what} is {value}; wanted a number that {dtype} can hold")
    if mlx or dtype.kind == "f":
        return number.astype(dtype)
    return number.astype(np.int64)  # Metal reads the low bytes


def _array(value: NDArray[Any], argument: Argument, what: str, *, mlx: bool) -> NDArray[Any]:
    if argument.writes and not value.flags.writeable:
        raise ShapeError(f"{what} is read-only; the kernel writes it in place")
    if not mlx or value.size >= SMALL:
        return value
    if argument.writes:
        raise ShapeError(
            f"{what} has {value.size} elements; MLX passes fewer than {SMALL} as constants, which "
            "a kernel cannot write"
        )
    padded = np.zeros(SMALL, value.dtype)
    padded[: value.size] = value.ravel()
    return padded
