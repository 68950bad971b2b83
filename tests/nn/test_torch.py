"""What PyTorch's modules promise beyond those of MLX: the place of nn.LSTM, training."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from mlxhog.nn.torch import MLSTM, SLSTM, detach
from tests.nn.sides import KINDS, SIDES
from tests.tolerances import GRADIENT_F32, assert_close

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.parametrize("make", [SLSTM, MLSTM])
def test_it_takes_and_gives_the_shapes_of_lstm(make):
    theirs, ours = nn.LSTM(6, 16, 2, dropout=0.1), make(6, 16, 2, dropout=0.1)
    x = torch.randn(9, 4, 6)
    assert ours(x)[0].shape == theirs(x)[0].shape == (9, 4, 16)
    output, state = ours(x)
    assert ours(x, state)[0].shape == output.shape
    ours.flatten_parameters()
    for name in ("input_size", "hidden_size", "num_layers", "batch_first"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_it_computes_in_float32_from_inputs_of_16_bits(kind, kernels):
    layer = SIDES["torch" if kernels == "native" else "torch-reference"].kind(kind)
    x = torch.randn(2, 5, layer.input_size).bfloat16().requires_grad_()
    expected, end = layer(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        y, last = layer(x)
        again, _ = layer(x, last)
    assert y.dtype == again.dtype == last[0][0].dtype == torch.float32
    assert torch.equal(y, expected)
    assert all(map(torch.equal, last[0], end[0]))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_copies_and_pickles_compute_the_same_and_are_apart():
    layer, x = SIDES["torch"].kind("slstm"), torch.randn(2, 5, 16)
    expected = layer(x)[0]
    others = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    layer.reset_parameters()
    assert not torch.equal(layer(x)[0], expected)
    for other in others:
        assert torch.equal(other(x)[0], expected)
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x)[0], layer(x)[0])


def test_a_state_is_never_written_and_detach_ends_the_gradient():
    layer, x = SIDES["torch"].kind("mlstm"), torch.randn(2, 5, 16)
    first = x.clone().requires_grad_()
    _, state = layer(first)
    before = [part.clone() for part in state[0]]
    output, after = layer(x, state)
    (output.sum() + sum(part.sum() for part in after[0])).backward(retain_graph=True)
    assert all(map(torch.equal, state[0], before))
    assert first.grad is not None
    assert first.grad.any()
    first.grad = None
    layer(x, detach(state))[0].sum().backward()
    assert first.grad is None


def test_the_reference_kernels_have_second_derivatives_and_take_functional_transforms():
    layer, x = SLSTM(16, 16, num_heads=2, kernels="reference"), torch.randn(5, 2, 16)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(layer(leaf)[0].square().sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), leaf)
    assert second.any()

    def loss(params):
        return torch.func.functional_call(layer, params, (x,))[0].square().sum()

    params = dict(layer.named_parameters())
    grads = torch.func.grad(loss)({name: p.detach() for name, p in params.items()})
    loss(params).backward()
    for name, p in params.items():
        assert_close(grads[name], p.grad, GRADIENT_F32, label=name)


def test_native_kernels_say_that_they_have_no_second_derivative():
    leaf = torch.randn(5, 2, 16, requires_grad=True)
    (slope,) = torch.autograd.grad(SLSTM(16, 16)(leaf)[0].square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_what_the_page_on_layers_shows_runs():
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names = {}
    exec(block, names)
    assert names["output"].shape == (4, 100, 64)
