"""The operators in PyTorch with the cells and the convolution as Metal kernels; float32."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mlxhog.models.ops.metal.cells import MetalCells
from mlxhog.models.ops.reference.ops_torch import TorchPlainForm


class MetalForm(MetalCells, TorchPlainForm):
    """The operators on one engine: `mps` takes tensors as they are, the others NumPy arrays."""

    def enter(self, arrays: Sequence[Tensor]) -> list[Any]:
        """Return the engine's own arrays of detached tensors, row-major."""
        ready = [x.detach().contiguous() for x in arrays]
        return ready if self.engine.name == "mps" else [self.engine.array(x.numpy()) for x in ready]

    def leave(self, arrays: Sequence[Any]) -> tuple[Tensor, ...]:
        """Return the engine's results as tensors."""
        if self.engine.name == "mps":
            return tuple(arrays)
        return tuple(torch.from_numpy(self.engine.host(x)) for x in arrays)

    def conv(self, silu: bool, *inputs: Tensor) -> Tensor:
        """Return `conv_result`, differentiable."""
        y: Tensor = _Conv.apply(self, silu, *inputs)  # type: ignore[no-untyped-call]
        return y

    def mlstm(self, chunk: int, eps: float, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return h and the last C, n and m of `mlstm_results`, differentiable."""
        results: tuple[Tensor, ...] = _MLSTM.apply(  # type: ignore[no-untyped-call]
            self, chunk, eps, *inputs
        )
        return results

    def slstm(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return every h and the last c, n and m of `slstm_results`, differentiable."""
        results: tuple[Tensor, ...] = _SLSTM.apply(self, *inputs)  # type: ignore[no-untyped-call]
        return results


class _Conv(Function):
    @staticmethod
    def forward(ctx: Any, ops: MetalForm, silu: bool, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.ops, ctx.silu = ops, silu
        y: Tensor = ops.conv_result(silu, *inputs)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.ops.conv_gradients(ctx.silu, ctx.saved_tensors, dy), None


class _MLSTM(Function):
    @staticmethod
    def forward(
        ctx: Any, ops: MetalForm, chunk: int, eps: float, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        results = ops.mlstm_results(chunk, eps, inputs)
        ctx.save_for_backward(*inputs[:5], *results)
        ctx.set_materialize_grads(False)
        ctx.settings = ops, chunk, eps
        h, *states = results[:4]
        return h, *(x[:, :, -1].clone() for x in states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        ops, chunk, eps = ctx.settings
        inputs, results = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        h, *states = results[:4]
        d_last = _or_zeros(d_results, (h, *(x[:, :, 0] for x in states)))
        return None, None, None, *ops.mlstm_gradients(chunk, eps, inputs, results, d_last)


class _SLSTM(Function):
    @staticmethod
    def forward(ctx: Any, ops: MetalForm, *inputs: Tensor) -> tuple[Tensor, ...]:
        _, R, _, *state = inputs
        results = ops.slstm_results(inputs)
        ctx.save_for_backward(R, *state, *results)  # not G and bias: `pre` has them
        ctx.set_materialize_grads(False)
        ctx.ops = ops
        h, *states = results[:4]
        return h, *(x[:, -1].clone() for x in states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, results = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        h, *states = results[:4]
        d_last = _or_zeros(d_results, (h, *(x[:, 0] for x in states)))
        return None, *ctx.ops.slstm_gradients(inputs, results, d_last), None


def _or_zeros(grads: Sequence[Tensor | None], likes: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients, zeros for those of results that were not used."""
    pairs = zip(grads, likes, strict=True)
    return [torch.zeros_like(like) if grad is None else grad for grad, like in pairs]
