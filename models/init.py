"""Initial values of parameters, by NumPy: both frameworks start from the same numbers."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ConfigError
from mlxhog.models.spec import ParamSpec


def initial_value(spec: ParamSpec, seed: int) -> NDArray[np.float32]:
    """Draw the initial value of one parameter.

    The generator is Philox, keyed by a hash of (seed, name): the value depends on nothing else, not
    on the other parameters of the model and not on the order in which they are drawn.

    Args:
        spec: the parameter; `spec.init` is one of the forms listed in `ParamSpec`.
        seed: seed of the run, any integer.

    Returns:
        A fresh array of `spec.shape`, float32.

    Raises:
        ConfigError: `spec.init` is not one of these forms.
    """
    kind, *texts = spec.init.split(":")
    numbers = [float(text) for text in texts]
    match kind, numbers:
        case "zeros", []:
            return np.zeros(spec.shape, np.float32)
        case "ones", []:
            return np.ones(spec.shape, np.float32)
        case "constant", [value]:
            return np.full(spec.shape, value, np.float32)
        case "linspace", [first, last]:
            return np.linspace(first, last, spec.size, dtype=np.float32).reshape(spec.shape)
        case "normal", [std]:
            array = _generator(spec.name, seed).standard_normal(spec.shape, np.float32)
            array *= np.float32(std)
            return array
    raise ConfigError(
        f"parameter {spec.name} has the initialiser {spec.init!r}; known are zeros, ones, "
        "constant:V, normal:STD and linspace:FIRST:LAST"
    )


def _generator(name: str, seed: int) -> np.random.Generator:
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
