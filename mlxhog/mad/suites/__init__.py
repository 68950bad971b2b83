"""Suites: settings of tasks, and optimiser points, on which an architecture is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mlxhog.errors import ConfigError, did_you_mean
from mlxhog.mad.suites import benchmark, skills
from mlxhog.mad.suites.suite import Setting as Setting
from mlxhog.mad.suites.suite import Suite as Suite
from mlxhog.mad.suites.suite import at_dim as at_dim
from mlxhog.mad.suites.suite import expand as expand
from mlxhog.mad.suites.suite import fixed as fixed
from mlxhog.mad.suites.suite import only as only
from mlxhog.mad.suites.suite import with_rates as with_rates

SUITES: Mapping[str, Callable[[], Suite]] = {
    make.__name__: make
    for make in (
        benchmark.smoke,
        benchmark.lite,
        benchmark.full,
        benchmark.reduced,
        skills.recall,
        skills.state,
        skills.knowledge,
    )
}
"""Suites by their names; a docstring says what a suite measures."""


def suite(name: str) -> Suite:
    """Return a suite by its name.

    Raises:
        ConfigError: no such suite.
    """
    if name not in SUITES:
        near = did_you_mean(name, SUITES) or f"; choose one of {', '.join(SUITES)}"
        raise ConfigError(f"no suite {name!r}{near}")
    return SUITES[name]()
