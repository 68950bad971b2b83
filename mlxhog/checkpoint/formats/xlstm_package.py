"""What a checkpoint of the xlstm package holds, for a model of ours, of either generation.

    config.yaml      the fields of xLSTMLargeConfig, or of xLSTMLMModelConfig, and no others
    config.json      what these have no room for: token ids, unknown fields
    model.safetensors, or model_0.safetensors ...    the state dict

xLSTM Large is loaded by `xlstm.xlstm_large.from_pretrained.load_from_pretrained(directory)`; the
package has no loader for xLSTMLMModel, whose state dict `load_state_dict(strict=True)` takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.checkpoint.formats import hf, names
from mlxhog.errors import ConfigError
from mlxhog.files.tensors import Entry
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.mad import MADConfig
from mlxhog.models.xlstm_large import OUT_NORM, XLSTMLargeConfig
from mlxhog.models.xlstm_large.config import SPELLINGS
from mlxhog.models.xlstm_v1 import XLSTMV1Config

LARGE_FIELDS = (
    "embedding_dim num_heads num_blocks vocab_size use_bias norm_eps norm_reduction_force_float32 "
    "add_out_norm qk_dim_factor v_dim_factor chunkwise_kernel sequence_kernel step_kernel mode "
    "chunk_size return_last_states autocast_kernel_dtype eps inference_state_dtype "
    "ffn_proj_factor ffn_round_up_to_multiple_of gate_soft_cap output_logit_soft_cap weight_mode"
).split()
"""Of xLSTMLargeConfig, which refuses others."""

_NAMED_BY_CONTENT = {"model_type", "architectures", "out_norm_bias", "weight_mode", "torch_dtype"}


def entries(
    model: ModelConfig, tensors: Mapping[str, NDArray[Any]], *, fused: bool, slstm: str
) -> dict[str, Entry]:
    """Return the tensors of the package's state dict.

    Args:
        model: whose they are.
        tensors: our name -> array.
        fused: stack matrices that share their input; xLSTM Large only.
        slstm: layout of sLSTM cells, "vanilla" or "cuda"; v1 only.

    Raises:
        ConfigError: the package has no such model.
    """
    if isinstance(model, MADConfig):
        raise ConfigError(
            f"the xlstm package has no model for {families.of(model).title}; use --to mlxhog"
        )
    ours = dict(tensors)
    if model.tie_word_embeddings:  # the package's state dicts hold both names
        ours[families.of(model).head] = ours[families.embedding(model)]
    if isinstance(model, XLSTMLargeConfig) and model.use_bias and model.add_out_norm:
        width = ours[f"{OUT_NORM}.weight"]
        ours.setdefault(f"{OUT_NORM}.bias", np.zeros(width.shape, width.dtype))
    theirs = names.to_xlstm(ours, model, slstm=slstm)
    if not fused:
        return {name: Entry(a.shape, a.dtype, (a,)) for name, a in theirs.items()}
    return {
        name: _stacked([theirs[part] for part in parts])
        for name, parts in names.stacks(theirs).items()
    }


def configs(
    model: ModelConfig, *, fused: bool, slstm: str, portable: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of config.yaml and of config.json.

    Args:
        model: the model.
        fused: as for `entries`.
        slstm: as for `entries`.
        portable: replace kernels of another package by those that run on every machine.
    """
    fields = model.to_dict()
    if isinstance(model, XLSTMV1Config):
        inside = model.to_package()
        if model.slstm_block is not None:
            inside["slstm_block"]["slstm"]["backend"] = slstm
    else:
        if portable:
            fields |= hf.PORTABLE
        fields["weight_mode"] = "fused" if fused else "single"
        inside = {name: fields[name] for name in LARGE_FIELDS if name in fields}
    left = fields.keys() - inside.keys() - _NAMED_BY_CONTENT - set(SPELLINGS.values())
    beside = {name: fields[name] for name in sorted(left) if fields[name] is not None}
    return inside, beside


def _stacked(parts: list[NDArray[Any]]) -> Entry:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Entry(shape, parts[0].dtype, tuple(parts))
