"""Which candidate is tried next. One file per sampler, all with the protocol below.

A sampler is a function of its seed and of what it was asked, told and reminded of: proposal number
n draws from a random stream of its own. So a study that is resumed rebuilds its sampler by
`recall` and `tell` from the records, in their order, and with one candidate at a time goes on
exactly as if it had never stopped.
"""

from __future__ import annotations

import importlib
from typing import Protocol

from mlxhog.config.options import did_you_mean
from mlxhog.errors import ConfigError
from mlxhog.mad.search.candidates import Candidates, Layers

SAMPLERS = {
    "grid": "every candidate in the order of the space",
    "random": "any candidate, none twice",
    "evolution": "one change to the best of a few recent ones",
    "tpe": "what good ones have in common (needs the extra [search])",
}


class Sampler(Protocol):
    """Proposes candidates; one process uses it."""

    def ask(self) -> Layers | None:
        """Return a candidate that was never proposed; None when the space has no more."""

    def tell(self, layers: Layers, score: float) -> None:
        """Take the score of a candidate, in the order in which candidates end."""

    def recall(self, layers: Layers) -> None:
        """Take note of a candidate that was proposed before, by a sampler that is gone."""


def make_sampler(name: str, candidates: Candidates, seed: int) -> Sampler:
    """Make a sampler.

    Args:
        name: a key of `SAMPLERS`.
        candidates: the space.
        seed: of everything it draws.

    Raises:
        ConfigError: no such sampler.
        EnvironmentLacks: it needs a package that is not installed.
    """
    if name not in SAMPLERS:
        near = did_you_mean(name, SAMPLERS)
        raise ConfigError(f"sampler is {name!r}; choose one of {', '.join(SAMPLERS)}{near}")
    made: Sampler = importlib.import_module(f"{__name__}.{name}").make(candidates, seed)
    return made
