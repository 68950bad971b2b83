"""The array functions of `arrays.py` in PyTorch; those that are not defined here are its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlxhog.base.mapped import BFLOAT16
from mlxhog.models.ops.frozen import FrozenWeight

framework = "torch"
_DTYPES = {"float32": torch.float32, "int32": torch.int32}


def _options(dtype: str, like: Tensor | None) -> dict[str, Any]:
    """Return dtype and device of a new array; float32 is float64 beside arrays of the reference."""
    is_float64 = dtype == "float32" and like is not None and like.dtype == torch.float64
    device = None if like is None else like.device
    return {"dtype": torch.float64 if is_float64 else _DTYPES[dtype], "device": device}


def _numpy(x: Tensor) -> Any:
    x = x.detach().cpu()
    is_bf16 = x.dtype == torch.bfloat16  # NumPy and torch exchange it as integers
    return x.view(torch.int16).numpy().view(BFLOAT16) if is_bf16 else x.numpy()


def _from_numpy(x: Any, *, like: Tensor | None = None) -> Tensor:
    if x.dtype == BFLOAT16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    options = _options("float32", like)
    must_cast = x.dtype == np.float64 and options["dtype"] == torch.float32
    return torch.from_numpy(x.astype(np.float32) if must_cast else x).to(options["device"])


def _dequantize(w: FrozenWeight, like: Tensor) -> Tensor:
    first: Tensor
    first, *affine = w.parts
    if not affine:
        return first.to(like.dtype)
    # Rounded scales and offsets would have errors relative to a group's range, not to a weight.
    dtype = torch.promote_types(like.dtype, torch.float32)
    scales, offsets = (part.to(dtype)[..., None] for part in affine)
    q = first.view(torch.uint8)
    if w.bits == 4:
        q = torch.stack([q & 15, q >> 4], -1).flatten(-2)
    q = q.reshape(*scales.shape[:-1], -1).to(dtype)
    return torch.addcmul(offsets, q, scales).flatten(-2).to(like.dtype)


def _embedding(table: Tensor | FrozenWeight, tokens: Tensor) -> Tensor:
    if isinstance(table, FrozenWeight):
        return _dequantize(table[tokens], torch.zeros(()))
    return F.embedding(tokens, table)


def _bounded(x: Tensor, bound: Tensor | float) -> Tensor:
    return torch.maximum(x, bound) if isinstance(bound, Tensor) else x.clamp(min=bound)


def _along(
    function: Callable[[Tensor, int], Tensor], x: Tensor, axis: int, reverse: bool
) -> Tensor:
    return function(x.flip(axis), axis).flip(axis) if reverse else function(x, axis)


def _linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    if w.ndim == 2:
        return F.linear(x, w, b)
    y = x @ w.mT
    return y if b is None else y + b


class _CustomOp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, forward: Callable[..., Any], backward: Callable[..., Any], *inputs: Tensor | None
    ) -> tuple[Tensor, ...]:
        results, saved = forward(*inputs)
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        ctx.gradient = backward
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        _, _, *needs = ctx.needs_input_grad
        grads: Sequence[Tensor | None] = ()
        if any(x is not None for x in d_results):  # else nothing depends on the results
            grads = ctx.gradient(ctx.saved_tensors, d_results, needs)
        return None, None, *grads, *[None] * (len(needs) - len(grads))


def needs_gradient(inputs: Sequence[Tensor | None]) -> bool:
    """Whether autograd will differentiate a function of these inputs."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def custom_op(
    forward: Callable[..., Any], backward: Callable[..., Any], *inputs: Tensor | None
) -> tuple[Tensor, ...]:
    """Return the results of an operator (forward, backward), differentiable once.

    Where no input needs a gradient, nothing is saved for it.

    Args:
        forward: (*inputs) -> (results, the tensors saved for `backward`).
        backward: (saved, d_results, needs) -> gradients of the leading inputs. A d_result is None
            if nothing used the result; `needs` says which inputs need a gradient.
        inputs: tensors, or None for absent ones.
    """
    if not needs_gradient(inputs):
        return tuple(forward(*inputs)[0])
    results: tuple[Tensor, ...] = _CustomOp.apply(  # type: ignore[no-untyped-call]
        forward, backward, *inputs
    )
    return results


def _with_gradient(x: Tensor, gradient: Callable[..., Tensor], *constants: Tensor) -> Tensor:
    return custom_op(
        lambda x, *constants: ((x.view_as(x),), constants),
        lambda constants, dy, _: (gradient(*dy, *constants),),
        x,
        *constants,
    )[0]


