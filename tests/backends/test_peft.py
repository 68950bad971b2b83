"""Training an adapter: loss, gradients and steps are those of PEFT, and of a whole model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from mlxhog import arena
from mlxhog.checkpoint import formats
from mlxhog.checkpoint.formats import peft
from mlxhog.data.batch import Batch
from mlxhog.models import families, lm_float64
from mlxhog.models.adapters import A, B, LoRA, merged
from mlxhog.optim import SGD, AdamW, UpdateTarget
from mlxhog.optim.rule import parameter
from tests.backends.untrained import NAMES, bound, values
from tests.checkpoint.formats import peers
from tests.models.sample import config, perturbed, v1_config
from tests.tolerances import FLOAT64, GRADIENT_ANY_F32, LOSS_F32, Tolerance, assert_close

# PEFT 0.21 asks transformers 5.24 by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LR, STEPS = 0.05, 3
STEP_F32 = Tolerance(of_largest=2e-3)
"""Of how far three steps move a matrix: as GRADIENT_F32, of which the steps consist."""
OPTIMIZERS = {
    "sgd": (SGD(weight_decay=0.1), torch.optim.SGD, {}),
    "adamw": (
        # eps is of the gradients' size: else AdamW takes the sign of those that are rounding alone
        AdamW(beta1=0.9, beta2=0.95, eps=1e-3, weight_decay=0.1),
        torch.optim.AdamW,
        {"betas": (0.9, 0.95), "eps": 1e-3},
    ),
}


def batches(vocabulary, n, shape=(2, 32)):
    rng = np.random.default_rng(0)
    for _ in range(n):
        x = rng.integers(0, vocabulary, shape, dtype=np.int32)
        yield Batch(x, np.roll(x, -1, axis=1), n_bytes=x.size)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    peers.transformers_model(mode="train").save_pretrained(folder)
    return folder


def theirs(base, **changed):
    """A model of transformers with an adapter of PEFT, and its trained parameters by our names."""
    options = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"}
    options |= {"target_modules": ["q", "v", "out_proj", "proj_up", "proj_down"]}
    model = peers.xLSTMForCausalLM.from_pretrained(base)
    model = get_peft_model(model, LoraConfig(**options | changed))
    rng, trained = np.random.default_rng(1), {}
    for name, leaf in model.named_parameters():
        if leaf.requires_grad:
            ours = name.removeprefix(peft.PREFIX).replace(".default", "")
            trained[ours.replace(".modules_to_save", "")] = leaf
            if "lora_B" in name:
                leaf.data = torch.tensor(rng.standard_normal(leaf.shape, np.float32) / 8)
    return model, trained


def their_loss(model, batch):
    logits = model(torch.tensor(batch.x).long(), use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), torch.tensor(batch.y).long().flatten())


def opened(base, model, folder):
    """The same adapter, read by us, with its parameters in memory."""
    model.save_pretrained(folder)
    ours = formats.open(folder)
    return ours.config, {name: np.array(array) for name, array in ours.tensors.items()}


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_loss_and_gradients_are_pefts(tmp_path, base, backend, saved):
    model, trained = theirs(base, modules_to_save=saved)
    cfg, params = opened(base, model, tmp_path / "adapter")
    (batch,) = batches(50, 1)
    expected = their_loss(model, batch)
    expected.backward()
    loss, grads = bound(backend, cfg, params).loss_and_grads(batch)
    assert_close(loss, expected.item(), LOSS_F32)
    grads = values(grads)
    assert grads.keys() == trained.keys()
    for name, leaf in trained.items():
        assert leaf.grad.abs().max() > 1e-4
        assert_close(grads[name], leaf.grad.numpy(), GRADIENT_ANY_F32, label=name)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_three_steps_are_pefts(tmp_path, base, backend, optimizer):
    model, trained = theirs(base)
    cfg, params = opened(base, model, tmp_path / "adapter")
    rule, torchs, options = OPTIMIZERS[optimizer]
    stepper = torchs(trained.values(), lr=LR, weight_decay=0.1, **options)
    layout = arena.plan(families.trainable_spec(cfg), max_workers=1, n_tickets=1)
    flat = np.zeros(layout.n_floats, np.float32)
    for name, slot in layout.slots.items():
        parameter(flat, slot)[...] = params[name]
    target = UpdateTarget.alone(rule, flat, layout.slots, frozenset(trained))
    own = bound(backend, cfg, params)
    for step, batch in enumerate(batches(50, STEPS), 1):
        own.copy_in(flat)
        loss, grads = own.loss_and_grads(batch)
        stepper.zero_grad()
        expected = their_loss(model, batch)
        expected.backward()
        assert_close(loss, expected.item(), LOSS_F32)
        rule.step(target, grads, lr=LR, step=step)
        stepper.step()
    for name, leaf in trained.items():
        moved = parameter(flat, layout.slots[name]) - params[name]
        assert np.abs(moved).max() > 1e-4
        assert_close(moved, leaf.detach().numpy() - params[name], STEP_F32, label=name)


@pytest.mark.parametrize("cfg", [v1_config(), config(use_bias=True)], ids=["v1", "large"])
def test_the_gradients_are_those_of_float64(cfg):
    cfg = replace(cfg, adapter=LoRA(rank=3, alpha=5.0))
    params = perturbed(families.init_params(cfg, 0), 1)
    (batch,) = batches(23, 1, (2, 9))
    expected, exact = lm_float64.differentiate(cfg, params, batch.x, batch.y)
    for backend in NAMES:
        loss, grads = bound(backend, cfg, params).loss_and_grads(batch)
        assert_close(loss, expected, LOSS_F32)
        for name, grad in values(grads).items():
            assert_close(grad, exact[name], GRADIENT_ANY_F32, label=name)


@pytest.mark.parametrize("cfg", [v1_config(), config()], ids=["v1", "large"])
def test_a_step_with_the_identity_as_a_is_one_of_the_whole_model(cfg):
    """With A = I, B = 0 and alpha = rank, W + B A moves as W does: they have one gradient."""
    spec = families.param_spec(cfg)
    d = cfg.hidden_size
    targets = [
        one.name.removesuffix(".weight")
        for one in spec.values()
        if one.autocast and one.name.startswith(("backbone.blocks.", "xlstm_block_stack.blocks."))
        if len(one.shape) == 2 and one.shape[1] == d <= one.shape[0]
    ]
    assert targets
    adapted = replace(cfg, adapter=LoRA(rank=d, alpha=float(d), targets=tuple(targets)))
    params = perturbed(families.init_params(cfg, 0), 1)
    for name, one in families.trainable_spec(adapted).items():
        params[name] = np.eye(d) if name.endswith(A) else np.zeros(one.shape)
    (batch,) = batches(23, 1, (2, 9))
    whole = {name: params[name].astype(np.float64) for name in spec}
    loss, grads = lm_float64.differentiate(cfg, whole, batch.x, batch.y)
    own, of_adapter = lm_float64.differentiate(adapted, params, batch.x, batch.y)
    assert_close(own, loss, FLOAT64)
    stepped = {
        name: array - LR * of_adapter[name] if name.endswith(B) else array
        for name, array in params.items()
    }
    for stem in targets:
        name = f"{stem}.weight"
        assert np.abs(grads[name]).max() > 1e-4
        w, b, a = (
            stepped[f"{stem}{end}"] for end in (".weight", ".lora_B.weight", ".lora_A.weight")
        )
        assert_close(w + b @ a, whole[name] - LR * grads[name], FLOAT64, label=name)
        assert_close(merged(adapted.adapter, name, w, stepped), w + b @ a, LOSS_F32, label=name)
    assert not any(of_adapter[f"{stem}{A}"].any() for stem in targets)
