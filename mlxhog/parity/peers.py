"""The peers: transformers and the xlstm package, and which of our models they can build."""

from __future__ import annotations

from mlxhog.models import families
from mlxhog.models.mad import MADConfig
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.parity.subject import ModelPlan, Plan

TRANSFORMERS, XLSTM = "transformers", "xlstm"
PEERS = (TRANSFORMERS, XLSTM)


def cannot(name: str, plan: Plan) -> str | None:
    """Say why a peer cannot compute a plan, or None where it can."""
    if not isinstance(plan, ModelPlan):
        return f"{name} computes models, no operators alone"
    cfg = plan.cfg
    if isinstance(cfg, MADConfig):
        return f"{name} has no models of MAD layers"
    if families.reset_token(cfg) is not None:
        return f"{name} does not reset at document boundaries"
    if isinstance(cfg, XLSTMLargeConfig):
        if name == TRANSFORMERS and not cfg.add_out_norm:
            return "transformers 5.23 applies out_norm although add_out_norm is false"
        if name == TRANSFORMERS and cfg.out_norm_bias:
            return "transformers' out_norm has no bias"
        if cfg.tie_word_embeddings:
            return f"{name} does not tie its embeddings"
    elif name == TRANSFORMERS:
        return "transformers has no v1 stack"
    return None
