"""Checks that several layers share."""

from mlxhog.errors import ConfigError


def check_heads(heads: int, d: int, width: str = "width") -> None:
    """Refuse a number of heads that a width does not divide into.

    Raises:
        ConfigError: says which numbers are possible.
    """
    if heads < 1 or d % heads:
        possible = ", ".join(str(n) for n in range(1, min(d, 1024) + 1) if d % n == 0)
        raise ConfigError(f"heads is {heads}, and the {width} is {d}; choose one of {possible}")
