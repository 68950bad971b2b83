"""The activation functions of the operators `activate` and `glu`.

The names are those of the xlstm package, `silu` is another for `swish`. `gelu` is the exact one,
x Phi(x), computed with erf; `gelu_tanh` is its form with tanh. `softplus` is log(1 + e^x).
"""

from mlxhog.errors import ConfigError

ACTIVATIONS = (
    "gelu",
    "gelu_tanh",
    "silu",
    "swish",
    "relu",
    "relu^2",
    "sigmoid",
    "selu",
    "softplus",
)


def known(name: str) -> str:
    """Return the name, `silu` for `swish`.

    Raises:
        ConfigError: it is none of `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation is {name!r}; choose one of {', '.join(ACTIVATIONS)}")
    return "silu" if name == "swish" else name
