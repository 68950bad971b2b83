"""Mixed precision (`--dtype bfloat16`): which values of a gradient are rounded to bfloat16.

The policy is the same for every implementation. Rounded, to the nearest or the even one, are

    linear layers with an `autocast` weight   both factors, and the result
    mlstm_cell, causal_conv                   the result, but no state
    the head                                  both factors, and not the logits

and in the backward pass the gradients of these results, as factors of its matmuls. All else is
float32: sums of products, parameters, their gradients and the optimizer's state, the residual
stream, norms, linear layers of gates and decays, the gates, the sLSTM, states, attention, the loss.
Operators compute in float32 whatever the type of their inputs.

Eager and Metal operators (`MixedOps`) keep rounded values in arrays of bfloat16, also for the
backward pass, where a layer lets them (`Layer.keeps_bf16`); their frameworks also round a product
before its bias is added, and the results of matmuls in the backward pass. Native operators keep the
same values in arrays of float32, and those of float64, the reference, in arrays of float64.

Source: Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740; the types of results
are chosen as in `torch.autocast`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from mlxhog.models.ops.arrays import Array, MatmulWeight
from mlxhog.models.ops.frozen import FrozenWeight

RECOMPUTED = ("activate", "glu", "swiglu", "head_norm_gate", "head_norm_skip_gate")
"""Operators of elements and heads, whose backward pass recomputes them from their inputs: what they
would save is float32, and more than the inputs."""


class MixedOps:
    """The operators of `ops` with the roundings of the policy."""

    def __init__(self, ops: Any, *, keeps_bf16: bool = False) -> None:
        self._ops, self.xp, self._keeps_bf16 = ops, ops.xp, keeps_bf16
        self._bf16 = self.xp.bfloat16(self.xp.zeros((1,))).dtype

    def keeping_bf16(self) -> "MixedOps":
        """Return the operators whose rounded results are arrays of bfloat16."""
        return MixedOps(self._ops, keeps_bf16=True)

    def unread(self) -> "MixedOps":
        """Return the operators: eager ones compute every result, or are lazy."""
        return self

    def __getattr__(self, name: str) -> Any:
        """Return an operator that computes in float32."""
        operator = getattr(self._ops, name)
        return self._recomputed(operator) if name in RECOMPUTED else self._in_float32(operator)

    def linears(
        self, x: Array, weights: Sequence[Any], biases: Sequence[Array | None] | None = None
    ) -> Sequence[Array]:
        """See `Ops.linears`."""
        return self._by_weight(self._ops.linears, x, weights, biases)

    def block_diagonal(
        self, x: Array, weights: Sequence[Any], biases: Sequence[Array | None] | None = None
    ) -> Sequence[Array]:
        """See `Ops.block_diagonal`."""
        return self._by_weight(self._ops.block_diagonal, x, weights, biases)

    def logits(self, x: Array, w: Any, b: Array | None) -> Array:
        """See `Ops.logits`."""
        return self._ops.logits(*self._factors(x, w), b)

    def linear_cross_entropy(self, x: Array, w: Any, *y: Any, **how: Any) -> tuple[Array, Array]:
        """See `Ops.linear_cross_entropy`."""
        nats, count = self._ops.linear_cross_entropy(*self._factors(x, w), *y, **how)
        return nats, count

    def mlstm_cell(self, *x: Array, **how: Any) -> tuple[Array, Any]:
        """See `MLSTMOps.mlstm_cell`."""
        h, state = self._typed("mlstm_cell")(*x, **how)
        return self._rounded(h), state

    def causal_conv(self, *x: Array, **how: Any) -> tuple[Array, Array]:
        """See `Ops.causal_conv`."""
        takes_bf16 = "causal_conv" in self._ops.takes_bf16
        operator = self._ops.causal_conv
        y, last = (operator if takes_bf16 else self._recomputed(operator))(*x, **how)
        return self._rounded(y), last

    # -- roundings --------------------------------------------------------------------------------

    def _by_weight(
        self, operator: Callable[..., Sequence[Array]], x: Array, weights: Sequence[Any],
        biases: Sequence[Array | None] | None,
    ) -> Sequence[Array]:  # fmt: skip
        """Return the results of linear layers: in bfloat16 of those with a `MatmulWeight`."""
        biases = biases or [None] * len(weights)
        ys: list[Any] = [None] * len(weights)
        rounded = [place for place, w in enumerate(weights) if isinstance(w, MatmulWeight)]
        exact = [place for place in range(len(weights)) if place not in rounded]
        if rounded:
            factors = [self._bf16_weight(weights[place].array) for place in rounded]
            products = operator(self._ops.bfloat16(x), factors)
            for place, y in zip(rounded, products, strict=True):
                b = biases[place]
                ys[place] = self._rounded(y if b is None else y + b)
        if exact:
            own = [weights[place] for place in exact], [biases[place] for place in exact]
            for place, y in zip(exact, operator(self._float32(x), *own), strict=True):
                ys[place] = y
        return ys

    def _factors(self, x: Array, w: Any) -> tuple[Array, Array]:
        """Return the factors of the logits, of bf16 values."""
        if not isinstance(w, MatmulWeight):
            return self._float32(x), w
        x = self.xp.float32(self._ops.bfloat16(x))
        w = self._bf16_weight(w.array)
        return x, w if isinstance(w, FrozenWeight) else self.xp.float32(w)

    def _bf16_weight(self, w: Array | FrozenWeight) -> Array | FrozenWeight:
        """Return a weight for x of bfloat16; operators convert a frozen one to the type of x."""
        return w if isinstance(w, FrozenWeight) else self._ops.bfloat16(w)

    def _rounded(self, y: Array) -> Array:
        y = self._ops.bfloat16(y)
        return y if self._keeps_bf16 else self.xp.float32(y)

    # -- types ------------------------------------------------------------------------------------

    def _float32(self, x: Any) -> Any:
        """Return an argument in float32: an array, some of them, or anything else as it is."""
        if isinstance(x, tuple | list):
            return [self._float32(one) for one in x]
        return self.xp.float32(x) if hasattr(x, "dtype") and x.dtype == self._bf16 else x

    def _typed(self, name: str) -> Callable[..., Any]:
        """Return an operator, in float32 unless it takes bfloat16 itself."""
        operator: Callable[..., Any] = getattr(self._ops, name)
        return operator if name in self._ops.takes_bf16 else self._in_float32(operator)

    def _in_float32(self, operator: Any) -> Any:
        if not callable(operator):
            return operator

        def call(*x: Any, **how: Any) -> Any:
            named = {name: self._float32(value) for name, value in how.items()}
            return operator(*map(self._float32, x), **named)

        return call

    def _recomputed(self, operator: Callable[..., Any]) -> Callable[..., Any]:
        """Return an operator in float32 that saves its inputs alone, if one is bfloat16."""
        in_float32 = self._in_float32(operator)

        def call(*x: Any, **how: Any) -> Any:
            values: dict[Any, Any] = dict(enumerate(x)) | how
            arrays = {key: value for key, value in values.items() if _is_float(value)}
            if all(value.dtype != self._bf16 for value in arrays.values()):
                return operator(*x, **how)
            is_single = True

            def function(*own: Array) -> Sequence[Array]:
                nonlocal is_single
                now = values | dict(zip(arrays, own, strict=True))
                positional = [now.pop(place) for place in range(len(x))]
                ys = in_float32(*positional, **now)
                is_single = not isinstance(ys, tuple)
                return (ys,) if is_single else ys

            def backward(saved: Any, d_results: Any, _: object) -> Sequence[Array]:
                grads: Sequence[Array] = self.xp.vjp(function, saved, d_results)
                return grads

            def forward(*own: Array) -> tuple[Sequence[Array], Sequence[Array]]:
                return function(*own), own

            results = self.xp.custom_op(forward, backward, *arrays.values())
            return results[0] if is_single else tuple(results)

        return call


def _is_float(x: Any) -> bool:
    return hasattr(x, "dtype") and "float" in str(x.dtype)
