"""The modules beside those of the xlstm package: names, output, every gradient, states."""

import pytest
import torch

from tests.nn.package import POSITIONS, large_config, official
from tests.nn.sides import SIDES, draw
from tests.tolerances import GRADIENT_F32, LOGITS_F32, assert_close

OFFICIAL = (
    "mlstm", "slstm", "slstm-without-conv", "mlstm-large",
    "mlstm-block", "slstm-block", "large-block",
)  # fmt: skip
sides = pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)


@sides
@pytest.mark.parametrize("kind", OFFICIAL)
def test_the_packages_state_dict_gives_its_output_and_every_gradient(side, kind):
    theirs, ours = official(kind), side.kind(kind)
    side.load(ours, {name: x.numpy() for name, x in theirs.state_dict().items()})
    x, dy = draw(3, POSITIONS, 16), draw(3, POSITIONS, 16, seed=1)

    leaf = torch.tensor(x).requires_grad_()
    expected = theirs(leaf)
    expected = expected[0] if isinstance(expected, tuple) else expected
    expected.backward(torch.tensor(dy))
    actual, _ = side.run(ours, x)
    grads = side.grads(ours, x, dy)

    assert_close(actual, expected.detach(), LOGITS_F32)
    named = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    assert grads.keys() == named.keys() | {"input"}
    for name, grad in named.items():
        assert_close(grads[name], grad, GRADIENT_F32, label=name)
    assert_close(grads["input"], leaf.grad, GRADIENT_F32, label="input")


def test_fused_weights_of_xlstm_large_are_taken_apart():
    from xlstm.xlstm_large.model import mLSTMBlock

    torch.manual_seed(0)
    theirs = mLSTMBlock(large_config(weight_mode="fused"))
    ours = SIDES["torch"].kind("large-block")
    ours.load_state_dict(theirs.state_dict())
    x = torch.tensor(draw(2, POSITIONS, 16))
    assert_close(ours(x)[0].detach(), theirs(x)[0].detach(), LOGITS_F32)


def test_a_module_inside_a_model_loads_by_the_models_state_dict():
    ours = torch.nn.ModuleDict({"rnn": SIDES["torch"].kind("slstm")})
    entries = {f"rnn.{name}": x for name, x in official("slstm").state_dict().items()}
    ours.load_state_dict(entries)
    assert list(ours.state_dict()) == list(entries)
    lacking = {name: x for name, x in entries.items() if name != "rnn.fgate.weight"}
    with pytest.raises(RuntimeError, match=r"Missing key.*rnn\.fgate\.weight"):
        ours.load_state_dict(lacking)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*rnn\.gate"):
        ours.load_state_dict({**entries, "rnn.gate": torch.zeros(1)})
