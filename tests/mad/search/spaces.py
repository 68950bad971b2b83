"""Small spaces of cheap layers."""

from mlxhog.mad.search.space import CandidateSet, to_space

D, LENGTH = 32, 16
KERNELS = {"type": "gated-conv", "kernel": [1, 2, 3, 4]}
SMALL = {"depth": 4, "mixers": [KERNELS], "channels": ["swiglu", "mlp"]}


def candidates(base=SMALL, **keys):
    return CandidateSet(to_space(base | keys), D, LENGTH)


def every(choices):
    """The candidates of a listed space."""
    return [layers for n in range(choices.numbers) if (layers := choices.candidate(n))]