def _recompute(
    function: Callable[..., Tensor], again: Callable[..., Tensor], *inputs: Tensor, evaluates: bool
) -> Tensor:
    """See `Arrays`; `torch.utils.checkpoint` would import torch._dynamo: 1.4 s and 74 MB."""

    def backward(
        inputs: Sequence[Tensor], d_results: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        pairs = zip(inputs, needs, strict=True)
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_(need) for x, need in pairs]
            y = again(*leaves)
        needed = [x for x in leaves if x.requires_grad]
        grads = torch.autograd.grad(y, needed, d_results, allow_unused=True)
        # Copies: among the freed activations the gradients of weights would fragment the memory.
        copies = iter([None if grad is None else grad.clone() for grad in grads])
        return [next(copies) if need else None for need in needs]

    return custom_op(lambda *x: ((function(*x),), x), backward, *inputs)[0]


def _value_and_grad(
    function: Callable[[Mapping[str, Tensor]], Tensor], arrays: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {name: x.detach() for name, x in arrays.items()}
    floats = {name: x.requires_grad_() for name, x in leaves.items() if x.is_floating_point()}
    with torch.enable_grad():  # also in the forward pass of a custom op
        value = function(leaves)
    how: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    grads = torch.autograd.grad(value, list(floats.values()), **how)
    return value, dict(zip(floats, grads, strict=True))


def _vjp(
    function: Callable[..., Sequence[Tensor]],
    arrays: Sequence[Tensor],
    d_results: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in arrays]
        pairs = zip(function(*leaves), d_results, strict=True)
        results, grads = zip(*(pair for pair in pairs if pair[1] is not None), strict=True)
        own = [x for x in leaves if x.requires_grad]
        found = iter(torch.autograd.grad(results, own, grads, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in leaves]


def _split(x: Tensor, parts: int | Sequence[int], axis: int = 0) -> Sequence[Tensor]:
    return x.tensor_split(parts if isinstance(parts, int) else tuple(parts), axis)


def _pad(x: Tensor, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    return F.pad(x, [width for pair in reversed(widths) for width in pair], value=value)


_OWN: dict[str, Callable[..., Any]] = {
    "zeros": lambda shape, dtype="float32", *, like=None: torch.zeros(
        tuple(shape), **_options(dtype, like)
    ),
    "full": lambda shape, value, dtype="float32", *, like=None: torch.full(
        tuple(shape), value, **_options(dtype, like)
    ),
    "arange": lambda start, stop, *, like=None: torch.arange(
        start, stop, device=None if like is None else like.device
    ),
    "from_numpy": _from_numpy,
    "numpy": _numpy,
    "row_major": lambda x: x.detach().contiguous(),
    "float32": lambda x: x if x.dtype == torch.float64 else x.float(),
    "int32": lambda x: x.int(),
    "bfloat16": lambda x: x.bfloat16(),
    "astype": lambda x, like: x.to(like.dtype),
    "log_sigmoid": F.logsigmoid,
    "softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "maximum": _bounded,
    "minimum": lambda x, bound: x.clamp(max=bound),
    "cumsum": lambda x, axis, *, reverse=False: _along(torch.cumsum, x, axis, reverse),
    "cummin": lambda x, axis, *, reverse=False: _along(
        lambda x, axis: x.cummin(axis).values, x, axis, reverse
    ),
    "cummax": lambda x, axis: x.cummax(axis).values,
    "sort": lambda x, axis=-1: x.sort(axis).values,
    "stop_gradient": lambda x: x.detach(),
    "depends": lambda x, others: x,
    "with_gradient": _with_gradient,
    "recompute": _recompute,
    "value_and_grad": _value_and_grad,
    "vjp": _vjp,
    "linear": _linear,
    "concatenate": lambda parts, axis=0: torch.cat(list(parts), axis),
    "unstack": lambda x, axis=0: x.unbind(axis),
    "split": _split,
    "halves": lambda w: w.halves() if isinstance(w, FrozenWeight) else w.chunk(2),
    "dequantize": _dequantize,
    "permute": torch.permute,
    "moveaxis": torch.movedim,  # its other name, moveaxis, is unknown to vmap
    "repeat": lambda x, times, axis: x.repeat_interleave(times, axis),
    "pad": _pad,
    "take_along_axis": lambda x, index, axis: x.gather(axis, index.long()),
    "take": lambda x, rows: x[list(rows)],
    "embedding": _embedding,
    "rfft": torch.fft.rfft,
    "irfft": torch.fft.irfft,
}


def __getattr__(name: str) -> Any:
    """Return a function of `_OWN`, else PyTorch's."""
    return globals().setdefault(name, _OWN[name] if name in _OWN else getattr(torch, name))
