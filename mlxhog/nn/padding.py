"""Sequences of different lengths in a batch: operators that skip padding.

In each row the valid positions come first, in their order, then the padding. At padding the input
gate is shut and the forget gate open, so that the state does not change:

    i = -1e30, f = 1e4     logsig(f) = 0, m' = max(m, i) = m, exp(i - m') = 0, exp(m - m') = 1

in float32, exactly, for every m of finite gates.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.models.ops.arrays import Array, Arrays
from mlxhog.models.ops.mlstm import MASKED, initial_state

SHUT, OPEN = MASKED, 1e4
"""Pre-activations of a closed input gate and of an open forget gate."""

Index = NDArray[np.int64]


def gather(x: Array, index: Index, xp: Arrays) -> Array:
    """Return x (B, S, ...) at the positions `index` (B, n), (B, n, ...)."""
    rest = x.shape[2:]
    wide = xp.from_numpy(index.astype(np.int32), like=x).reshape(*index.shape, *(1 for _ in rest))
    return xp.take_along_axis(x, xp.broadcast_to(wide, (*index.shape, *rest)), 1)


class SkippingOps:
    """Operators for a batch x (B, S, ...) that return the state after `lengths` (B,) positions."""

    def __init__(self, ops: Any, lengths: Index, x: Array) -> None:
        self._ops, self._lengths = ops, lengths
        self.xp: Arrays = ops.xp
        # (B, S), true at padding, which is at the end of each row
        self.padded = self.xp.from_numpy(np.arange(x.shape[1]) >= lengths[:, None], like=x)
        self._empty = self.xp.from_numpy(lengths == 0, like=x) if (lengths == 0).any() else None

    def __getattr__(self, name: str) -> Any:
        """Return an operator without state."""
        return getattr(self._ops, name)

    def keeping_bf16(self) -> "SkippingOps":
        """Return these operators, which are float32."""
        return self

    def mlstm_cell(self, q: Array, k: Array, v: Array, *gates: Array, **how: Any) -> Any:
        """Run the cell; padding does not change the state."""
        return self._ops.mlstm_cell(q, k, v, *self._shut_gates(*gates), **how)

    def slstm_cell(
        self, i: Array, f: Array, *others: Array, state: Any = None, **how: Any
    ) -> tuple[Array, tuple[Array, ...]]:
        """Run the cell; padding does not change the state."""
        h, (_, c, n, m) = self._ops.slstm_cell(*self._shut_gates(i, f), *others, state=state, **how)
        # The output gate changes h over padding, so h is taken from the last position.
        last = np.maximum(self._lengths - 1, 0)[:, None]
        end = (gather(h, last, self.xp)[:, 0], c, n, m)
        if self._empty is None:
            return h, end
        # A cell whose n is 0 takes m from the input gate, even a shut one.
        first = initial_state(state) or [self.xp.zeros_like(x) for x in end]
        empty = self._empty[:, None, None]
        return h, tuple(self.xp.where(empty, a, x) for a, x in zip(first, end, strict=True))

    def causal_conv(
        self, x: Array, w: Array, b: Array, *, state: Array | None = None, **how: Any
    ) -> tuple[Array, Array]:
        """Convolve; the state is the last inputs that are not padding."""
        xp, (B, _, C), K = self.xp, x.shape, w.shape[-1]
        y, _ = self._ops.causal_conv(x, w, b, state=state, **how)
        past = xp.zeros((B, K - 1, C), like=x) if state is None else state
        inputs = xp.concatenate([past, x], 1)  # position t is at t + K - 1
        return y, gather(inputs, self._lengths[:, None] + np.arange(K - 1), xp)

    def _shut_gates(self, i: Array, f: Array) -> tuple[Array, Array]:
        """Shut input gates (B, S, NH, ...) over padding, and open forget gates."""
        padded = self.padded.reshape(*self.padded.shape, *(1 for _ in i.shape[2:]))
        return self.xp.where(padded, SHUT, i), self.xp.where(padded, OPEN, f)
