"""A language model of any family in float64: the reference of `lm`, by the same code.

Its cells run position by position (`ops/eager/ops_float64.py`), so it is slow; arrays are NumPy's.
Gradients are PyTorch's. Recorded outputs of other packages, in the tests, show that the code
computes the published equations.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlxhog.models import families, lm
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.eager.ops_float64 import OPS, tensor
from mlxhog.models.ops.operators import Ops

Float = NDArray[np.float64]
Int = NDArray[np.integer]
Params = Mapping[str, NDArray[Any]]


def logits(
    cfg: ModelConfig, params: Params, tokens: Int, state: Any = None, *,
    hidden: list[Float] | None = None,
) -> tuple[Float, Any]:  # fmt: skip
    """Return the logits (B, S, V) of tokens (B, S), and the state, as `lm.logits`."""
    leaves, trace = {name: tensor(x) for name, x in params.items()}, list[Tensor]()
    state = state and [tuple(map(tensor, block)) for block in state]
    with torch.inference_mode():
        y, after = lm.logits(cfg, leaves, tensor(tokens), state, ops=OPS, hidden=trace)
    if hidden is not None:
        hidden += [x.numpy() for x in trace]
    return y.numpy(), [tuple(x.numpy() for x in block) for block in after]


def differentiate(
    cfg: ModelConfig, params: Params, tokens: Int, labels: Int, *, state: Any = None,
    masks: Mapping[str, NDArray[Any]] | None = None, rounded: bool = False, bf16: bool = False,
) -> tuple[float, dict[str, Float]]:  # fmt: skip
    """Return the mean loss of tokens (B, S), and the gradient of every parameter.

    The state before the tokens is a constant. With `rounded` all is computed in float32, which
    shows the effect of rounding; with `bf16` with the roundings of mixed precision.
    """
    dtype = torch.float32 if rounded else torch.float64
    state = state and [tuple(map(tensor, block)) for block in state]
    how: dict[str, Any] = {"state": state}
    how["masks"] = {site: tensor(x).to(dtype) for site, x in (masks or {}).items()} or None
    ids = tensor(tokens), tensor(labels).long()

    def mean_loss(leaves: Mapping[str, Tensor]) -> Tensor:
        ops: Ops = OPS
        if bf16:
            x = lm.embed(cfg, leaves, ids[0], OPS.xp)
            ops, leaves = ops.autocast(dict(leaves), families.matmul_weights(cfg))
            how["x"] = x
        loss: Tensor = lm.mean_loss(cfg, leaves, *ids, ops=ops, **how)
        return loss

    leaves = {name: tensor(x).to(dtype) for name, x in params.items()}
    loss, grads = OPS.xp.value_and_grad(mean_loss, leaves)
    return loss.item(), {name: x.double().numpy() for name, x in grads.items()}
