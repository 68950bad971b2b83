"""Multiply-adds by the formula are those that torch counts in the eager model, forward and back."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mlxhog.models import cells, families, lm
from mlxhog.models.ops.kernels import choose
from mlxhog.models.registry import load_architecture

SMALL = "num_hidden_layers=2,vocab_size=512"
S = 256


@pytest.mark.parametrize(
    ("name", "changes", "operators"),
    [
        ("160m", SMALL, {"mlstm_cell 4x96x192x64": 2}),
        ("160m", f"{SMALL},chunk_size=32", {"mlstm_cell 4x96x192x32": 2}),
        ("minute", None, {"mlstm_cell 4x16x32x64": 2}),  # its head is the embedding
        ("7to1-tiny", None, {
            "causal_conv 4x256": 7, "mlstm_cell 4x64x64x64": 7, "causal_conv 4x128": 1,
            "slstm_cell 4x32": 1,
        }),
    ],
)  # fmt: skip
def test_a_step_has_the_multiply_adds_that_torch_counts(name, changes, operators):
    model, ops = load_architecture(name, changes), choose("torch", "eager", "cpu")
    assert {str(cell): n for cell, n in cells.cells(model).items()} == operators
    with torch.device("meta"), FlopCounterMode(display=False) as counter:  # computes nothing
        spec = families.param_spec(model)
        params = {key: torch.empty(one.shape, requires_grad=True) for key, one in spec.items()}
        tokens = torch.ones(1, S, dtype=torch.int64)
        loss = lm.mean_loss(model, params, tokens, tokens, ops=ops)
        forward = counter.get_total_flops()
        loss.backward()
    backward = counter.get_total_flops() - forward
    assert forward / (2 * S) == pytest.approx(cells.multiply_adds(model), rel=0.02)
    assert backward == pytest.approx(cells.BACKWARD * forward, rel=0.01)
    assert cells.not_counted(model) == []
    assert cells.not_counted(load_architecture("mad-striped")) == ["gla", "mh-attention"]
