"""What a directory of transformers holds beside its shards, for a model of ours.

transformers 5.23 has no v1 stack, applies the final norm whatever `add_out_norm` says and without a
bias, and does not tie the head to the embedding: `refuse` and `entries` see to it that what
it loads computes what our model does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ConfigError
from mlxhog.files.tensors import Entry
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.mad import MADConfig
from mlxhog.models.xlstm_large import OUT_NORM, XLSTMLargeConfig

PORTABLE = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "mode": "inference",
    "return_last_states": True,
}
"""Kernels of both packages that run on every machine, and the mode that takes any length."""


def refuse(model: ModelConfig, tensors: Mapping[str, NDArray[Any]]) -> XLSTMLargeConfig:
    """Return the model if transformers has one that computes the same.

    Raises:
        ConfigError: it has none; the message says why.
    """
    if not isinstance(model, XLSTMLargeConfig):
        others = "mlxhog" if isinstance(model, MADConfig) else "xlstm or mlxhog"
        raise ConfigError(
            f"transformers has no model for {families.of(model).title}; use --to {others}"
        )
    if not model.add_out_norm:
        raise ConfigError(
            "the model has no final norm (add_out_norm false), and transformers applies one all "
            "the same; use --to xlstm or mlxhog"
        )
    if model.out_norm_bias and np.any(tensors[f"{OUT_NORM}.bias"]):
        raise ConfigError(
            f"the final norm has a bias ({OUT_NORM}.bias), and transformers' has none; "
            "use --to xlstm or mlxhog"
        )
    return model


def entries(model: ModelConfig, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Entry]:
    """Return the tensors of a directory of transformers; a tied head is written out."""
    found = {
        name: Entry(array.shape, array.dtype, (array,))
        for name, array in tensors.items()
        if name != f"{OUT_NORM}.bias"
    }
    if model.tie_word_embeddings:
        found[families.of(model).head] = found[families.embedding(model)]
    return found


def config_json(model: XLSTMLargeConfig, *, dtype: np.dtype[Any], portable: bool) -> dict[str, Any]:
    """Return config.json, which AutoConfig reads; unknown fields of the source are in it.

    transformers rounds the cached state up to multiples of 64 where the layer does not, and fails;
    models of other widths generate there without the cache.

    Args:
        model: what `refuse` returns.
        dtype: of the weights.
        portable: replace kernels of another package by `PORTABLE`.
    """
    fields = model.to_dict()
    for name in ("torch_dtype", "out_norm_bias"):  # an older name of dtype, and one of ours
        fields.pop(name, None)
    fields |= {"architectures": ["xLSTMForCausalLM"], "model_type": "xlstm", "dtype": dtype.name}
    if portable:
        fields |= PORTABLE
    whole = all(width % 64 == 0 for width in (model.qk_dim, model.v_dim))
    return fields | {"use_cache": bool(fields.get("use_cache", True)) and whole}
