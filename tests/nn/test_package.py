"""The modules beside those of the xlstm package: names, output, every gradient."""

from functools import partial

import pytest
import torch
import xlstm
from xlstm.blocks.mlstm.block import mLSTMBlock
from xlstm.blocks.mlstm.layer import mLSTMLayer
from xlstm.blocks.slstm.block import sLSTMBlock
from xlstm.blocks.slstm.layer import sLSTMLayer
from xlstm.xlstm_large import model as large

from tests.checkpoint.formats.peers import NATIVE
from tests.models.operators import draw
from tests.nn.sides import SIDES, perturbed
from tests.tolerances import GRADIENT_F32, LOGITS_F32, assert_close

POSITIONS = 12
ROUNDED, ONE = {"round_proj_up_to_multiple_of": 8}, {"_num_blocks": 1, "_block_idx": 0}
MLSTM = xlstm.mLSTMLayerConfig(embedding_dim=16, num_heads=2, context_length=POSITIONS, **ROUNDED)


def slstm(**changes):
    types = [f"dtype{part}" for part in ("", "_b", "_r", "_w", "_g", "_s", "_a")]
    sizes = {"embedding_dim": 16, "num_heads": 2, "backend": "vanilla"}
    return xlstm.sLSTMLayerConfig(**sizes, **dict.fromkeys(types, "float32"), **changes)


def large_block(**changes):
    sizes = {"embedding_dim": 16, "num_heads": 2, "num_blocks": 1, "vocab_size": 1}
    sizes |= {"ffn_round_up_to_multiple_of": 8, **NATIVE, **changes}
    return large.mLSTMBlock(large.xLSTMLargeConfig(**sizes))


def slstm_block():
    ffn = xlstm.FeedForwardConfig(**ROUNDED)
    return sLSTMBlock(xlstm.sLSTMBlockConfig(slstm=slstm(), feedforward=ffn, **ONE))


OFFICIAL = {
    "mlstm": partial(mLSTMLayer, MLSTM),
    "slstm": lambda: sLSTMLayer(slstm()),
    "slstm-without-conv": lambda: sLSTMLayer(slstm(conv1d_kernel_size=0)),
    "mlstm-large": lambda: large_block().mlstm_layer,
    "mlstm-block": lambda: mLSTMBlock(xlstm.mLSTMBlockConfig(mlstm=MLSTM, **ONE)),
    "slstm-block": slstm_block,
    "large-block": large_block,
}
"""Makers of the package's modules, by the names of `KINDS`."""


def official(kind):
    """The package's module of the same sizes as that of `KINDS`, with noise on its parameters."""
    torch.manual_seed(1)
    module = OFFICIAL[kind]()
    state = {name: x.numpy() for name, x in module.state_dict().items()}
    module.load_state_dict({name: torch.tensor(x) for name, x in perturbed(state).items()})
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
