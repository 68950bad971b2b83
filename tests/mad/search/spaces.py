"""Small spaces of cheap layers."""

from typing import Any

from mlxhog.mad.search.candidates import CandidateSet, Layers
from mlxhog.mad.search.space import Space, to_space
from mlxhog.mad.suites import Suite
from mlxhog.mad.tasks import resolve

D = 32
LENGTH = 16
KERNELS = {"type": "gated-conv", "kernel": [1, 2, 3, 4]}
SMALL: dict[str, Any] = {"depth": 4, "mixers": [KERNELS], "channels": ["swiglu", "mlp"]}


def candidates(**keys: Any) -> CandidateSet:
    return CandidateSet(to_space(SMALL | keys), D, LENGTH)


def candidates_of(space: Space, measured: Suite) -> CandidateSet:
    """The candidates of a space at the width and for the longest row of a suite."""
    longest = max(resolve(each.task, each.settings).length for each in measured.settings)
    return CandidateSet(space, space.dim or measured.dim, longest)


def every(choices: CandidateSet) -> list[Layers]:
    """The candidates of a listed space."""
    return [layers for n in range(choices.numbers) if (layers := choices.candidate(n))]
