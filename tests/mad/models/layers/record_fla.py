"""Record what the layers of flash-linear-attention compute, for `test_published_layers.py`.

    python -m pip download --no-deps fla-core flash-linear-attention
    unzip -o 'fla_core*.whl' -d fla; unzip -o 'flash_linear*.whl' -d fla
    python -m tests.mad.models.layers.record_fla fla

The layers are the texts of the package; its kernels, which need a GPU, are replaced by its own
naive functions, or by the line of PyTorch that they fuse. Recorded with version 0.6.0.
"""

import importlib.util
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.mad.models.layers.test_published_layers import FLA, D, H, ours


def stub(name):
    """A module whose names are all in `PIECES`, or never called."""
    module = types.ModuleType(name)
    module.__path__ = []

    def piece(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return PIECES.get(name)

    module.__getattr__ = piece
    return module


class Stubs:
    """The finder and loader of every module of the package that a layer imports."""

    def find_spec(self, name, *_):
        if name.split(".")[0] == "fla":
            return importlib.util.spec_from_loader(name, self)
        return None

    def create_module(self, spec):
        return stub(spec.name)

    def exec_module(self, module):
        """Its names are found when they are asked for."""


class Conv(nn.Conv1d):
    """Depthwise, causal, with SiLU."""

    def __init__(self, hidden_size, kernel_size, bias, activation):
        super().__init__(hidden_size, hidden_size, kernel_size, groups=hidden_size, bias=bias)
        self.past = kernel_size - 1

    def forward(self, x, **_):
        return F.silu(super().forward(F.pad(x.mT, (self.past, 0))).mT), None


class GatedNorm(nn.RMSNorm):
    def forward(self, x, g):
        return super().forward(x) * F.silu(g)


def unit(*xs):
    return [x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in xs]


def main(root):
    sys.meta_path.insert(0, Stubs())

    def load(path, *names):
        spec = importlib.util.spec_from_file_location("text", root / "fla" / f"{path}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return [getattr(module, name) for name in names]

    (rule,) = load("ops/delta_rule/naive", "delta_rule_recurrence")
    (product,) = load("ops/gated_delta_product/naive", "naive_recurrent_gated_delta_product")
    (dplr,) = load("ops/generalized_delta_rule/dplr/naive", "dplr_recurrence")

    def chunk_delta_rule(q, k, v, beta, **_):
        q, k = unit(q, k)
        o, last = rule(*(x.transpose(1, 2) for x in (q, k, v, beta)))
        return o.transpose(1, 2), last

    def chunk_product(q, k, v, num_householder, **how):
        q, k = unit(q, k)
        return product(
            q, k, v, how["g"], how["beta"], q.shape[-1] ** -0.5, num_householder=num_householder
        )

    def chunk_rwkv7(**x):
        names = ("r", "k", "v", "a", "b", "w")
        r, *others = (x[name].transpose(1, 2) for name in names)
        o, last = dplr(r * r.shape[-1] ** 0.5, *others)  # takes out the scale of the naive text
        return o.transpose(1, 2), last

    PIECES.update(
        RMSNorm=lambda width, eps, dtype: nn.RMSNorm(width, eps),
        FusedRMSNormGated=GatedNorm,
        ShortConvolution=Conv,
        get_layer_cache=lambda *_: None,
        update_layer_cache=lambda *_, **__: None,
        unpad_hidden_states=lambda x, *_: (x, None, None),
        repad_hidden_states=lambda x, *_: x,
        chunk_delta_rule=chunk_delta_rule,
        fused_recurrent_delta_rule=chunk_delta_rule,
        chunk_gated_delta_product=chunk_product,
        chunk_rwkv7=chunk_rwkv7,
        token_shift=lambda x, *_, **__: (F.pad(x, (0, 0, 1, -1)) - x, None),
        fused_addcmul_rwkv7=lambda x, moved, *mu: [x + moved * m for m in mu],
        fused_k_rwkv7=lambda k, a, k_a: k.addcmul(k * (a - 1), k_a),
        gate_output_correction=lambda o, r, k, r_k, v, g: (
            (o + ((r * k * r_k).sum(-1, keepdim=True) * v).flatten(-2)) * g
        ),
    )
    (PIECES["LoRA"],) = load("layers/rwkv6", "LoRA")
    common = {"hidden_size": D, "norm_eps": 1e-6}
    (delta_net,) = load("layers/delta_net", "DeltaNet")
    (delta_product,) = load("layers/gated_deltaproduct", "GatedDeltaProduct")
    (rwkv7,) = load("layers/rwkv7", "RWKV7Attention")
    modules = {
        "delta-net": delta_net(num_heads=H, **common),
        "delta-net(negative=true)": delta_net(num_heads=H, allow_neg_eigval=True, **common),
        "gated-delta-product": delta_product(num_heads=H, head_dim=D // H, expand_v=1, **common),
        "gated-delta-product(householders=3,decay=false,negative=false)": delta_product(
            num_heads=H,
            head_dim=D // H,
            expand_v=1,
            num_householder=3,
            use_forget_gate=False,
            allow_neg_eigval=False,
            **common,
        ),
        "rwkv7": rwkv7(hidden_size=D, head_dim=D // H, layer_idx=0, num_hidden_layers=2),
    }
    results = {}
    for text, module in modules.items():
        p, x, y = ours(text)
        module.load_state_dict(WEIGHTS[text.split("(")[0]](p), strict=True)
        with torch.no_grad():
            results[text] = module(x)[0].numpy()
        print(text, "differs by", float((y - torch.from_numpy(results[text])).abs().max()))
    np.savez_compressed(FLA, **results)


def convolved(p):
    """The one matrix and the one convolution of q, k and v, cut into three."""
    keys = (len(p["qkv_proj.weight"]) - D) // 2
    parts = {}
    for kind, name in (("proj", "qkv_proj"), ("conv1d", "conv")):
        cut = p[f"{name}.weight"].split([D, keys, keys])
        parts |= {f"{part}_{kind}.weight": w for part, w in zip("qkv", cut, strict=True)}
    own = {name: w for name, w in p.items() if not name.startswith(("qkv_", "conv", "out", "head"))}
    return (
        parts
        | own
        | {
            "o_norm.weight": p["head_norm.weight"],
            "o_proj.weight": p["out_proj.weight"],
        }
    )


def of_rwkv7(p):
    weights = {f"x_{name}": p[f"mu_{name}"][None, None] for name in "rwkvag"}
    weights |= {name: p[name] for name in ("k_k", "k_a")} | {"r_k": p["r_k"].reshape(H, -1)}
    weights |= {f"{name}_proj.weight": p[f"{name}_proj.weight"] for name in "rkv"}
    for theirs, name in (("w", "decay"), ("a", "rate"), ("g", "gate")):
        weights[f"{theirs}_lora.lora.0.weight"] = p[f"{name}_down.weight"]
        weights[f"{theirs}_lora.lora.2.weight"] = p[f"{name}_up.weight"]
    weights |= {f"{name}_lora.lora.2.bias": p[f"{name}0"] for name in "wa"}
    weights |= {f"g_norm.{part}": p[f"head_norm.{part}"] for part in ("weight", "bias")}
    return weights | {"o_proj.weight": p["out_proj.weight"]}


PIECES = {}
WEIGHTS = {"delta-net": convolved, "gated-delta-product": convolved, "rwkv7": of_rwkv7}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
