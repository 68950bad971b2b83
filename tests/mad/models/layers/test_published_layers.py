"""Mixers equal the published implementations, weight by weight.

Those in transformers are imported by the tests, since an import takes seconds and every process
collects tests. The outputs of those in flash-linear-attention 0.6.0, whose kernels need a GPU, were
recorded with its own naive functions in their place.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mlxhog.models.mad.layer import Run
from mlxhog.models.mad.sequence import parse
from mlxhog.models.ops.kernels import choose
from mlxhog.models.spec import initial_value
from tests.pairs import each_of
from tests.tolerances import LOGITS_F32, assert_close

B, S, D, H = 2, 21, 32, 4
FLA = Path(__file__).parent / "golden" / "fla_layers.npz"
Params = dict[str, Tensor]


def ours(text):
    """A layer's parameters, none of them at a special value, an input, and the output."""
    (layer,) = parse(text)
    rng = np.random.default_rng(0)
    params = {}
    for spec in layer.param_spec(D):
        noise = rng.normal(0, 0.1, spec.shape).astype(np.float32)
        params[spec.name] = torch.from_numpy(initial_value(spec, 0) + noise)
    x = torch.from_numpy(rng.standard_normal((B, S, D)).astype(np.float32))
    y, _ = layer.forward(params, x, layer.start(D), Run(choose("torch", "reference", "cpu")))
    return params, x, y


def theirs(module, weights, x, **more):
    module.load_state_dict(weights, strict=True)
    module.eval()
    with torch.no_grad():
        return module(x, **more)


def test_mamba_is_the_published_one():
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    p, x, y = ours("mamba")
    config = MambaConfig(hidden_size=D, state_size=4, time_step_rank=2, num_hidden_layers=1)
    weights = {name.replace("conv.", "conv1d."): value for name, value in p.items()}
    assert_close(y, theirs(MambaMixer(config, 0), weights, x), LOGITS_F32)


def test_ssd_is_the_mixer_of_mamba_2():
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    p, x, y = ours("ssd")
    config = Mamba2Config(
        hidden_size=D,
        num_heads=4,
        head_dim=16,
        state_size=16,
        n_groups=1,
        layer_norm_epsilon=1e-6,
        num_hidden_layers=1,
    )
    weights = {
        "in_proj.weight": torch.cat([p[f"{part}_proj.weight"] for part in ("z", "xbc", "dt")]),
        "conv1d.weight": p["conv.weight"],
        "conv1d.bias": p["conv.bias"],
        "norm.weight": p["out_norm.weight"],
        **{name: p[name] for name in ("dt_bias", "A_log", "D", "out_proj.weight")},
    }
    assert_close(y, theirs(Mamba2Mixer(config, 0), weights, x), LOGITS_F32)


def test_gated_delta_net_is_that_of_qwen3_next():
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    p, x, y = ours("gated-delta-net")
    config = Qwen3NextConfig(
        hidden_size=D,
        linear_num_value_heads=4,
        linear_num_key_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_hidden_layers=1,
        num_experts=1,
    )
    qkvz = torch.cat([p["qkv_proj.weight"], p["g_proj.weight"]]).reshape(4, 4, 8, D)
    weights = {
        "in_proj_qkvz.weight": qkvz.transpose(0, 1).reshape(4 * D, D),  # head by head
        "in_proj_ba.weight": torch.stack([p["b_proj.weight"], p["a_proj.weight"]], 1).flatten(0, 1),
        "conv1d.weight": p["conv.weight"],
        "norm.weight": p["head_norm.weight"],
        **{name: p[name] for name in ("dt_bias", "A_log", "out_proj.weight")},
    }
    assert_close(y, theirs(Qwen3NextGatedDeltaNet(config, 0), weights, x), LOGITS_F32)


