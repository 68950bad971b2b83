"""Mixers equal the published implementations, weight by weight.

Those in transformers are imported by the tests, since an import takes seconds and every process
collects tests. The outputs of those in flash-linear-attention 0.6.0, whose kernels need a GPU, were
recorded with its own naive functions in their place.
"""

import importlib
from pathlib import Path

import numpy as np
import torch

from mlxhog.models.layers.layer import ForwardContext
from mlxhog.models.mad.sequence import parse
from mlxhog.models.ops.kernels import choose
from mlxhog.models.spec import initial_value
from tests.models.twins import start
from tests.pairs import each_of
from tests.tolerances import LOGITS_F32, assert_close

B, S, D, H = 2, 21, 32, 4
FLA = Path(__file__).parent / "golden" / "fla_layers.npz"


def ours(text):
    """A layer's parameters, none of them at a special value, an input, and the output."""
    (layer,) = parse(text)
    rng = np.random.default_rng(0)
    params = {}
    for spec in layer.param_spec(D):
        noise = rng.normal(0, 0.1, spec.shape).astype(np.float32)
        params[spec.name] = torch.from_numpy(initial_value(spec, 0) + noise)
    x = torch.from_numpy(rng.standard_normal((B, S, D)).astype(np.float32))
    y, _ = layer.forward(
        params, x, start(layer, D), ForwardContext(choose("torch", "eager", "cpu"))
    )
    return params, x, y


def parts(p):
    """Our parameters, with the joint map of queries, keys and values in parts."""
    thirds = p["qkv_proj.weight"].chunk(3)
    return p | dict(zip(("q.weight", "k.weight", "v.weight"), thirds, strict=True))


def mamba(p):
    return {name.replace("conv.", "conv1d."): value for name, value in p.items()}


def mamba2(p):
    return {
        "in_proj.weight": torch.cat([p[f"{part}_proj.weight"] for part in ("z", "xbc", "dt")]),
        "conv1d.weight": p["conv.weight"],
        "conv1d.bias": p["conv.bias"],
        "norm.weight": p["out_norm.weight"],
        **{name: p[name] for name in ("dt_bias", "A_log", "D", "out_proj.weight")},
    }


def qwen3_next(p):
    qkvz = torch.cat([p["qkv_proj.weight"], p["g_proj.weight"]]).reshape(4, 4, 8, D)
    return {
        "in_proj_qkvz.weight": qkvz.transpose(0, 1).reshape(4 * D, D),  # head by head
        "in_proj_ba.weight": torch.stack([p["b_proj.weight"], p["a_proj.weight"]], 1).flatten(0, 1),
        "conv1d.weight": p["conv.weight"],
        "norm.weight": p["head_norm.weight"],
        **{name: p[name] for name in ("dt_bias", "A_log", "out_proj.weight")},
    }


def renamed(weights, others):
    """Our parameters by their names; words are theirs=ours, and those of weights have no end."""
    words = [word.replace("=", ".weight=") + ".weight" for word in weights.split()]
    names = dict(word.split("=") for word in [*words, *others.split()])
    return lambda p: {theirs: parts(p)[ours] for theirs, ours in names.items()}


SAME = "q_proj=q k_proj=k v_proj=v conv1d=conv o_norm=head_norm o_proj=out_proj b_proj=b_proj"
GATES = "forget_gate.f_a_proj=decay_down forget_gate.f_b_proj=decay_up"
OLMO = renamed(f"{SAME} a_proj=a_proj g_proj=g_proj", "A_log=A_log dt_bias=dt_bias")
KIMI = renamed(
    f"{SAME} {GATES} g_a_proj=gate_down g_b_proj=gate_up",
    "forget_gate.dt_bias=dt_bias forget_gate.A_log=A_log",
)
LINEAR = dict(linear_num_value_heads=H, linear_num_key_heads=H, linear_key_head_dim=D // H,
              linear_value_head_dim=D // H)  # fmt: skip
LFM2 = dict(
    num_attention_heads=8, num_key_value_heads=2, norm_eps=1e-6, rope_theta=1e6, conv_L_cache=3,
    conv_bias=False, layer_types=["full_attention"], attn_implementation="eager",
)  # fmt: skip
PUBLISHED = [
    ("mamba", "mamba", "MambaMixer", dict(state_size=4, time_step_rank=2), mamba),
    (
        "ssd", "mamba2", "Mamba2Mixer",
        dict(num_heads=H, head_dim=16, state_size=16, n_groups=1, layer_norm_epsilon=1e-6), mamba2,
    ),
    (
        "gated-delta-net", "qwen3_next", "Qwen3NextGatedDeltaNet",
        LINEAR | dict(num_experts=1), qwen3_next,
    ),
    (
        "gated-delta-product(householders=1)", "olmo_hybrid", "OlmoHybridGatedDeltaNet",
        LINEAR | dict(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"]),
        OLMO,
    ),
    (
        "kda", "kimi_linear", "KimiLinearDeltaAttention",
        dict(linear_num_heads=H, linear_head_dim=D // H, rms_norm_eps=1e-6), KIMI,
    ),
    ("gated-conv", "lfm2", "Lfm2ShortConv", LFM2, dict),
    (
        "mh-attention(h8,kv_heads=2,base=1e6,qk_norm=true,bias=false)", "lfm2", "Lfm2Attention",
        LFM2, lambda p: {name.replace("_norm.", "_layernorm."): value for name, value in p.items()},
    ),
]  # fmt: skip


@each_of(("text", "model", "mixer", "numbers", "weights"), PUBLISHED)
def test_a_layer_is_that_of_transformers(text, model, mixer, numbers, weights):
    from transformers import AutoConfig

    config = AutoConfig.for_model(model, **{"hidden_size": D, "num_hidden_layers": 1, **numbers})
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    p, x, y = ours(text)
    theirs, more = getattr(module, mixer)(config, 0), {}
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    theirs.load_state_dict({n: v.reshape(shapes[n]) for n, v in weights(p).items()}, strict=True)
    if model == "olmo_hybrid":
        theirs.o_norm.variance_epsilon = 1e-6  # theirs is fixed at 1e-5
    if mixer == "Lfm2Attention":
        more["position_embeddings"] = module.Lfm2RotaryEmbedding(config)(x, torch.arange(S)[None])
        more["attention_mask"] = torch.full((S, S), -torch.inf).triu(1)[None, None]
    theirs.eval()
    with torch.no_grad():
        expected = theirs(x, **more)
    assert_close(y, expected[0] if isinstance(expected, tuple) else expected, LOGITS_F32)


RECORDED = dict(np.load(FLA))


@each_of("text", RECORDED)
def test_layers_of_the_delta_rule_are_those_of_flash_linear_attention(text):
    assert_close(ours(text)[2], RECORDED[text], LOGITS_F32)
