"""Adapters: the loss of a model with merged weights, and the gradients that follow from its own."""

from dataclasses import replace
from itertools import product

import mlx.core as mx
import numpy as np
import pytest

from mlxhog.backends import frozen
from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.adapters import LoRA, is_adapter, merged
from mlxhog.models.layers import BUILT_IN
from mlxhog.models.mad.sequence import parse
from mlxhog.models.ops import arrays_mlx
from mlxhog.models.sampled_softmax import SampledSoftmax
from tests.backends.untrained import NAMES, batch, bound, values
from tests.models.sample import SMALLEST, config, v1_config

MODELS = {
    "candidate": replace(SMALLEST, layers=parse(" ".join(layer.name for layer in BUILT_IN))),
    "large": config(),
    "v1": v1_config(),
}
LORA = LoRA(rank=3, alpha=2.0)


def drawn(cfg, seed=5):
    """Parameters of a model with an adapter, whose B is not zero."""
    params = families.init_params(cfg, 0)
    rng = np.random.default_rng(seed)
    for name in filter(is_adapter, params):
        params[name] = rng.standard_normal(params[name].shape, np.float32) / 8
    return params


def whole(cfg, params):
    """The model without the adapter, and its merged parameters."""
    base = replace(cfg, adapter=None)
    spec = families.param_spec(base)
    return base, {name: merged(cfg.adapter, name, params[name], params) for name in spec}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("head", [None, SampledSoftmax(7, np.ones(SMALLEST.vocab_size))])
@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("family", MODELS)
def test_an_adapter_has_the_loss_and_the_gradients_of_the_merged_model(
    family, backend, head, recompute
):
    cfg = replace(MODELS[family], adapter=LORA)
    params, own = drawn(cfg), batch(2, 9)
    base, together = whole(cfg, params)
    how = {"head": head, "recompute": recompute}
    loss, grads = bound(backend, cfg, params, **how).loss_and_grads(own)
    expected, dense = bound(backend, base, together, **how).loss_and_grads(own)
    assert loss == pytest.approx(expected, rel=1e-6)
    grads, dense = values(grads), values(dense)
    assert grads.keys() == families.trainable_spec(cfg).keys()
    for name in families.frozen_names(cfg):
        stem = name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" not in grads:
            continue
        a, b = params[f"{stem}.lora_A.weight"], params[f"{stem}.lora_B.weight"]
        for part, right in ("A", b.T @ dense[name]), ("B", dense[name] @ a.T):
            found = grads[f"{stem}.lora_{part}.weight"]
            expected = LORA.scale * right
            assert np.linalg.norm(found - expected) <= 3e-3 * np.linalg.norm(expected), name


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        (LoRA(targets=("qq",)), "targets has 'qq', which no layer of this model is called"),
        (LoRA(rank=999), "rank 999 is above the smaller side of"),
        (LoRA(modules_to_save=("heads",)), "modules_to_save has 'heads'"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_what_would(adapter, says):
    with pytest.raises(ConfigError, match=says):
        families.param_spec(replace(SMALLEST, adapter=adapter))


WIDE = {"hidden_size": 64, "vocab_size": 48}
BASES = {
    "candidate": replace(MODELS["candidate"], **WIDE),
    "large": config(**WIDE),
    "tied": config(**WIDE, tie_word_embeddings=True),
    "v1": v1_config(embedding_dim=64, vocab_size=48),
}


def rounded(cfg, params, weights):
    """The parameters with the values that a format of the base has."""
    values = dict(params)
    for name in families.frozen_names(cfg):
        if frozen.is_reduced(cfg, name):
            weight = frozen.weight(cfg, params, name, weights)
            values[name] = np.array(arrays_mlx.dequantize(weight, mx.zeros(1)))
    return values


CASES = [
    *product(BASES, ["native"], ["bfloat16", "4bit"], [True]),
    *product(["large", "v1"], ["native"], ["8bit", "4bit"], [False]),
    *product(["large", "v1"], ["eager"], ["bfloat16", "8bit", "4bit"], [False, True]),
    ("tied", "eager", "4bit", False),
    ("large", "metal-emulated", "4bit", True),
]


@pytest.mark.parametrize(("family", "kernels", "weights", "recompute"), CASES)
@pytest.mark.parametrize("backend", NAMES)
def test_a_base_of_few_bits_has_the_gradients_of_its_dequantized_weights(
    family, backend, kernels, weights, recompute
):
    cfg = replace(BASES[family], adapter=LORA)
    params, own = drawn(cfg), batch(2, 9)
    how = {"recompute": recompute, "kernels": kernels}
    loss, grads = bound(backend, cfg, params, weights=weights, **how).loss_and_grads(own)
    whole = rounded(cfg, params, weights)
    expected, same = bound(backend, cfg, whole, **how).loss_and_grads(own)
    assert loss == pytest.approx(expected, rel=1e-6)
    exact, _ = bound(backend, cfg, params, **how).loss_and_grads(own)
    assert loss != pytest.approx(exact, rel=1e-6)
    grads, same = values(grads), values(same)
    assert grads.keys() == families.trainable_spec(cfg).keys()
    for name, grad in same.items():
        assert np.linalg.norm(grads[name] - grad) <= 1e-3 * np.linalg.norm(grad), name
