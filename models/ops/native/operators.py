"""The operators as native CPU kernels, for the arrays of either framework; float32 only.

Each is a (forward, backward) pair of `layers.py` or `sequence.py`. `adapter_torch.py` and
`adapter_mlx.py` say how a pair becomes differentiable.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from mlxhog._native import ops
from mlxhog.models.ops.arrays import Array, Arrays
from mlxhog.models.ops.native import layers, sequence
from mlxhog.models.ops.native.layers import Pair, View
from mlxhog.models.ops.reference.plain import PlainForm

ops.keep_freed_memory()


def _operator(pair: Pair) -> Callable[..., Array]:
    """The operator of a pair with one result; its settings are those of the pair."""

    def operator(form: "NativeForm", *x: Array, **settings: Any) -> Array:
        return form.apply(pair, *x, **settings)[0]

    return operator


class NativeForm(ABC):
    """The operators, over a framework's way to call a pair.

    Attributes:
        xp: the framework's array functions.
        plain: the framework's plain operators, where they are as fast.
        slstm: the pair of the sLSTM cell, with or without a tape.
    """

    xp: Arrays
    plain: PlainForm
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

    rms_norm = _operator(layers.RMS_NORM)
    layer_norm = _operator(layers.LAYER_NORM)
    head_norm = _operator(layers.HEAD_NORM)
    head_norm_gate = _operator(layers.HEAD_NORM_GATE)
    head_norm_skip_gate = _operator(layers.HEAD_NORM_SKIP_GATE)
    activate = _operator(layers.ACTIVATE)
    glu = _operator(layers.GLU)
    swiglu = _operator(layers.SWIGLU)
    soft_cap = _operator(layers.SOFT_CAP)

    def linears(
        self, x: Array, weights: Sequence[Array], biases: Sequence[Array]
    ) -> Sequence[Array]:
        if not self.multiplies(weights):
            return self.plain.linears(x, weights, biases)
        return self.apply(layers.LINEARS, x, *weights, *biases)

    def block_diagonal(
        self, x: Array, weights: Sequence[Array], biases: Sequence[Array]
    ) -> Sequence[Array]:
        small = all(ops.is_small_block(w.shape[1], w.shape[2]) for w in weights)
        if not (small or self.multiplies(weights)):
            return self.plain.block_diagonal(x, weights, biases)
        return self.apply(layers.BLOCK_DIAGONAL, x, *weights, *biases)

    def causal_conv(
        self, *x: Array, state: Array | None, starts: Array | None, silu: bool
    ) -> Sequence[Array]:
        begins = self.constant(starts, "uint8")
        return self.apply(layers.CAUSAL_CONV, *x, state, starts=begins, silu=silu)

    def long_conv(self, x: Array, f: Array) -> Array:
        if x.shape[1] > ops.LONG_CONV_DIRECT:
            return self.plain.long_conv(x, f)  # by transforms
        return self.apply(layers.LONG_CONV, x, f)[0]

    def capped_cross_entropy(
        self, raw_logits: Array, labels: Array, *, cap: float | None
    ) -> Sequence[Array]:
        ids = self.constant(labels, "int32")
        return self.apply(layers.CROSS_ENTROPY, raw_logits, labels=ids, cap=cap)

    def linear_cross_entropy(
        self, x: Array, w: Array, labels: Array, *, cap: float | None
    ) -> Sequence[Array]:
        if not self.multiplies([w]):
            (raw_logits,) = self.plain.linears(x, [w], [None])
            return self.capped_cross_entropy(raw_logits, labels, cap=cap)
        ids = self.constant(labels, "int32")
        return self.apply(layers.LINEAR_CROSS_ENTROPY, x, w, labels=ids, cap=cap)

    def rope(self, x: Array, *, base: float, offset: Array | None) -> Array:
        return self.apply(sequence.ROPE, x, base=base, offset=self.constant(offset, "int32"))[0]

    def attention(self, *qkv: Array, window: int | None, lengths: Array | None) -> Array:
        counts = self.constant(lengths, "int32")
        return self.apply(sequence.ATTENTION, *qkv, window=window, lengths=counts)[0]

    def mlstm_cell(
        self, *x: Array, state: Sequence[Array] | None, **how: Any
    ) -> tuple[Array, Sequence[Array]]:
        h, *last = self.apply(sequence.MLSTM, *x, *(state or [None] * 3), **how)
        return h, tuple(last)

    def slstm_cell(
        self, *x: Array, state: Sequence[Array] | None, starts: Array | None
    ) -> tuple[Array, Sequence[Array]]:
        begins = self.constant(starts, "uint8")
        h, *last = self.apply(self.slstm, *x, *(state or [None] * 4), starts=begins)
        return h, tuple(last)

    def recurrence(self, *x: Array | None, chunk_size: int, **how: Any) -> Sequence[Array]:
        return self.apply(sequence.RECURRENCE, *x, **how)

    def regression_cell(
        self, *x: Array, steps: int, chunk_size: int, state: Array | None
    ) -> Sequence[Array]:
        return self.apply(sequence.REGRESSION, *x, state, steps=steps)

    def selective_scan(self, *x: Array, state: Array | None) -> Sequence[Array]:
        return self.apply(sequence.SCAN, *x, state)
