"""Contents of mlxhog's checkpoints and of exports: names and configs.

For xLSTM Large they are the files that transformers loads, if it has the model. transformers 5.23
has no v1 stack, no n-gram tables and no document resets, always applies the final norm, without a
bias, and does not tie the head to the embedding. An export of any other model has mlxhog's class
beside it (`converting`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.models import families
from mlxhog.models.families import ModelConfig

PORTABLE = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "mode": "inference",
    "return_last_states": True,
}
"""Kernels of both packages that run on every machine, and a mode for every length."""

GENERATION = "generation_config.json"

THEIRS = "xlstm"  # the model_type by which transformers takes its own class

_OF_AN_EXPORT = ("architectures", "auto_map", "torch_dtype", "use_cache")
"""Fields of an export with mlxhog's code, and an older name of dtype."""


def our_tensors(model: ModelConfig, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the tensors of model.safetensors; a tied head of xLSTM Large is there twice."""
    if model.in_transformers and model.tie_word_embeddings:
        return {**tensors, model.untied_head: tensors[families.embedding(model)]}
    return dict(tensors)


def our_config_json(
    model: ModelConfig, *, dtype: np.dtype[Any], portable: bool = False
) -> dict[str, Any]:
    """Return config.json for `families.read`."""
    if not model.in_transformers:
        fields = model.to_dict() | {"dtype": dtype.name}
        names = [*_OF_AN_EXPORT, *["model_type"] * (model.model_type == THEIRS)]  # so it refuses
        return {key: value for key, value in fields.items() if key not in names}
    fields = hf_config_json(model, dtype=dtype, portable=portable)
    return fields | ({"out_norm_bias": True} if len(model.layout.out_norm) > 1 else {})


def trained_config_json(model: ModelConfig) -> dict[str, Any]:
    """Return config.json of a model that has been trained, on any machine and in float32.

    Kernels of the source, as of the xlstm package, may need another machine.
    """
    fields = our_config_json(model, dtype=np.dtype(np.float32), portable=True)
    return fields | ({"autocast_kernel_dtype": "float32"} if model.in_transformers else {})


def hf_config_json(model: ModelConfig, *, dtype: np.dtype[Any], portable: bool) -> dict[str, Any]:
    """Return config.json of xLSTM Large for AutoConfig, with the unknown fields of the source.

    transformers rounds the size of the cached state up to a multiple of 64, unlike the layer, so
    other widths generate without the cache.
    """
    fields = model.to_dict()
    for name in ("torch_dtype", "out_norm_bias"):  # an older name of dtype, and one of ours
        fields.pop(name, None)
    fields |= {"architectures": ["xLSTMForCausalLM"], "model_type": THEIRS, "dtype": dtype.name}
    if portable:  # they are the defaults of transformers
        fields |= {name: value for name, value in PORTABLE.items() if name in fields}
    return fields | {"use_cache": bool(fields.get("use_cache", True)) and model.hf_cache}


def generation_json(config: Mapping[str, Any], tokens: Iterable[int]) -> dict[str, Any]:
    """Return generation_config.json, by which `generate` of transformers draws tokens only.

    The embedding has more rows than there are tokens: their number is rounded up.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache")
    without = sorted(set(range(config["vocab_size"])).difference(tokens))
    fields = {name: config[name] for name in names if config.get(name) is not None}
    return fields | ({"suppress_tokens": without} if without else {})
