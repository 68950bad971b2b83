"""A test of your own kernel: its values and gradients beside float64, docs/reference.md.

python -m pytest examples/test_my_kernel.py
"""

from typing import Any

import torch
from torch import Tensor

import mlxhog
from mlxhog.conformance.vectors.case import Case


def my_gla(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Gated linear attention, position by position: put your kernel here."""
    hs = []
    for t in range(q.shape[1]):
        S = log_decay[:, t, :, :, None].exp() * S + k[:, t, :, :, None] * v[:, t, :, None]
        hs.append((q[:, t, :, None] @ S).squeeze(2) * q.shape[-1] ** -0.5)
    return torch.stack(hs, 1), S


def mine(case: Case) -> dict[str, Any]:
    """Call the kernel on a test vector, and differentiate the loss by every input."""
    x = {name: torch.tensor(value, requires_grad=True) for name, value in case.inputs.items()}
    B, _, H, K = x["q"].shape
    first = x.get("state.S", torch.zeros(B, H, K, x["v"].shape[-1]))
    h, S = my_gla(x["q"], x["k"], x["v"], x["log_decay"], first)
    results = {"h": h, "state.S": S}
    loss = torch.stack([(results[n] * torch.tensor(dy)).sum() for n, dy in case.cotangents.items()])
    grads = torch.autograd.grad(loss.sum(), [*x.values()])
    arrays = {name: y.detach().numpy() for name, y in results.items()}
    return arrays | {f"grad.{name}": grad.numpy() for name, grad in zip(x, grads, strict=True)}


def test_my_gla_has_the_values_and_gradients_of_float64() -> None:
    """Its equations stand in every case: `case.text`."""
    report = mlxhog.parity("gla", sides={"mine": mine})
    assert report.ok, report.first_bad
