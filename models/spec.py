"""Declarations of a model's parameters, and their initial values in NumPy.

The arena, checkpoints and every backend read them, and start from the same values.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ConfigError


@dataclass(frozen=True)
class ParamSpec:
    """Name, shape, initializer and kind of one float32 parameter.

    `init` is read by `initial_value`: "zeros", "ones", "constant:V", "normal:STD", "uniform:BOUND",
    "linspace:FIRST:LAST"; "powerlaw:FIRST:LAST:EXPONENT", FIRST + (LAST - FIRST) (i /
    size)^EXPONENT; "inverse_softplus:LOW:HIGH", whose softplus is log-uniform;
    "log_of_uniform:LOW:HIGH"; "log_of_count", the logarithms of 1, 2, ... along the last axis; or
    the bias of an sLSTM of NH heads, whose forget gates alone are not 0:
    "slstm_linspace:NH:FIRST:LAST" or "slstm_powerlaw:NH:EXPONENT".

    Kind "rows" has a sparse gradient (an embedding); "table" also is too large for a dense pass
    (n-grams). `autocast` marks a weight that is used in linear layers alone, which may be bfloat16
    (`ops/mixed.py`); parameters of gates, norms and cells are not marked.
    """

    name: str  # dotted, as in a transformers checkpoint
    shape: tuple[int, ...]  # outermost first; a linear layer's is (out, in)
    init: str
    kind: Literal["dense", "rows", "table"] = "dense"
    decay: bool = False  # whether weight decay applies
    autocast: bool = False
    trainable: bool = True  # False for the frozen weights beside an adapter

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def bound(inputs: int) -> str:
    """Return the initializer of a linear layer: uniform, up to 1 / sqrt(inputs)."""
    return f"uniform:{1 / math.sqrt(inputs)!r}"


def normal(std: float) -> str:
    """Return the normal initializer of a standard deviation."""
    return f"normal:{std!r}"


def small(d: int) -> str:
    """Return the initializer of xLSTM's weights that do not end in the residual stream."""
    return normal(math.sqrt(2 / (5 * d)))


def initial_value(spec: ParamSpec, seed: int) -> NDArray[np.float32]:
    """Draw the initial value of one parameter.

    The generator is Philox, keyed by a hash of (seed, name), so the value does not depend on other
    parameters or their order.

    Raises:
        ConfigError: `spec.init` is unknown.
    """
    kind, *texts = spec.init.split(":")
    numbers = [float(text) for text in texts]

    def random() -> np.random.Generator:
        return generator(f"{seed}:{spec.name}")

    match kind, numbers:
        case "zeros", []:
            return np.zeros(spec.shape, np.float32)
        case "ones", []:
            return np.ones(spec.shape, np.float32)
        case "constant", [value]:
            return np.full(spec.shape, value, np.float32)
        case "linspace", [first, last]:
            return np.linspace(first, last, spec.size, dtype=np.float32).reshape(spec.shape)
        case "powerlaw", [first, last, exponent]:
            progress = (np.arange(spec.size) / spec.size) ** exponent
            return (first + (last - first) * progress).astype(np.float32).reshape(spec.shape)
        case "normal", [std]:
            return random().standard_normal(spec.shape, np.float32) * np.float32(std)
        case "uniform", [bound]:
            return (2.0 * random().random(spec.shape, np.float32) - 1.0) * np.float32(bound)
        case "inverse_softplus", [low, high]:
            ratio = (high / low) ** random().random(spec.shape)
            return np.asarray(np.log(np.expm1(low * ratio)), np.float32)
        case "log_of_uniform", [low, high]:
            return np.asarray(np.log(low + random().random(spec.shape) * (high - low)), np.float32)
        case "log_of_count", []:
            counts = np.arange(1, spec.shape[-1] + 1)
            return np.tile(np.log(counts).astype(np.float32), (*spec.shape[:-1], 1))
        case "slstm_linspace", [heads, first, last]:
            return _slstm_bias(spec, int(heads), lambda n: np.linspace(first, last, n))
        case "slstm_powerlaw", [heads, exponent]:  # a single unit gets the first value
            return _slstm_bias(
                spec, int(heads), lambda n: 5.0 - 12.0 * np.linspace(0.0, 1.0, n) ** exponent
            )
    raise ConfigError(
        f"parameter {spec.name} has the initializer {spec.init!r}; `ParamSpec` lists those known"
    )


def _slstm_bias(
    spec: ParamSpec, heads: int, forget: Callable[[int], NDArray[np.float64]]
) -> NDArray[np.float32]:
    """Return the biases of an sLSTM's gates i, f, z, o, (4, NH, DH) flattened."""
    bias = np.zeros((4, heads, spec.size // (4 * heads)), np.float32)
    bias[1] = forget(bias.shape[-1])
    return bias.reshape(spec.shape)


def generator(key: str) -> np.random.Generator:
    """Return a generator seeded by a key alone, such as "seed:name"."""
    digest = hashlib.sha256(key.encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
