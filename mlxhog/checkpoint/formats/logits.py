"""Whether two checkpoints compute the same: their logits after the same tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxhog import backends
from mlxhog.checkpoint.formats.check import refuse_not_finite
from mlxhog.checkpoint.formats.opening import Opened

TOKENS = 64
_ROUNDING = 1e-4
"""Of the largest logit: what another order of the same sums may change."""


@dataclass(frozen=True)
class Difference:
    """What the logits after `tokens` random tokens differ in.

    Attributes:
        tokens: how many were read.
        largest_difference: between two logits.
        largest: logit, in absolute value.
    """

    tokens: int
    largest_difference: float
    largest: float

    @property
    def same(self) -> bool:
        """Whether rounding explains the difference."""
        return self.largest_difference <= _ROUNDING * self.largest

    def __str__(self) -> str:
        """Spell it for people."""
        return (
            f"after {self.tokens} tokens the largest logit is {self.largest:.3g} and the largest "
            f"difference {self.largest_difference:.2g}"
        )


def compare(a: Opened, b: Opened) -> Difference:
    """Compute with both models in float32, one after the other, on the CPU with PyTorch.

    Raises:
        CheckpointError: tensors are not finite; they are named.
        EnvironmentLacks: torch is not installed.
    """
    of_a, of_b = _logits(a), _logits(b)
    return Difference(
        tokens=TOKENS,
        largest_difference=float(np.abs(of_a - of_b).max()),
        largest=float(np.abs(of_a).max()),
    )


def _logits(opened: Opened) -> NDArray[np.float32]:
    ids = np.random.default_rng(0).integers(0, opened.config.vocab_size, (1, TOKENS), np.int32)
    backend = backends.create("torch:cpu", threads=1, kernels="auto", cpu_blas="auto")
    try:
        refuse_not_finite(backend.load(opened.config, opened.tensors), opened.path)
        logits, _ = backend.logits(ids, None)
        return logits
    finally:
        backend.close()
