"""The causal convolution as Metal kernels behind torch autograd; float32."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mlxhog.metal.engine import Engine
from mlxhog.models.ops import metal_conv
from mlxhog.models.ops.conv_torch import last_inputs, positions_back
from mlxhog.models.ops.metal_call_torch import enter, leave


def causal_conv(
    engine: Engine,
    x: Tensor,
    w: Tensor,
    b: Tensor,
    state: Tensor | None,
    starts: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Convolve every channel of x (B, S, C) with its own K taps, w (C, 1, K)."""
    B, S, K = *x.shape[:2], w.shape[-1]
    inputs = x.float() if state is None else torch.cat([state.float(), x.float()], 1)
    if starts is None:
        back = torch.full((B, S), K - 1, dtype=torch.int32, device=x.device)
    else:
        back = positions_back(starts, K)
    y: Tensor = _CausalConv.apply(  # type: ignore[no-untyped-call]
        engine, silu, inputs, w.float(), b.float(), back
    )
    padded = F.pad(inputs, (0, 0, max(0, K - 1 - inputs.shape[1]), 0))
    return y.to(x.dtype), last_inputs(padded[:, padded.shape[1] - (K - 1) :], starts)


class _CausalConv(Function):
    """The arrays of `metal_conv.py` -> y."""

    @staticmethod
    def forward(ctx: Any, engine: Engine, silu: bool, *arrays: Tensor) -> Tensor:
        ctx.save_for_backward(*arrays)
        ctx.engine, ctx.silu = engine, silu
        (y,) = leave(engine, [metal_conv.forward(engine, *enter(engine, arrays), silu=silu)])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        arrays = enter(ctx.engine, (*ctx.saved_tensors, dy))
        found = metal_conv.backward(ctx.engine, *arrays, silu=ctx.silu)
        return None, None, *leave(ctx.engine, found), None
