"""Random small models of both xLSTM families, with random tokens, for comparisons of backends."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.parity.sources import Sizes, model_subject, perturbed_init
from mlxhog.parity.subject import Subject

FAMILIES = ("xlstm", "xlstm_v1")


def drawn(number: int, *, steps: int = 3) -> Subject:
    """Return a model with parameters and tokens; `number` decides everything, even ones are Large.

    Up to 8 blocks, 1 to 4 heads, widths to 64, 1 or 2 sequences of 2 to 33 tokens.
    """
    r = np.random.default_rng((number, 12))
    family = FAMILIES[number % len(FAMILIES)]
    cfg = families.read((_large if family == "xlstm" else _v1)(r), strict=True)
    sizes = Sizes(
        seed=number,
        batch_size=int(r.integers(1, 3)),
        seq_len=int(r.choice([2, 5, 12, 33])),
        steps=steps,
    )
    return model_subject(f"{family} {number}", cfg, perturbed_init(cfg, number), sizes, "")


def describe(cfg: ModelConfig) -> str:
    """Say in a few words how large a model is."""
    return f"{cfg.num_hidden_layers} blocks of {cfg.hidden_size}"


def _large(r: np.random.Generator) -> dict[str, Any]:
    heads, width = _width(r)
    return {
        "model_type": "xlstm",
        "vocab_size": int(r.integers(8, 60)),
        "hidden_size": width,
        "num_hidden_layers": int(r.integers(1, 9)),
        "num_heads": heads,
        "use_bias": _with(r, 0.3),
        "tie_word_embeddings": _with(r, 0.2),
        "add_out_norm": _with(r, 0.9),
        "qk_dim_factor": float(r.choice([0.5, 1.0])),
        "v_dim_factor": float(r.choice([0.5, 1.0, 2.0])),
        "chunk_size": int(r.choice([2, 4, 8, 64])),
        "ffn_proj_factor": float(r.choice([1.0, 2.0, 2.667])),
        "ffn_round_up_to_multiple_of": 8,
        "gate_soft_cap": float(r.choice([5.0, 15.0])),
        "output_logit_soft_cap": float(r.choice([8.0, 30.0])),
        "norm_eps": float(r.choice([1e-6, 1e-5])),
        "eps": float(r.choice([1e-6, 1e-5])),
    }


def _v1(r: np.random.Generator) -> dict[str, Any]:
    heads, width = _width(r)
    blocks = int(r.integers(1, 9))
    slstm_at = [block for block in range(blocks) if _with(r, 0.35)]
    fields: dict[str, Any] = {
        "model_type": "xlstm_v1",
        "vocab_size": int(r.integers(8, 60)),
        "embedding_dim": width,
        "num_blocks": blocks,
        "slstm_at": slstm_at,
        "chunk_size": int(r.choice([2, 4, 8, 64])),
        "bias": _with(r, 0.3),
        "tie_weights": _with(r, 0.2),
        "add_post_blocks_norm": _with(r, 0.9),
    }
    if len(slstm_at) < blocks:
        mlstm = {
            "num_heads": heads,
            "conv1d_kernel_size": int(r.choice([2, 4])),
            "qkv_proj_blocksize": int(r.choice([2, 4])),
            "proj_factor": float(r.choice([1.0, 2.0])),
            "round_proj_up_to_multiple_of": 8,
        }
        fields["mlstm_block"] = {"mlstm": mlstm}
    if slstm_at:
        feedforward = {
            "proj_factor": float(r.choice([1.3, 2.0])),
            "round_proj_up_to_multiple_of": 8,
            "act_fn": str(r.choice(["gelu", "relu", "relu^2", "sigmoid", "swish", "selu"])),
        }
        slstm = {
            "num_heads": heads,
            "conv1d_kernel_size": int(r.choice([0, 4])),
            "bias_init": str(r.choice(["powerlaw_blockdependent", "small_init", "standard"])),
            "recurrent_weight_init": str(r.choice(["zeros", "standard"])),
            "group_norm_weight": _with(r, 0.8),
        }
        fields["slstm_block"] = {
            "slstm": slstm,
            "feedforward": feedforward if _with(r, 0.8) else None,
        }
    return fields


def _width(r: np.random.Generator) -> tuple[int, int]:
    heads = int(r.choice([1, 2, 4]))
    return heads, 8 * heads * int(r.integers(1, 3))


def _with(r: np.random.Generator, share: float) -> bool:
    return bool(r.random() < share)
