"""What a checkpoint of mlxhog holds beside its manifest, for any model.

For xLSTM Large it is what transformers loads, as far as transformers has the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.checkpoint.formats import hf
from mlxhog.files.tensors import Entry
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.xlstm_large import XLSTMLargeConfig


def entries(model: ModelConfig, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Entry]:
    """Return the tensors of model.safetensors; a tied head of xLSTM Large is written out."""
    found = {name: Entry(array.shape, array.dtype, (array,)) for name, array in tensors.items()}
    if isinstance(model, XLSTMLargeConfig) and model.tie_word_embeddings:
        found[families.of(model).head] = found[families.embedding(model)]
    return found


def config_json(
    model: ModelConfig, *, dtype: np.dtype[Any], portable: bool = False
) -> dict[str, Any]:
    """Return config.json, from which `families.read` makes the model again.

    Args:
        model: the model.
        dtype: of the weights.
        portable: as for `hf.config_json`.
    """
    if not isinstance(model, XLSTMLargeConfig):
        return model.to_dict() | {"dtype": dtype.name}
    fields = hf.config_json(model, dtype=dtype, portable=portable)
    return fields | ({"out_norm_bias": True} if model.out_norm_bias else {})
