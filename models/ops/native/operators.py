"""The operators of `kernels.Ops` as native CPU kernels, for the arrays of either framework.

Each is a (forward, backward) pair of `layers.py` or `sequence.py`. `adapter_torch.py` and
`adapter_mlx.py` say how a pair becomes differentiable; float32 only.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from mlxhog._native import ops
from mlxhog.models.ops.arrays import Arrays
from mlxhog.models.ops.kernels import Ops, activation_name
from mlxhog.models.ops.native import layers, sequence
from mlxhog.models.ops.native.pair import Pair, View

ops.keep_freed_memory()


class Shaped(Protocol):
    """An array of a framework, as far as it is looked at here."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""


T = TypeVar("T", bound=Shaped)


class NativeOps(ABC, Generic[T]):
    """The operators, over a framework's way to call a pair.

    Attributes:
        xp: the framework's array functions.
        plain: the framework's plain operators, for what they compute as fast.
        slstm: the pair of the sLSTM cell, with or without a tape.
    """

    xp: Arrays[T]
    plain: Ops[T]
    slstm: Pair

    @abstractmethod
    def apply(self, pair: Pair, *inputs: T | None, **settings: Any) -> Sequence[T]:
        """Call a pair on arrays, so that the framework can differentiate it.

        Args:
            pair: the operator.
            inputs: what a gradient may be asked for; None where an optional input is absent.
            settings: of the pair.
        """

    @abstractmethod
    def integers(self, x: T, dtype: str) -> View:
        """Return an array that no gradient is asked for, as integers."""

    @abstractmethod
    def multiplies(self, weights: Sequence[T]) -> bool:
        """Whether the native matrix product takes these weights and is the faster one."""

    def rms_norm(self, x: T, w: T, eps: float) -> T:
        """Scale x to unit mean square over the last axis, then by w."""
        return self.apply(layers.RMS_NORM, x, w, eps=eps)[0]

    def layer_norm(self, x: T, w: T, eps: float) -> T:
        """Move x to mean 0 and variance 1 over the last axis, then scale by w."""
        return self.apply(layers.LAYER_NORM, x, w, eps=eps)[0]

    def head_norm(self, h: T, w: T, eps: float) -> T:
        """Return w * LayerNorm(h), normalised over DH within each head and flat."""
        return self.apply(layers.HEAD_NORM, h, w, eps=eps)[0]

    def head_norm_gate(self, h: T, o: T, w: T, eps: float) -> T:
        """Return sigmoid(o) * (w * LayerNorm(h)), normalised over DV within each head."""
        return self.apply(layers.HEAD_NORM_GATE, h, o, w, eps=eps)[0]

    def head_norm_skip_gate(self, h: T, c: T, z: T, w: T, skip: T, eps: float) -> T:
        """Return (w * LayerNorm(h) + skip * c) * silu(z), normalised over DV within each head."""
        return self.apply(layers.HEAD_NORM_SKIP_GATE, h, c, z, w, skip, eps=eps)[0]

    def linears(
        self, x: T, weights: Sequence[T], biases: Sequence[T | None] | None = None
    ) -> tuple[T, ...]:
        """Return x W^T + b of every weight (out, in) and bias (out,) or None; x (..., in)."""
        if not self.multiplies(weights):
            return self.plain.linears(x, weights, biases)
        biases = biases or [None] * len(weights)
        return tuple(self.apply(layers.LINEARS, x, *weights, *biases))

    def block_diagonal(
        self, x: T, weights: Sequence[T], biases: Sequence[T | None] | None = None
    ) -> tuple[T, ...]:
        """Map every slice of x by its block of each weight (G, out / G, in / G), add a bias."""
        small = all(ops.is_small_block(w.shape[1], w.shape[2]) for w in weights)
        if not (small or self.multiplies(weights)):
            return self.plain.block_diagonal(x, weights, biases)
        biases = biases or [None] * len(weights)
        return tuple(self.apply(layers.BLOCK_DIAGONAL, x, *weights, *biases))

    def causal_conv(
        self,
        x: T,
        w: T,
        b: T,
        *,
        state: T | None = None,
        starts: T | None = None,
        silu: bool,
    ) -> tuple[T, T]:
        """Convolve every channel of x (B, S, C) with its own K taps, w (C, 1, K)."""
        begins = None if starts is None else self.integers(starts, "uint8")
        y, last = self.apply(layers.CAUSAL_CONV, x, w, b, state, starts=begins, silu=silu)
        return y, last

    def activate(self, x: T, activation: str) -> T:
        """Return act(x)."""
        return self.apply(layers.ACTIVATE, x, activation=activation_name(activation))[0]

    def glu(self, gate: T, up: T, activation: str) -> T:
        """Return act(gate) * up."""
        return self.apply(layers.GLU, gate, up, activation=activation_name(activation))[0]

    def swiglu(self, gate: T, up: T) -> T:
        """Return silu(gate) * up."""
        return self.apply(layers.SWIGLU, gate, up)[0]

    def soft_cap(self, x: T, c: float) -> T:
        """Return c * tanh(x / c)."""
        return self.apply(layers.SOFT_CAP, x, cap=c)[0]

    def capped_cross_entropy(self, raw_logits: T, labels: T, cap: float | None) -> tuple[T, T]:
        """Sum the cross entropy in nats of the capped logits, and count the labels not -100."""
        targets = self.integers(labels, "int32")
        nats, count = self.apply(layers.CROSS_ENTROPY, raw_logits, labels=targets, cap=cap)
        return nats, count

    def rope(self, x: T, base: float, offset: T | None = None) -> T:
        """Turn the two halves of every head of x (B, S, NH, DH) against each other."""
        counts = None if offset is None else self.integers(offset, "int32")
        return self.apply(sequence.ROPE, x, base=base, offset=counts)[0]

    def attention(
        self, q: T, k: T, v: T, *, window: int | None = None, lengths: T | None = None
    ) -> T:
        """Attend from q (B, S, NH, DH) to the last keys up to each position of k, v."""
        counts = None if lengths is None else self.integers(lengths, "int32")
        return self.apply(sequence.ATTENTION, q, k, v, window=window, lengths=counts)[0]

    def long_conv(self, x: T, f: T) -> T:
        """Convolve every channel of x (B, S, C) with its own taps f (C, J), J >= S."""
        if x.shape[1] > ops.LONG_CONV_DIRECT:
            return self.plain.long_conv(x, f)  # by transforms
        return self.apply(layers.LONG_CONV, x, f)[0]

    def mlstm_cell(
        self,
        q: T,
        k: T,
        v: T,
        i: T,
        f: T,
        *,
        chunk_size: int,
        eps: float,
        state: Sequence[T] | None = None,
    ) -> tuple[T, tuple[T, T, T]]:
        """Run the cell over (B, S, NH, ...), any S, from `state` (C, n, m) or from zeros."""
        first = state or (None, None, None)
        settings = {"chunk_size": chunk_size, "eps": eps}
        h, C, n, m = self.apply(sequence.MLSTM, q, k, v, i, f, *first, **settings)
        return h, (C, n, m)

    def slstm_cell(
        self,
        i: T,
        f: T,
        z: T,
        o: T,
        R: T,
        b: T,
        *,
        state: Sequence[T] | None = None,
        starts: T | None = None,
    ) -> tuple[T, tuple[T, T, T, T]]:
        """Run the cell over (B, S, NH, DH), any S, from `state` (h, c, n, m) or from zeros."""
        first = state or (None, None, None, None)
        begins = None if starts is None else self.integers(starts, "uint8")
        h, h_last, c, n, m = self.apply(self.slstm, i, f, z, o, R, b, *first, starts=begins)
        return h, (h_last, c, n, m)

    def decay_cell(
        self,
        q: T,
        k: T,
        v: T,
        log_decay: T,
        *,
        scale: float,
        chunk_size: int,
        state: T | None = None,
    ) -> tuple[T, T]:
        """Run the recurrence over (B, S, NH, ...) from `state` (B, NH, DK, DV) or from zeros."""
        h, last = self.apply(sequence.DECAY, q, k, v, log_decay, state, scale=scale)
        return h, last

    def delta_cell(
        self,
        q: T,
        k: T,
        v: T,
        log_decay: T,
        beta: T,
        *,
        chunk_size: int,
        state: T | None = None,
    ) -> tuple[T, T]:
        """Run the rule over (B, S, NH, ...) from `state` (B, NH, DK, DV) or from zeros."""
        h, last = self.apply(sequence.DELTA, q, k, v, log_decay, beta, state)
        return h, last

    def selective_scan(
        self, u: T, dt: T, A: T, Bt: T, Ct: T, *, state: T | None = None
    ) -> tuple[T, T]:
        """Run the recurrence over u (B, S, C) from `state` (B, C, N) or from zeros."""
        y, last = self.apply(sequence.SCAN, u, dt, A, Bt, Ct, state)
        return y, last
