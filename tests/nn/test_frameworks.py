"""What the modules promise in PyTorch alone, such as the place of nn.LSTM, and in MLX alone."""

import copy
import pickle
import re
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn
import mlx.optimizers as optim
import numpy as np
import pytest
import torch
import xlstm
from mlx.utils import tree_flatten
from torch import nn
from xlstm.blocks.mlstm.block import mLSTMBlock
from xlstm.blocks.mlstm.layer import mLSTMLayer
from xlstm.blocks.slstm.block import sLSTMBlock
from xlstm.blocks.slstm.layer import sLSTMLayer
from xlstm.xlstm_large import model as large

import mlxhog.nn.mlx as ours_mlx
from mlxhog.errors import ConfigError
from mlxhog.nn.torch import MLSTM, SLSTM, detach
from tests.checkpoint.formats.peers import NATIVE
from tests.models.operators import draw
from tests.models.sample import perturbed
from tests.nn.sides import KINDS, SIDES
from tests.tolerances import GRADIENT_F32, LOGITS_F32, OP_F32, assert_close

PAGE = Path(__file__).parents[2] / "docs" / "layers.md"


def test_it_takes_and_gives_the_shapes_of_lstm():
    theirs, x = nn.LSTM(6, 16, 2, dropout=0.1), torch.randn(9, 4, 6)
    for ours in (SLSTM(6, 16, 2, dropout=0.1), MLSTM(6, 16, 2, dropout=0.1)):
        output, state = ours(x)
        assert output.shape == theirs(x)[0].shape == ours(x, state)[0].shape
        ours.flatten_parameters()
        for name in ("input_size", "hidden_size", "num_layers", "batch_first"):
            assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("side", ["torch", "torch-eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_it_computes_in_float32_from_inputs_of_16_bits(kind, side):
    layer = SIDES[side].kind(kind)
    x = torch.randn(2, 5, layer.input_size).bfloat16().requires_grad_()
    expected, end = layer(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        y, last = layer(x)
        again, _ = layer(x, last)
    assert y.dtype == again.dtype == last[0][0].dtype == torch.float32
    assert torch.equal(y, expected)
    assert all(map(torch.equal, last[0], end[0]))
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match=r"is torch.bfloat16, .* compute in float32"):
        layer.bfloat16()(x.float())


def test_a_copy_is_apart_a_state_is_never_written_and_detach_ends_the_gradient():
    layer, x = SIDES["torch"].kind("slstm"), torch.randn(2, 5, 16)
    expected = layer(x)[0]
    others = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    layer.reset_parameters()
    assert not torch.equal(layer(x)[0], expected)
    assert all(torch.equal(other(x)[0], expected) for other in others)
    layer = SIDES["torch"].kind("mlstm")
    first = x.clone().requires_grad_()
    _, state = layer(first)
    before = [part.clone() for part in state[0]]
    output, after = layer(x, state)
    (output.sum() + sum(part.sum() for part in after[0])).backward(retain_graph=True)
    assert all(map(torch.equal, state[0], before))
    assert first.grad.any()
    first.grad = None
    layer(x, detach(state))[0].sum().backward()
    assert first.grad is None
    assert detach(None) is None


def test_the_reference_kernels_have_second_derivatives_and_take_functional_transforms():
    def slope(layer):
        leaf = torch.randn(5, 2, 16, requires_grad=True)
        return torch.autograd.grad(layer(leaf)[0].square().sum(), leaf, create_graph=True)[0], leaf

    layer, x = SLSTM(16, 16, num_heads=2, kernels="eager"), torch.randn(5, 2, 16)
    first, leaf = slope(layer)
    assert torch.autograd.grad(first.sum(), leaf)[0].any()
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope(SLSTM(16, 16))[0].sum().backward()

    def loss(params):
        return torch.func.functional_call(layer, params, (x,))[0].square().sum()

    params = dict(layer.named_parameters())
    grads = torch.func.grad(loss)({name: p.detach() for name, p in params.items()})
    loss(params).backward()
    for name, p in params.items():
        assert_close(grads[name], p.grad, GRADIENT_F32, label=name)


def test_what_the_page_on_layers_shows_runs():
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names = {}
    exec(block, names)
    assert names["output"].shape == (4, 100, 64)


def test_inside_a_model_of_mlx_it_trains_freezes_and_comes_back_from_a_file(tmp_path):
    mx.random.seed(0)
    rnn, x = ours_mlx.XLSTMBlock(16, cell="slstm", num_heads=2), mx.array(draw(4, 12, 16))
    rnn.xlstm_norm.freeze()
    rnn.xlstm.slstm_cell.freeze(keys="bias")
    before = dict(tree_flatten(rnn.parameters()))
    assert "xlstm.slstm_cell.recurrent_kernel" in before

    def loss_of(rnn):
        return ((rnn(x)[0][:, 1:] - x[:, :-1]) ** 2).mean()

    _, grads = mlx.nn.value_and_grad(rnn, loss_of)(rnn)
    optim.Adam(learning_rate=3e-3).update(rnn, grads)
    after = dict(tree_flatten(rnn.parameters()))
    moved = {name for name in after if not mx.array_equal(after[name], before[name])}
    assert moved == before.keys() - {"xlstm_norm.weight", "xlstm.slstm_cell.bias"}
    rnn.save_weights(str(tmp_path / "block.safetensors"))
    other = ours_mlx.XLSTMBlock(16, cell="slstm", num_heads=2)
    other.load_weights(tmp_path / "block.safetensors")
    assert mx.array_equal(other(x)[0], rnn(x)[0])
    rounded = {name: w.astype(mx.bfloat16) for name, w in tree_flatten(rnn.parameters())}
    mx.save_safetensors(str(tmp_path / "bf16.safetensors"), rounded)
    other.load_weights(tmp_path / "bf16.safetensors")
    for name, w in tree_flatten(other.parameters()):
        assert w.dtype == mx.float32
        assert mx.array_equal(w, rounded[name])


def test_the_reference_kernels_may_be_transformed_and_native_ones_say_that_they_may_not():
    x = mx.array(draw(2, 5, 16))
    layer = ours_mlx.SLSTM(16, 16, num_heads=2, kernels="eager")
    by_row = mx.vmap(lambda row: layer(row[None])[0][0])(x)
    assert_close(np.array(by_row), np.array(layer(x)[0]), OP_F32)
    native = ours_mlx.SLSTM(16, 16, num_heads=2)
    with pytest.raises(ValueError, match="during function transformations"):
        mx.compile(lambda x: native(x)[0])(x)


POSITIONS = 12
ROUNDED, ONE = {"round_proj_up_to_multiple_of": 8}, {"_num_blocks": 1, "_block_idx": 0}
SIZES = {"embedding_dim": 16, "num_heads": 2}
OFFICIAL_MLSTM = xlstm.mLSTMLayerConfig(context_length=POSITIONS, **SIZES, **ROUNDED)


def slstm(**changes):
    types = [f"dtype{part}" for part in ("", "_b", "_r", "_w", "_g", "_s", "_a")]
    floats = dict.fromkeys(types, "float32")
    return xlstm.sLSTMLayerConfig(**SIZES, backend="vanilla", **floats, **changes)


def large_block(**changes):
    sizes = {**SIZES, "num_blocks": 1, "vocab_size": 1}
    sizes |= {"ffn_round_up_to_multiple_of": 8, **NATIVE, **changes}
    return large.mLSTMBlock(large.xLSTMLargeConfig(**sizes))


def slstm_block():
    ffn = xlstm.FeedForwardConfig(**ROUNDED)
    return sLSTMBlock(xlstm.sLSTMBlockConfig(slstm=slstm(), feedforward=ffn, **ONE))


OFFICIAL = {
    "mlstm": partial(mLSTMLayer, OFFICIAL_MLSTM),
    "slstm": lambda: sLSTMLayer(slstm()),
    "slstm-without-conv": lambda: sLSTMLayer(slstm(conv1d_kernel_size=0)),
    "mlstm-large": lambda: large_block().mlstm_layer,
    "mlstm-block": lambda: mLSTMBlock(xlstm.mLSTMBlockConfig(mlstm=OFFICIAL_MLSTM, **ONE)),
    "slstm-block": slstm_block,
    "large-block": large_block,
}
"""Makers of the package's modules, by the names of `KINDS`."""


def official(kind):
    """The package's module of the same sizes as that of `KINDS`, with noise on its parameters."""
    torch.manual_seed(1)
    module = OFFICIAL[kind]()
    state = {name: x.numpy() for name, x in module.state_dict().items()}
    module.load_state_dict({name: torch.tensor(x) for name, x in perturbed(state, 3, 0.2).items()})
    return module


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("kind", OFFICIAL)
def test_the_packages_state_dict_gives_its_output_and_every_gradient(side, kind):
    theirs, ours = official(kind), side.kind(kind)
    side.load(ours, {name: x.numpy() for name, x in theirs.state_dict().items()})
    x, dy = draw(3, POSITIONS, 16), draw(3, POSITIONS, 16, seed=1)
    leaf = torch.tensor(x).requires_grad_()
    expected = theirs(leaf)
    expected = expected[0] if isinstance(expected, tuple) else expected
    expected.backward(torch.tensor(dy))
    grads = side.grads(ours, x, dy)
    assert_close(side.run(ours, x)[0], expected.detach(), LOGITS_F32)
    named = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    assert grads.keys() == named.keys() | {"input"}
    for name, grad in (named | {"input": leaf.grad}).items():
        assert_close(grads[name], grad, GRADIENT_F32, label=name)


def test_fused_weights_of_xlstm_large_are_taken_apart():
    torch.manual_seed(0)
    theirs, ours = large_block(weight_mode="fused"), SIDES["torch"].kind("large-block")
    ours.load_state_dict(theirs.state_dict())
    x = torch.tensor(draw(2, POSITIONS, 16))
    assert_close(ours(x)[0].detach(), theirs(x)[0].detach(), LOGITS_F32)


def test_a_module_inside_a_model_loads_by_the_models_state_dict_and_names_what_does_not_fit():
    ours = torch.nn.ModuleDict({"rnn": SIDES["torch"].kind("slstm")})
    entries = {f"rnn.{name}": x for name, x in official("slstm").state_dict().items()}
    ours.load_state_dict(entries)
    assert list(ours.state_dict()) == list(entries)
    lacking = {name: x for name, x in entries.items() if name != "rnn.fgate.weight"}
    with pytest.raises(RuntimeError, match=r"Missing key.*rnn\.fgate\.weight"):
        ours.load_state_dict(lacking)
    layer, entries = SIDES["mlx"].kind("slstm"), official("slstm").state_dict()
    weights = [(name, x.numpy()) for name, x in entries.items()]
    with pytest.raises(ValueError, match=r"not in model: \ngate"):
        layer.load_weights([*weights, ("gate", weights[0][1])])
    layer.load_weights(weights[1:], strict=False)
