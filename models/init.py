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
        case "uniform", [bound]:
            array = _generator(spec.name, seed).random(spec.shape, np.float32)
            return (2.0 * array - 1.0) * np.float32(bound)
        case "inverse_softplus", [low, high]:
            drawn = _generator(spec.name, seed).random(spec.shape)
            drawn = low * (high / low) ** drawn
            return np.asarray(np.log(np.expm1(drawn)), np.float32)
        case "log_of_uniform", [low, high]:
            drawn = _generator(spec.name, seed).random(spec.shape)
            return np.asarray(np.log(low + drawn * (high - low)), np.float32)
        case "log_of_count", []:
            counts = np.arange(1, spec.shape[-1] + 1)
            return np.tile(np.log(counts).astype(np.float32), (*spec.shape[:-1], 1))
        case "slstm_linspace", [heads, first, last]:
            units = spec.size // (4 * int(heads))
            return _slstm_bias(spec, int(heads), np.linspace(first, last, units))
        case "slstm_powerlaw", [heads, exponent]:
            units = spec.size // (4 * int(heads))
            # One unit has no range to spread over, and takes the first value.
            spread = np.linspace(0.0, 1.0, units) ** exponent
            return _slstm_bias(spec, int(heads), 5.0 - 12.0 * spread)
    raise ConfigError(
        f"parameter {spec.name} has the initialiser {spec.init!r}; known are zeros, ones, "
        "constant:V, normal:STD, uniform:BOUND, linspace:FIRST:LAST, inverse_softplus:LOW:HIGH, "
        "log_of_uniform:LOW:HIGH, log_of_count, slstm_linspace:NH:FIRST:LAST and "
        "slstm_powerlaw:NH:EXPONENT"
    )


def _slstm_bias(spec: ParamSpec, heads: int, forget: NDArray[np.float64]) -> NDArray[np.float32]:
    """Bias of the gates i, f, z, o of an sLSTM, (4, NH, DH) flattened: `forget` in every head."""
    bias = np.zeros((4, heads, len(forget)), np.float32)
    bias[1] = forget
    return bias.reshape(spec.shape)


def _generator(name: str, seed: int) -> np.random.Generator:
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
