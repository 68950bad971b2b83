"""Suites: settings of tasks, and optimiser points, on which an architecture is scored."""

from __future__ import annotations

from mlxhog.errors import ConfigError, did_you_mean
from mlxhog.mad.suites import benchmark, skills
from mlxhog.mad.suites.suite import Setting as Setting
from mlxhog.mad.suites.suite import Suite as Suite
from mlxhog.mad.suites.suite import at_dim as at_dim
from mlxhog.mad.suites.suite import expand as expand
from mlxhog.mad.suites.suite import fixed as fixed
from mlxhog.mad.suites.suite import only as only
from mlxhog.mad.suites.suite import with_rates as with_rates

_MAKE = {
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
SUITES = tuple(_MAKE)


def suite(name: str) -> Suite:
    """Return a suite by its name.

    Raises:
        ConfigError: no such suite.
    """
    if name not in _MAKE:
        near = did_you_mean(name, _MAKE) or f"; choose one of {', '.join(_MAKE)}"
        raise ConfigError(f"no suite {name!r}{near}")
    return _MAKE[name]()
