"""The problems by name, with a line about each and the module that creates it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from mlxhog.classic.config import ClassicConfig
from mlxhog.config.options import to_flag
from mlxhog.errors import ConfigError, did_you_mean

if TYPE_CHECKING:  # NumPy, which the list of problems need not load
    from mlxhog.classic.problem import Problem


@dataclass(frozen=True)
class Entry:
    """A problem before its data exist.

    Attributes:
        about: one line.
        module: below this package; its `create(name, config)` returns the problem.
        options: those of `ClassicConfig` that not every problem has, and this one has.
    """

    about: str
    module: str
    options: tuple[str, ...] = ()


PROBLEMS = {
    "svm": Entry(
        "sparse support vector machine on text like RCV1",
        "linear",
        ("test_data", "labels", "lam", "active_rows"),
    ),
    "logistic": Entry(
        "logistic regression on the same text", "linear", ("test_data", "labels", "lam")
    ),
    "least-squares": Entry(
        "least squares on the same text", "linear", ("test_data", "labels", "lam")
    ),
    "matrix-completion": Entry(
        "ratings like Netflix's, low rank",
        "completion",
        ("test_data", "rating_range", "mu", "rank", "max_norm"),
    ),
    "graph-cuts": Entry("multiway cut of a noisy volume like Abdomen", "cuts", ("terminals",)),
    "linear-regression": Entry("five dense features, maximal conflict", "linear", ("lam",)),
    "image-svm": Entry(
        "dense images like CIFAR-10, one against the rest", "linear", ("test_data", "lam")
    ),
    "synthetic-svm": Entry("100 features, a fifth of them set", "linear", ("lam",)),
}


def create(name: str, config: ClassicConfig) -> Problem:
    """Read or generate the data of a problem.

    Raises:
        ConfigError: no such problem, or an option that it does not have.
        DataError: the file of `config.data` is missing or malformed.
    """
    if name not in PROBLEMS:
        raise ConfigError(
            f"no problem {name!r}{did_you_mean(name, PROBLEMS)}; there are {', '.join(PROBLEMS)}"
        )
    entry = PROBLEMS[name]
    special = {option for other in PROBLEMS.values() for option in other.options}
    for f in fields(config):
        changed = getattr(config, f.name) != f.default
        if changed and f.name in special and f.name not in entry.options:
            having = ", ".join(key for key, other in PROBLEMS.items() if f.name in other.options)
            raise ConfigError(f"{name} takes no {to_flag(f.name)}; it is for {having}")
    problem: Problem = importlib.import_module(f"{__name__}.{entry.module}").create(name, config)
    return problem
