"""Small spaces of cheap layers."""

from mlxhog.mad.search.candidates import CandidateSet
from mlxhog.mad.search.space import to_space
from mlxhog.mad.tasks import resolve

D = 32
LENGTH = 16
KERNELS = {"type": "gated-conv", "kernel": [1, 2, 3, 4]}
SMALL = {"depth": 4, "mixers": [KERNELS], "channels": ["swiglu", "mlp"]}


def candidates(**keys):
    return CandidateSet(to_space(SMALL | keys), D, LENGTH)


def candidates_of(space, measured):
    """The candidates of a space at the width and for the longest row of a suite."""
    longest = max(resolve(each.task, each.settings).length for each in measured.settings)
    return CandidateSet(space, space.width or measured.dim, longest)


def every(choices):
    """The candidates of a listed space."""
    return [layers for n in range(choices.numbers) if (layers := choices.candidate(n))]
