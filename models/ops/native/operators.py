"""The operators as native CPU kernels, for the arrays of either framework; float32 only.

Each is a pair of `pairs.py`, which `adapter_torch.py` and `adapter_mlx.py` make differentiable.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from mlxhog._native import ops
from mlxhog.models.ops.arrays import Array
from mlxhog.models.ops.native import pairs
from mlxhog.models.ops.native.pairs import Pair, View
from mlxhog.models.ops.operators import Ops, activation_name

ops.keep_freed_memory()


class NativeOps(Ops):
    """The operators, over a framework's way to call a pair; the others are the framework's.

    Attributes:
        slstm: the pair of the sLSTM cell, with or without a tape.
    """

    slstm: Pair

    @abstractmethod
    def apply(self, pair: Pair, *inputs: Array | None, **settings: Any) -> Sequence[Array]:
        """Call a pair on arrays, so that the framework can differentiate it.

        Args:
            pair: the operator.
            inputs: arrays that may get a gradient; None for an absent optional input.
            settings: settings of the pair.
        """

    @abstractmethod
    def constant(self, x: Array | None, dtype: str) -> View | None:
        """Return an array without a gradient in a type of NumPy; None if x is None."""

    @abstractmethod
    def multiplies(self, weights: Sequence[Array]) -> bool:
        """Whether the native matrix product takes these weights and is the faster one."""

    def rms_norm(self, x: Array, w: Array, eps: float) -> Array:
        return self.apply(pairs.RMS_NORM, x, w, eps=eps)[0]

    def layer_norm(self, x: Array, w: Array, eps: float) -> Array:
        return self.apply(pairs.LAYER_NORM, x, w, eps=eps)[0]

    def head_norm(self, h: Array, w: Array, eps: float) -> Array:
        return self.apply(pairs.LAYER_NORM, h, w, eps=eps)[0].flatten(-2)

    def head_norm_gate(self, h: Array, o: Array, w: Array, eps: float) -> Array:
        return self.apply(pairs.HEAD_NORM_GATE, h, o, w, eps=eps)[0]

    def head_norm_skip_gate(
        self, h: Array, c: Array, z: Array, w: Array, skip: Array, eps: float
    ) -> Array:
        return self.apply(pairs.HEAD_NORM_SKIP_GATE, h, c, z, w, skip, eps=eps)[0]

    def activate(self, x: Array, activation: str) -> Array:
        return self.apply(pairs.ACTIVATE, x, activation=activation_name(activation))[0]

    def glu(self, gate: Array, up: Array, activation: str) -> Array:
        return self.apply(pairs.GLU, gate, up, activation=activation_name(activation))[0]

    def swiglu(self, gate: Array, up: Array) -> Array:
        return self.apply(pairs.SWIGLU, gate, up)[0]

    def soft_cap(self, x: Array, c: float) -> Array:
        return self.apply(pairs.SOFT_CAP, x, cap=c)[0]

    def linears(
        self, x: Array, weights: Sequence[Any], biases: Sequence[Any] | None = None
    ) -> Sequence[Array]:
        if not self.multiplies(weights):
            return super().linears(x, weights, biases)
        return self.apply(pairs.LINEARS, x, *weights, *(biases or [None] * len(weights)))

    def block_diagonal(
        self, x: Array, weights: Sequence[Any], biases: Sequence[Any] | None = None
    ) -> Sequence[Array]:
        small = all(ops.is_small_block(w.shape[1], w.shape[2]) for w in weights)
        if not (small or self.multiplies(weights)):
            return super().block_diagonal(x, weights, biases)
        return self.apply(pairs.BLOCK_DIAGONAL, x, *weights, *(biases or [None] * len(weights)))

    def causal_conv(
        self, x: Array, w: Array, b: Array | None, *, state: Array | None = None,
        starts: Array | None = None, silu: bool,
    ) -> tuple[Array, Array]:  # fmt: skip
        begins, b = self.constant(starts, "uint8"), self.zeros_if_none(b, w[:, 0, 0])
        y, last = self.apply(pairs.CAUSAL_CONV, x, w, b, state, starts=begins, silu=silu)
        return y, last

    def long_conv(self, x: Array, f: Array) -> Array:
        if x.shape[1] > ops.LONG_CONV_DIRECT:
            return super().long_conv(x, f)  # by transforms
        return self.apply(pairs.LONG_CONV, x, f)[0]

    def rope(self, x: Array, base: float, offset: Array | None = None) -> Array:
        return self.apply(pairs.ROPE, x, base=base, offset=self.constant(offset, "int32"))[0]

    def attention(
        self, q: Array, k: Array, v: Array, *, window: int | None = None,
        lengths: Array | None = None,
    ) -> Array:  # fmt: skip
        counts = self.constant(lengths, "int32")
        return self.apply(pairs.ATTENTION, q, k, v, window=window, lengths=counts)[0]

    def mlstm_cell(
        self, *x: Array, state: Sequence[Any] | None = None, **how: Any
    ) -> tuple[Array, Any]:
        h, *last = self.apply(pairs.MLSTM, *x, *(state or [None] * 3), **how)
        return h, tuple(last)

    def slstm_cell(
        self, *x: Array, state: Sequence[Any] | None = None, starts: Array | None = None
    ) -> tuple[Array, Any]:
        begins = self.constant(starts, "uint8")
        h, *last = self.apply(self.slstm, *x, *(state or [None] * 4), starts=begins)
        return h, tuple(last)

    def recurrence(
        self, q: Array, k: Array, v: Array, log_decay: Array, *, beta: Array | None = None,
        read: Array | None = None, removal: Array | None = None, scale: float = 1.0,
        by_value: bool = False, chunk_size: int, state: Array | None = None,
    ) -> tuple[Array, Array]:  # fmt: skip
        inputs = (q, k, v, log_decay, beta, read, removal, state)
        h, last = self.apply(pairs.RECURRENCE, *inputs, scale=scale, by_value=by_value)
        return h, last

    def regression_cell(
        self, q: Array, k: Array, log_decay: Array, ridge: Array, *, steps: int, chunk_size: int,
        state: Array | None = None,
    ) -> tuple[Array, Array]:  # fmt: skip
        x = (q, k, log_decay, ridge, state)
        solution, last = self.apply(pairs.REGRESSION, *x, steps=steps)
        return solution, last

    def selective_scan(
        self, u: Array, dt: Array, A: Array, Bt: Array, Ct: Array, *, state: Array | None = None
    ) -> tuple[Array, Array]:
        y, last = self.apply(pairs.SCAN, u, dt, A, Bt, Ct, state)
        return y, last

    def capped_cross_entropy(
        self, raw_logits: Array, labels: Array, cap: float | None
    ) -> tuple[Array, Array]:
        ids = self.constant(labels, "int32")
        nats, count = self.apply(pairs.CROSS_ENTROPY, raw_logits, labels=ids, cap=cap)
        return nats, count

    def linear_cross_entropy(
        self, x: Array, w: Array, labels: Array, cap: float | None
    ) -> tuple[Array, Array]:
        if not self.multiplies([w]):
            return super().linear_cross_entropy(x, w, labels, cap)
        ids = self.constant(labels, "int32")
        nats, count = self.apply(pairs.LINEAR_CROSS_ENTROPY, x, w, labels=ids, cap=cap)
        return nats, count
