"""Parameters that begin as torch.nn.Linear's and Conv1d's do: uniform, to 1 / sqrt(inputs)."""

import math

from mlxhog.models.spec import ParamSpec


def linear(name: str, out: int, inputs: int, *, product: bool = True) -> ParamSpec:
    """Declare the matrix (out, inputs) of a linear map; `product` as in `ParamSpec`."""
    return ParamSpec(name, (out, inputs), bound(inputs), decay=True, product=product)


def bias(name: str, out: int, inputs: int) -> ParamSpec:
    """Declare what a linear map of so many inputs adds, (out,)."""
    return ParamSpec(name, (out,), bound(inputs))


def taps(name: str, channels: int, kernel: int) -> ParamSpec:
    """Declare the taps (channels, 1, kernel) of a depthwise convolution."""
    return ParamSpec(name, (channels, 1, kernel), bound(kernel), decay=True)


def bound(inputs: int) -> str:
    """Return the initialiser of a map of so many inputs."""
    return f"uniform:{1 / math.sqrt(inputs)!r}"
