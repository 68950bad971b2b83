"""What MLX's modules promise beyond those of PyTorch: trees of parameters, files, compilation."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxhog.nn.mlx import SLSTM, XLSTMBlock
from tests.nn.package import official
from tests.nn.sides import KINDS, SIDES, draw
from tests.tolerances import LOGITS_F32, OP_F32, assert_close


@pytest.mark.parametrize("kind", KINDS)
def test_both_frameworks_have_the_same_names_and_compute_the_same(kind):
    torch, mlx = SIDES["torch"], SIDES["mlx"]
    theirs, ours = torch.kind(kind), mlx.kind(kind)
    assert torch.parameters(theirs).keys() == mlx.parameters(ours).keys()
    mlx.load(ours, torch.parameters(theirs))
    x = draw(3, 9, KINDS[kind][1][0])
    assert_close(mlx.run(ours, x)[0], torch.run(theirs, x)[0], LOGITS_F32)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = XLSTMBlock(16, cell="slstm", num_heads=2)
        self.head = nn.Linear(16, 16)

    def __call__(self, x):
        return self.head(self.rnn(x)[0])


def test_inside_a_model_it_trains_freezes_and_comes_back_from_a_file(tmp_path):
    mx.random.seed(0)
    model, x = Model(), mx.array(draw(4, 12, 16))
    model.rnn.xlstm_norm.freeze()
    model.rnn.xlstm.slstm_cell.freeze(keys="bias")
    before = dict(tree_flatten(model.parameters()))
    assert "rnn.xlstm.slstm_cell.recurrent_kernel" in before
    optimizer = optim.Adam(learning_rate=3e-3)

    def loss_of(model):
        return ((model(x)[:, 1:] - x[:, :-1]) ** 2).mean()

    losses = []
    for _ in range(30):
        loss, grads = nn.value_and_grad(model, loss_of)(model)
        optimizer.update(model, grads)
        mx.eval(model.parameters())
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    after = dict(tree_flatten(model.parameters()))
    moved = {name for name in after if not mx.array_equal(after[name], before[name])}
    assert moved == before.keys() - {"rnn.xlstm_norm.weight", "rnn.xlstm.slstm_cell.bias"}

    model.rnn.save_weights(str(tmp_path / "block.safetensors"))
    other = XLSTMBlock(16, cell="slstm", num_heads=2)
    other.load_weights(tmp_path / "block.safetensors")
    assert mx.array_equal(other(x)[0], model.rnn(x)[0])


def test_weights_that_do_not_fit_are_refused_by_name():
    layer = SIDES["mlx"].kind("slstm")
    entries = {name: x.numpy() for name, x in official("slstm").state_dict().items()}
    lacking = [(name, x) for name, x in entries.items() if name != "fgate.weight"]
    with pytest.raises(ValueError, match=r"Missing 1 parameters: \nfgate.weight"):
        layer.load_weights(lacking)
    with pytest.raises(ValueError, match=r"not in model: \ngate"):
        layer.load_weights([*entries.items(), ("gate", np.zeros(1))])
    layer.load_weights(lacking, strict=False)


def test_the_reference_kernels_may_be_transformed_and_native_ones_say_that_they_may_not():
    x = mx.array(draw(2, 5, 16))
    layer = SLSTM(16, 16, num_heads=2, kernels="reference")
    by_row = mx.vmap(lambda row: layer(row[None])[0][0])(x)
    assert_close(np.array(by_row), np.array(layer(x)[0]), OP_F32)
    native = SLSTM(16, 16, num_heads=2)
    with pytest.raises(ValueError, match="during function transformations"):
        mx.compile(lambda x: native(x)[0])(x)
