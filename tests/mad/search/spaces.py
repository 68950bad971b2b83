"""Small spaces of cheap layers."""

from mlxhog.mad.search.space import CandidateSet, to_space

D, LENGTH = 32, 16


def convolutions(n):
    """Gated convolutions of 1 to n taps, as a space has them."""
    return [f"gated-conv(kernel={k + 1})" for k in range(n)]


SMALL = {"depth": 4, "mixers": convolutions(4), "channels": ["swiglu", "mlp"]}


def candidates(base=SMALL, **keys):
    return CandidateSet(to_space(base | keys), D, LENGTH)


def every(choices):
    """The candidates of a listed space."""
    return [layers for n in range(choices.numbers) if (layers := choices.candidate(n))]
