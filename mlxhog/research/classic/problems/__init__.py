"""The problems by name, with a one-line description and the module of each."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mlxhog.errors import ConfigError, did_you_mean
from mlxhog.research.classic.config import ClassicConfig, check

if TYPE_CHECKING:  # NumPy, which the list of problems need not load
    from mlxhog.research.classic.problem import Problem

PROBLEMS = {
    "svm": ("sparse support vector machine on text like RCV1", "linear"),
    "logistic": ("logistic regression on the same text", "linear"),
    "least-squares": ("least squares on the same text", "linear"),
    "matrix-completion": ("ratings like Netflix's, low rank", "completion"),
    "graph-cuts": ("multiway cut of a noisy volume like Abdomen", "cuts"),
}
"""Name -> one-line description, and module of this package with `create(name, config)`."""


def create(name: str, config: ClassicConfig) -> Problem:
    """Read or generate the data of a problem.

    Raises:
        ConfigError: no problem has this name, or the problem does not have one of the options.
        DataError: the file of `config.data` is missing or malformed.
        EnvironmentLacks: the model does not fit into memory.
    """
    if name not in PROBLEMS:
        raise ConfigError(
            f"no problem {name!r}{did_you_mean(name, PROBLEMS)}; there are {', '.join(PROBLEMS)}"
        )
    check(config, problem=name, data="generated" if config.data is None else "file")
    module = importlib.import_module(f"{__name__}.{PROBLEMS[name][1]}")
    problem: Problem = module.create(name, config)
    return problem
