"""Small spaces of cheap layers."""

from typing import Any

from mlxhog.mad.search.candidates import Candidates
from mlxhog.mad.search.space import to_space

D = 32
LENGTH = 16
KERNELS = {"type": "gated-conv", "kernel": [1, 2, 3, 4]}
SMALL: dict[str, Any] = {"depth": 4, "mixers": [KERNELS], "channels": ["swiglu", "mlp"]}


def candidates(**keys: Any) -> Candidates:
    return Candidates(to_space(SMALL | keys), D, LENGTH)
