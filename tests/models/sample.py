"""Random models and inputs, from NumPy alone."""

from functools import partial

import numpy as np

from mlxhog.models.families import init_params
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.sequence import parse
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.models.xlstm_v1 import XLSTMV1Config

NARROW = {"round_proj_up_to_multiple_of": 8}
SMALLEST = MADConfig(vocab_size=23, hidden_size=16, layers=parse("gated-conv"))
"""A model with a state, for `mx.compile`: on a CPU that calls g++ for every kernel it fuses."""


def config(**changes):
    """A model that is small enough for every test."""
    base = {
        "vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2,
        "chunk_size": 4, "ffn_round_up_to_multiple_of": 8,
    }  # fmt: skip
    return XLSTMLargeConfig(**(base | changes))


def v1_config(**changes):
    """A mixed model of the original stack, small enough for every test; fields as in YAML."""
    base = {
        "vocab_size": 23, "embedding_dim": 16, "num_blocks": 3, "slstm_at": [1], "chunk_size": 4,
        "mlstm_block": {"mlstm": {"num_heads": 2, **NARROW}},
        "slstm_block": {"slstm": {"num_heads": 2}, "feedforward": NARROW},
    }  # fmt: skip
    return XLSTMV1Config.from_dict(base | changes, strict=True)


def package_of(cfg):
    """The model of the xlstm package that has a configuration of the original stack."""
    import xlstm

    fields = cfg.to_package()
    if fields["mlstm_block"] is not None:
        layer = xlstm.mLSTMLayerConfig(**fields["mlstm_block"]["mlstm"])
        fields["mlstm_block"] = xlstm.mLSTMBlockConfig(mlstm=layer)
    if fields["slstm_block"] is not None:
        fields["slstm_block"] = xlstm.sLSTMBlockConfig(
            slstm=xlstm.sLSTMLayerConfig(**fields["slstm_block"]["slstm"]),
            feedforward=xlstm.FeedForwardConfig(**fields["slstm_block"]["feedforward"]),
        )
    return xlstm.xLSTMLMModel(xlstm.xLSTMLMModelConfig(**fields))


def perturbed(params, seed, spread=0.1):
    """The parameters with noise on top, so that no gate is closed and no gradient vanishes."""
    rng, results = np.random.default_rng(seed), {}
    for name, value in params.items():
        results[name] = value + rng.normal(0, spread, value.shape).astype(np.float32)
        if name.endswith("igate_preact.bias"):
            results[name] += 9.0
    return results


def perturbed_params(cfg, seed):
    return perturbed(init_params(cfg, seed), seed)


def batch(cfg, B, S, seed):
    """Tokens and labels, (B, S) int32; about a tenth of the labels is -100."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, cfg.vocab_size, (B, S), dtype=np.int32)
    labels = rng.integers(0, cfg.vocab_size, (B, S), dtype=np.int32)
    labels[rng.random((B, S)) < 0.1] = -100
    return tokens, labels


def cell_inputs(B, S, NH, DK, DV, seed):
    rng = np.random.default_rng(seed)
    inputs = {name: rng.normal(0, 1, (B, S, NH, DV if name == "v" else DK)) for name in "qkv"}
    inputs |= {name: rng.normal(0, 2, (B, S, NH)) for name in "if"}
    return {name: value.astype(np.float32) for name, value in inputs.items()}


def slstm_inputs(B, S, NH, DH):
    rng = np.random.default_rng((0, B, S, NH, DH))
    gates = {name: rng.normal(0, 2, (B, S, NH, DH)) for name in "ifzo"}
    gates["R"] = rng.normal(0, DH**-0.5, (NH, 4 * DH, DH))
    gates["b"] = rng.normal(0, 1, 4 * NH * DH)
    return {name: value.astype(np.float32) for name, value in gates.items()}


def slstm_state(B, NH, DH):
    """A random state that the cell could have reached."""
    rng = np.random.default_rng((0, B, NH, DH))
    h, c, n, m = rng.normal(0, 1, (4, B, NH, DH)).astype(np.float32)
    return h, c, 1 + np.abs(n), m


LARGE_CONFIGS = {
    "plain": {},
    "one head": {"num_heads": 1, "chunk_size": 5},
    "wide values": {"v_dim_factor": 2.0, "qk_dim_factor": 1.0},
    "bias": {"use_bias": True},
    "no out norm": {"add_out_norm": False},
    "other caps": {"gate_soft_cap": 5.0, "output_logit_soft_cap": 3.0, "norm_eps": 1e-3},
    "tied": {"tie_word_embeddings": True},
    "documents": {"reset_at_document_boundaries": True, "bos_token_id": 3},
    "odd sizes": {"hidden_size": 18, "num_heads": 3, "vocab_size": 7, "chunk_size": 64},
}
STANDARD = {"recurrent_weight_init": "standard", "bias_init": "standard"}
V1_CONFIGS = {
    "mixed": {},
    "mLSTM alone, tied, with biases": {
        "slstm_at": [], "num_blocks": 2, "bias": True, "tie_weights": True,
        "mlstm_block": {"mlstm": {"num_heads": 1, "conv1d_kernel_size": 3, **NARROW}},
    },
    "blocks of 8 in q, k and v": {
        "slstm_at": [0], "num_blocks": 2,
        "mlstm_block": {"mlstm": {"qkv_proj_blocksize": 8, "proj_factor": 1.4, **NARROW}},
    },
    "sLSTM alone without convolution": {
        "slstm_at": "all", "num_blocks": 2, "add_post_blocks_norm": False,
        "slstm_block": {
            "slstm": {"num_heads": 4, "conv1d_kernel_size": 0, **STANDARD},
            "feedforward": {"act_fn": "relu^2", "bias": True, **NARROW},
        },
    },
    "sLSTM without feed-forward layer": {
        "slstm_block": {
            "slstm": {"num_heads": 1, "conv1d_kernel_size": 2, "group_norm_weight": False},
            "feedforward": None,
        }
    },
    "documents": {"reset_at_document_boundaries": True, "bos_token_id": 3},
}  # fmt: skip
DROPPING = {
    "dropout": 0.2,
    "add_embedding_dropout": True,
    "slstm_block": {"slstm": {"num_heads": 2}, "feedforward": {"dropout": 0.4, **NARROW}},
}
LARGE = {name: partial(config, **c) for name, c in LARGE_CONFIGS.items()}
V1 = {f"v1, {name}": partial(v1_config, **c) for name, c in V1_CONFIGS.items()}
"""Makers of models, whose sizes and options differ from each other."""
