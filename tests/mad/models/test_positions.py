"""Vectors of positions, learned or of sines, and the auto-encoder that answers from one vector."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mlxhog.models import lm_numpy
from mlxhog.models.mad import MADConfig, param_spec
from mlxhog.models.mad.model import sincos
from mlxhog.models.mad.sequence import parse
from tests.models.sample import batch, perturbed_params
from tests.models.twins import TWINS
from tests.tolerances import FLOAT64, GRADIENT_ANY_F32, LOGITS_F32, assert_close

twins = pytest.mark.parametrize("name", TWINS)
positions = pytest.mark.parametrize("position", ["none", "learned", "sincos"])
backbones = pytest.mark.parametrize("backbone", ["language-model", "autoencoder"])


def config(**changes: Any) -> MADConfig:
    return MADConfig(
        vocab_size=23, hidden_size=16, layers=parse("mlstm(h2) swiglu"), max_length=12, **changes
    )


@twins
@positions
@backbones
def test_a_twin_computes_what_the_reference_does(name: str, position: str, backbone: str) -> None:
    cfg = config(position=position, backbone=backbone)
    params, (tokens, _) = perturbed_params(cfg, 1), batch(cfg, 2, 12, 2)
    wanted, _ = lm_numpy.forward(cfg, params, lm_numpy.embed(cfg, params, tokens))
    assert_close(TWINS[name].logits(cfg, params, tokens)[0], wanted, LOGITS_F32)


@positions
@backbones
def test_all_twins_agree_on_every_gradient(position: str, backbone: str) -> None:
    cfg = config(position=position, backbone=backbone)
    params, (tokens, labels) = perturbed_params(cfg, 1), batch(cfg, 2, 9, 2)
    found = {
        name: side.loss_and_grads(cfg, params, tokens, labels)[1] for name, side in TWINS.items()
    }
    wanted = found.pop("torch-reference")
    for grads in found.values():
        for name in param_spec(cfg):
            assert_close(grads[name], wanted[name], GRADIENT_ANY_F32, label=name)


@twins
@positions
def test_positions_go_on_where_the_state_ends(name: str, position: str) -> None:
    cfg, side = config(position=position), TWINS[name]
    params, (tokens, _) = perturbed_params(cfg, 1), batch(cfg, 2, 12, 2)
    wanted, _ = side.logits(cfg, params, tokens)
    found, state = [], side.zero_state(cfg, 2)
    for piece in np.split(tokens, [5, 6], axis=1):
        logits, state = side.logits(cfg, params, piece, state)
        found.append(logits)
    assert_close(np.concatenate(found, 1), wanted, LOGITS_F32)


def test_the_decoder_is_two_layers_of_exact_gelu_on_the_last_vector_and_a_place() -> None:
    cfg = config(backbone="autoencoder")
    params, (tokens, _) = perturbed_params(cfg, 1), batch(cfg, 2, 12, 2)
    p = {name: torch.from_numpy(value).double() for name, value in params.items()}
    for last in ("layers.0.out_proj.weight", "layers.1.w3.weight"):
        params[last][...] = 0.0  # the encoder is the embedding

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], p[f"{name}.weight"], cfg.norm_eps)

    x = p["embedding.weight"][tokens[:, -1:].astype(np.int64)]
    x = x + torch.from_numpy(sincos(12, cfg.hidden_size))
    for layer in ("decoder.0", "decoder.1"):
        u = normed(x, f"{layer}.norm")
        x = F.gelu(F.linear(u, p[f"{layer}.linear.weight"], p[f"{layer}.linear.bias"]))
    wanted = F.linear(normed(x, "out_norm"), p["head.weight"], p["head.bias"])
    found, _ = lm_numpy.forward(cfg, params, lm_numpy.embed(cfg, params, tokens))
    assert_close(found, wanted, FLOAT64)


@twins
def test_every_output_of_an_autoencoder_depends_on_the_last_token(name: str) -> None:
    cfg, side = config(backbone="autoencoder"), TWINS[name]
    params, (tokens, _) = perturbed_params(cfg, 1), batch(cfg, 1, 12, 2)
    before, _ = side.logits(cfg, params, tokens)
    tokens[0, -1] = (tokens[0, -1] + 1) % cfg.vocab_size
    after, _ = side.logits(cfg, params, tokens)
    assert (np.abs(after - before).max(-1) > 1e-3).all()
