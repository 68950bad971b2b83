"""The problems by name, with a one-line description and the module of each."""

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
class ProblemEntry:
    """The description of a problem, known before its data are read.

    Attributes:
        about: one-line description.
        module: module of this package; its `create(name, config)` returns the problem.
        options: options of `ClassicConfig` that this problem has and not all others have.
    """

    about: str
    module: str
    options: tuple[str, ...] = ()


PROBLEMS = {
    "svm": ProblemEntry(
        "sparse support vector machine on text like RCV1",
        "linear",
        ("test_data", "labels", "lam", "active_rows"),
    ),
    "logistic": ProblemEntry(
        "logistic regression on the same text", "linear", ("test_data", "labels", "lam")
    ),
    "least-squares": ProblemEntry(
        "least squares on the same text", "linear", ("test_data", "labels", "lam")
    ),
    "matrix-completion": ProblemEntry(
        "ratings like Netflix's, low rank",
        "completion",
        ("test_data", "rating_range", "mu", "rank", "max_norm"),
    ),
    "graph-cuts": ProblemEntry(
        "multiway cut of a noisy volume like Abdomen", "cuts", ("terminals",)
    ),
    "linear-regression": ProblemEntry("five dense features, maximal conflict", "linear", ("lam",)),
    "image-svm": ProblemEntry(
        "dense images like CIFAR-10, one against the rest", "linear", ("test_data", "lam")
    ),
    "synthetic-svm": ProblemEntry("100 features, a fifth of them not zero", "linear", ("lam",)),
}


def create(name: str, config: ClassicConfig) -> Problem:
    """Read or generate the data of a problem.

    Raises:
        ConfigError: no problem has this name, or the problem does not have one of the options.
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
            raise ConfigError(f"{name} has no {to_flag(f.name)}; it is an option of {having}")
    problem: Problem = importlib.import_module(f"{__name__}.{entry.module}").create(name, config)
    return problem
