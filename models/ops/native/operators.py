"""The operators as native CPU kernels, for the arrays of either framework; float32 only.

Each is a custom op of `custom_ops.py`, which `adapter_torch.py` and `adapter_mlx.py` call.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlxhog._native import ops
from mlxhog.models.ops.arrays import Array, MatmulWeight
from mlxhog.models.ops.frozen import FrozenWeight
from mlxhog.models.ops.native import custom_ops
from mlxhog.models.ops.native.custom_ops import CustomOp, View, simple
from mlxhog.models.ops.operators import Ops, activation_name, is_frozen

ops.keep_freed_memory()

SETTINGS: Mapping[str, Callable[["NativeOps", Any], Any]] = {
    "activation": lambda _, name: activation_name(name),
    "reset_mask": lambda own, x: own.constant(x, "uint8"),
    **dict.fromkeys(("offset", "lengths", "labels"), lambda own, x: own.constant(x, "int32")),
    "log_inclusion": lambda own, x: own.constant(x, "float32"),
    "bfloat16": lambda own, _: own.rounds,
}
"""Conversions of settings for the kernels; arrays become views without a gradient."""


def native(op: CustomOp, arrays: str, **settings: Any) -> Any:
    """Return the operator, a method of `NativeOps`, that a custom op computes.

    Its arguments are the `arrays`, None if absent, then the settings with their defaults. A chunk
    size changes no result of the kernels.
    """
    names, known = arrays.split(), {*arrays.split(), *settings, "chunk_size"}

    def operator(self: "NativeOps", *positional: Any, **named: Any) -> Any:
        if unknown := named.keys() - known:
            raise TypeError(f"the operator has no argument {', '.join(unknown)}")
        arguments = settings | dict(zip((*names, *settings), positional, strict=False)) | named
        how = {name: arguments[name] for name in settings}
        how |= {name: SETTINGS[name](self, how[name]) for name in SETTINGS.keys() & settings}
        results = self.apply(op, *map(arguments.get, names), **how)
        return results[0] if len(results) == 1 else tuple(results)

    return operator


class NativeOps(Ops):
    """The operators as custom ops; those without a native kernel are eager."""

    slstm: CustomOp  # of the sLSTM cell, with saved or recomputed activations
    rounds = False  # whether it is mixed precision, see `mixed.py`
    is_unread = False  # see `unread`

    def _mixed(self) -> Ops:
        mixed = copy.copy(self)
        mixed.rounds = True
        return mixed

    def unread(self) -> Ops:
        other = copy.copy(self)
        other.is_unread = True
        return other

    def bfloat16(self, x: Array) -> Array:
        return self.xp.float32(self.xp.bfloat16(x))

    @abstractmethod
    def apply(self, op: CustomOp, *inputs: Array | None, **settings: Any) -> Sequence[Array]:
        """Call a custom op, differentiable in its inputs; an absent optional one is None."""

    @abstractmethod
    def constant(self, x: Array | None, dtype: str) -> View | None:
        """Return a view of x as a NumPy dtype, without a gradient; None for None."""

    @abstractmethod
    def uses_native_gemm(self, weights: Sequence[Array]) -> bool:
        """Whether the native matmul takes these weights and is the faster one."""

    rms_norm = native(simple("rms_norm"), "x w", eps=None)
    layer_norm = native(simple("layer_norm"), "x w", eps=None)
    head_norm_gate = native(simple("head_norm_gate", 1), "h o w", eps=None)
    head_norm_skip_gate = native(simple("head_norm_skip_gate", 2), "h c z w skip", eps=None)
    activate = native(simple("activate", setting="activation"), "x", activation=None)
    glu = native(simple("glu", setting="activation"), "gate up", activation=None)
    swiglu = native(simple("swiglu"), "gate up")
    _direct_conv = native(simple("long_conv"), "x f")
    soft_cap = native(custom_ops.SOFT_CAP, "x", cap=None)
    rope = native(custom_ops.ROPE, "x", base=None, offset=None)
    attention = native(custom_ops.ATTENTION, "q k v", window=None, lengths=None)
    recurrence = native(
        custom_ops.RECURRENCE,
        "q k v log_decay beta read removal state",
        scale=1.0,
        transpose_state=False,
    )
    regression_cell = native(custom_ops.REGRESSION, "q k log_decay ridge state", steps=None)
    selective_scan = native(custom_ops.SCAN, "u dt A Bt Ct state")
    capped_cross_entropy = native(
        custom_ops.CROSS_ENTROPY, "raw_logits", labels=None, cap=None, log_inclusion=None
    )
    _linear_cross_entropy = native(
        custom_ops.LINEAR_CROSS_ENTROPY,
        "x w",
        labels=None,
        cap=None,
        log_inclusion=None,
        bfloat16=None,
    )

    def head_norm(self, h: Array, w: Array, eps: float) -> Array:
        return self.layer_norm(h, w, eps).flatten(-2)

    def dense_linears(
        self, x: Array, weights: Sequence[Any], biases: Sequence[Any] | None = None
    ) -> Sequence[Array]:
        if not self.uses_native_gemm(weights):
            return super().dense_linears(x, weights, biases)
        op = custom_ops.UNREAD_LINEARS if self.is_unread else custom_ops.LINEARS
        return self._linears(op, x, weights, biases)

    def _linears(
        self, op: CustomOp, x: Array, weights: Sequence[Any], biases: Sequence[Any] | None
    ) -> Sequence[Array]:
        bfloat16 = [isinstance(w, MatmulWeight) for w in weights]
        arrays = [w.array if isinstance(w, MatmulWeight) else w for w in weights]
        biases = biases or [None] * len(weights)
        return self.apply(op, x, *arrays, *biases, bfloat16=bfloat16)

    def frozen_linears(self, x: Array, weights: Sequence[Any]) -> Sequence[Array]:
        return self._frozen_linears(custom_ops.FROZEN_LINEARS, x, weights)

    def _frozen_linears(self, op: CustomOp, x: Array, weights: Sequence[Any]) -> Sequence[Array]:
        how = {"bfloat16": [isinstance(w, MatmulWeight) for w in weights]}
        return self.apply(op, x, frozen=self._frozen(weights), **how)

    def _frozen(self, weights: Sequence[Any]) -> custom_ops.Frozen:
        """Return frozen weights as arguments of the kernels: views of their arrays."""
        own: list[FrozenWeight] = [w.array if isinstance(w, MatmulWeight) else w for w in weights]
        return custom_ops.frozen([w if w.on_host else w.on(self.xp.numpy) for w in own])

    def logits(self, x: Array, w: Any, b: Array | None) -> Array:
        if is_frozen(w):
            (y,) = self._frozen_linears(custom_ops.FROZEN_LOGITS, x, [w])
            return y if b is None else y + b
        if not self.uses_native_gemm([w]):
            return super().logits(x, w, b)
        return self._linears(custom_ops.LOGITS, x, [w], [b])[0]

    def block_diagonal(
        self, x: Array, weights: Sequence[Any], biases: Sequence[Any] | None = None
    ) -> Sequence[Array]:
        small = all(ops.is_small_block(w.shape[1], w.shape[2]) for w in weights)
        if not (small or self.uses_native_gemm(weights)):
            return super().block_diagonal(x, weights, biases)
        return self._linears(custom_ops.BLOCK_DIAGONAL, x, weights, biases)

    def causal_conv(
        self, x: Array, w: Array, b: Array | None, *, state: Array | None = None,
        reset_mask: Array | None = None, silu: bool,
    ) -> tuple[Array, Array]:  # fmt: skip
        how = {"reset_mask": self.constant(reset_mask, "uint8"), "silu": silu}
        how["bfloat16"] = self.rounds
        b = self.zeros_if_none(b, w[:, 0, 0])
        y, last = self.apply(custom_ops.CAUSAL_CONV, x, w, b, state, **how)
        return y, last

    def long_conv(self, x: Array, f: Array) -> Array:
        if x.shape[1] > ops.LONG_CONV_DIRECT:
            return super().long_conv(x, f)  # by Fourier transforms
        y: Array = self._direct_conv(x, f)
        return y

    def mlstm_cell(
        self,
        *x: Array,
        state: Sequence[Any] | None = None,
        reset_mask: Array | None = None,
        **how: Any,
    ) -> tuple[Array, Any]:
        how |= {"reset_mask": self.constant(reset_mask, "uint8"), "bfloat16": self.rounds}
        h, *last = self.apply(custom_ops.MLSTM, *x, *(state or [None] * 3), **how)
        return h, tuple(last)

    def slstm_cell(
        self, *x: Array, state: Sequence[Any] | None = None, reset_mask: Array | None = None
    ) -> tuple[Array, Any]:
        resets = self.constant(reset_mask, "uint8")
        h, *last = self.apply(self.slstm, *x, *(state or [None] * 4), reset_mask=resets)
        return h, tuple(last)

    def linear_cross_entropy(
        self, x: Array, w: Any, labels: Array, cap: float | None,
        log_inclusion: Array | None = None, bias: Array | None = None,
    ) -> tuple[Array, Array]:  # fmt: skip
        if bias is not None or not (is_frozen(w) or self.uses_native_gemm([w])):
            if isinstance(w, MatmulWeight):
                w = w.array if is_frozen(w) else self.bfloat16(w.array)
                x = self.bfloat16(x)
            return super().linear_cross_entropy(x, w, labels, cap, log_inclusion, bias)
        if is_frozen(w):
            how = {"frozen": self._frozen([w]), "bfloat16": isinstance(w, MatmulWeight), "cap": cap}
            how["labels"] = self.constant(labels, "int32")
            how["log_inclusion"] = self.constant(log_inclusion, "float32")
            nats, count = self.apply(custom_ops.FROZEN_CROSS_ENTROPY, x, **how)
            return nats, count
        w = w.array if isinstance(w, MatmulWeight) else w
        nats, count = self._linear_cross_entropy(x, w, labels, cap, log_inclusion)
        return nats, count
