"""What problems have in common about where their data come from."""

from __future__ import annotations

from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from mlxhog.classic.config import ClassicConfig
from mlxhog.config.options import to_flag
from mlxhog.errors import ConfigError, DataError

HELD_OUT_SHARE = 0.2


class Takeable(Protocol):
    """A data set of which some examples can be taken."""

    def take(self, rows: ArrayLike) -> Self:
        """Those examples, in that order."""


Data = TypeVar("Data", bound=Takeable)


def held_out(data: Data, n: int, seed: int) -> tuple[Data, Data]:
    """Split off a fifth for testing, drawn at random; the same for the same seed.

    Raises:
        DataError: there are fewer than two examples.
    """
    if n < 2:
        raise DataError(f"{n} example cannot be split; name a file of test data with --test-data")
    order = np.random.default_rng([seed, 0x7E57]).permutation(n)
    n_test = max(1, int(n * HELD_OUT_SHARE))
    return data.take(np.sort(order[n_test:])), data.take(np.sort(order[:n_test]))


def only_with_data(config: ClassicConfig, *names: str) -> None:
    """Refuse options about files where there is no file.

    Raises:
        ConfigError: one of them is given.
    """
    for name in names:
        if getattr(config, name) is not None:
            raise ConfigError(f"{to_flag(name)} is about files; name one with --data")


def generated_size(config: ClassicConfig) -> None:
    """Refuse a size where the data come from a file.

    Raises:
        ConfigError: `config.size` is given.
    """
    if config.size is not None:
        raise ConfigError(f"--size {config.size} is for generated data; leave it out with --data")


def only_generated(name: str, config: ClassicConfig, instead: str) -> None:
    """Refuse a file where a problem is its generator.

    Raises:
        ConfigError: `config.data` is given.
    """
    if config.data is not None:
        raise ConfigError(f"{name} has generated data only, no --data; {instead}")