def test_a_delta_product_of_one_step_is_the_gated_delta_net_of_olmo_hybrid():
    from transformers import OlmoHybridConfig
    from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet

    p, x, y = ours("gated-delta-product(householders=1)")
    config = OlmoHybridConfig(
        hidden_size=D,
        linear_num_value_heads=H,
        linear_num_key_heads=H,
        linear_key_head_dim=D // H,
        linear_value_head_dim=D // H,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
    )
    weights = dict(zip(("q_proj.weight", "k_proj.weight", "v_proj.weight"), thirds(p), strict=True))
    weights |= {f"{name}_proj.weight": p[f"{name}_proj.weight"] for name in "abg"}
    weights |= {"conv1d.weight": p["conv.weight"], "o_norm.weight": p["head_norm.weight"]}
    weights |= {"o_proj.weight": p["out_proj.weight"], "A_log": p["A_log"], "dt_bias": p["dt_bias"]}
    mixer = OlmoHybridGatedDeltaNet(config, 0)
    mixer.o_norm.variance_epsilon = 1e-6  # theirs is fixed at 1e-5
    assert_close(y, theirs(mixer, weights, x), LOGITS_F32)


def test_kda_is_that_of_kimi_linear():
    from transformers import KimiLinearConfig
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

    p, x, y = ours("kda")
    config = KimiLinearConfig(
        hidden_size=D,
        linear_num_heads=H,
        linear_head_dim=D // H,
        num_hidden_layers=1,
        rms_norm_eps=1e-6,
    )
    weights = dict(zip(("q_proj.weight", "k_proj.weight", "v_proj.weight"), thirds(p), strict=True))
    weights |= {
        "conv1d.weight": p["conv.weight"],
        "b_proj.weight": p["b_proj.weight"],
        "forget_gate.f_a_proj.weight": p["decay_down.weight"],
        "forget_gate.f_b_proj.weight": p["decay_up.weight"],
        "forget_gate.dt_bias": p["dt_bias"],
        "forget_gate.A_log": p["A_log"].reshape(1, 1, H, 1),
        "g_a_proj.weight": p["gate_down.weight"],
        "g_b_proj.weight": p["gate_up.weight"],
        "o_norm.weight": p["head_norm.weight"],
        "o_proj.weight": p["out_proj.weight"],
    }
    assert_close(y, theirs(KimiLinearDeltaAttention(config, 0), weights, x), LOGITS_F32)


def thirds(p):
    return list(p["qkv_proj.weight"].chunk(3))


RECORDED = dict(np.load(FLA))


@each_of("text", RECORDED)
def test_layers_of_the_delta_rule_are_those_of_flash_linear_attention(text):
    assert_close(ours(text)[2], RECORDED[text], LOGITS_F32)


@pytest.fixture
def lfm2():
    from transformers import Lfm2Config

    return Lfm2Config(
        hidden_size=D,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_hidden_layers=1,
        norm_eps=1e-6,
        rope_theta=1e6,
        conv_L_cache=3,
        conv_bias=False,
        layer_types=["full_attention"],
        attn_implementation="eager",
    )


def test_attention_with_its_options_is_that_of_lfm2(lfm2):
    from transformers.models.lfm2.modeling_lfm2 import Lfm2Attention, Lfm2RotaryEmbedding

    p, x, y = ours("mh-attention(h8,kv_heads=2,base=1e6,qk_norm=true,bias=false)")
    weights = {name.replace("_norm.", "_layernorm."): value for name, value in p.items()}
    turns = Lfm2RotaryEmbedding(lfm2)(x, torch.arange(S)[None])
    mask = torch.full((S, S), -torch.inf).triu(1)[None, None]
    actual, _ = theirs(
        Lfm2Attention(lfm2, 0), weights, x, position_embeddings=turns, attention_mask=mask
    )
    assert_close(y, actual, LOGITS_F32)


def test_gated_conv_is_the_short_convolution_of_lfm2(lfm2):
    from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

    p, x, y = ours("gated-conv")
    assert_close(y, theirs(Lfm2ShortConv(lfm2, 0), p, x), LOGITS_F32)
