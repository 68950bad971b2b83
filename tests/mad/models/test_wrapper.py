"""The parts around the layers: position vectors, the auto-encoder, initial values."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from mlxhog.models import lm_float64
from mlxhog.models.families import init_params, param_spec
from mlxhog.models.layers import make
from mlxhog.models.mad.config import POSITIONS, MADConfig, sincos
from mlxhog.models.mad.sequence import parse
from tests.models.sample import batch, perturbed_params
from tests.models.twins import TWINS, assert_agreement
from tests.pairs import each_of
from tests.tolerances import FLOAT64, LOGITS_F32, assert_close

positions = each_of("position", POSITIONS)
backbones = each_of("backbone", ["language-model", "autoencoder"])


def example(S=12, **changes):
    """A model, its parameters, tokens and labels."""
    cfg = MADConfig(
        vocab_size=23, hidden_size=16, layers=parse("mlstm(h2) swiglu"), max_length=12, **changes
    )
    return cfg, perturbed_params(cfg, 1), *batch(cfg, 2, S, 2)


@positions
@backbones
def test_twins_are_the_reference_whole_and_in_pieces_and_agree_on_gradients(position, backbone):
    cfg, params, tokens, _ = example(position=position, backbone=backbone)
    expected, _ = lm_float64.logits(cfg, params, tokens)
    for side in TWINS.values():
        assert_close(side.logits(cfg, params, tokens)[0], expected, LOGITS_F32)
        if backbone == "language-model":  # positions go on where the state ends
            results, state = [], side.zero_state(cfg, 2)
            for piece in np.split(tokens, [5, 6], axis=1):
                logits, state = side.logits(cfg, params, piece, state)
                results.append(logits)
            assert_close(np.concatenate(results, 1), expected, LOGITS_F32)
    assert_agreement(*example(9, position=position, backbone=backbone))


def test_the_decoder_is_two_layers_of_exact_gelu_on_the_last_vector_and_a_place():
    cfg, params, tokens, _ = example(backbone="autoencoder")
    p = {name: torch.from_numpy(value).double() for name, value in params.items()}
    for last in ("layers.0.out_proj.weight", "layers.1.w3.weight"):
        params[last][...] = 0.0  # the encoder is the embedding

    def normed(x, name):
        return F.rms_norm(x, x.shape[-1:], p[f"{name}.weight"], cfg.norm_eps)

    x = p["embedding.weight"][tokens[:, -1:].astype(np.int64)]
    x = x + torch.from_numpy(sincos(12, cfg.hidden_size))
    for layer in ("decoder.0", "decoder.1"):
        u = normed(x, f"{layer}.norm")
        x = F.gelu(F.linear(u, p[f"{layer}.linear.weight"], p[f"{layer}.linear.bias"]))
    expected = F.linear(normed(x, "out_norm"), p["head.weight"], p["head.bias"])
    actual, _ = lm_float64.logits(cfg, params, tokens)
    assert_close(actual, expected, FLOAT64)


def model_of(*layers, **changes):
    items = tuple(map(make, layers))
    return MADConfig(vocab_size=512, hidden_size=64, layers=items, max_length=256, **changes)


@backbones
def test_the_wrapper_begins_normal_its_biases_at_0_and_a_language_models_head_as_a_linear_layer(
    backbone,
):
    params = init_params(model_of("swiglu", backbone=backbone, position="learned"), 1)
    own = {name: value for name, value in params.items() if not name.startswith("layers.")}
    assert {"embedding.weight", "position.weight", "head.weight", "head.bias"} <= own.keys()
    assert ("decoder.1.linear.weight" in own) == (backbone == "autoencoder")
    for name, value in own.items():
        if "norm" in name:
            assert (value == 1).all(), name
        elif name.startswith("head") and backbone == "language-model":
            bound = 1 / math.sqrt(64)  # torch.nn.Linear's, weight and bias
            assert 0.95 * bound < abs(value).max() <= bound, name
            assert abs(value.mean()) < 5 * bound / math.sqrt(3 * value.size), name
        elif name.endswith("bias"):
            assert not value.any(), name
        else:
            assert abs(value.mean()) < 5 * 0.02 / math.sqrt(value.size), name
            assert abs(value.std() / 0.02 - 1) < 5 / math.sqrt(2 * value.size), name


@each_of("position", ["none", "learned"])
def test_of_the_wrapper_the_maps_decay_and_no_embedding_norm_or_bias(position):
    spec = param_spec(model_of("swiglu", backbone="autoencoder", position=position))
    maps = {"decoder.0.linear.weight", "decoder.1.linear.weight", "head.weight"}
    decayed = {name for name in spec if spec[name].decay and not name.startswith("layers.")}
    assert decayed == maps
