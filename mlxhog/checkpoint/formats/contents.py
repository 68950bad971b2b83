"""Contents of the checkpoints of each format, for a model of ours: names, layouts and configs.

transformers (`hf_`): version 5.23 has no v1 stack, always applies the final norm (also with
`add_out_norm` false) and without a bias, and does not tie the head to the embedding. `refuse` and
the conversion ensure that the loaded model computes the same as ours.

mlxhog (`our_`), beside its manifest: for xLSTM Large the files that transformers loads, if it has
the model.

xlstm package (`package_`), of either generation:

    config.yaml      the fields of xLSTMLargeConfig, or of xLSTMLMModelConfig, and no others
    config.json      fields that these do not have: token ids, unknown fields
    model.safetensors, or model_0.safetensors ...    the state dict

xLSTM Large is loaded by `xlstm.xlstm_large.from_pretrained.load_from_pretrained(directory)`. The
package has no loader for xLSTMLMModel; `load_state_dict(strict=True)` accepts our state dict.

`mlxhog.models.translation` has the names and layouts of arrays in other packages.

Sources: NX-AI/xlstm 2.0.6, `xlstm_large/model.py`; transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import plain_json
from mlxhog.base.tensors import TensorSource
from mlxhog.checkpoint.formats import table_rows
from mlxhog.config import plugins
from mlxhog.errors import ConfigError
from mlxhog.models import families, ngrams, translation
from mlxhog.models.families import ModelConfig
from mlxhog.models.mad.config import SPELLINGS as MAD_SPELLINGS
from mlxhog.models.ngrams import is_table
from mlxhog.models.xlstm_large import OUT_NORM, SPELLINGS

PORTABLE = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "mode": "inference",
    "return_last_states": True,
}
"""Kernels of both packages that run on every machine, and the mode for every length."""


def refuse(model: ModelConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Refuse a model for which transformers has no class that computes the same.

    Raises:
        ConfigError: transformers has no such model; the message gives the reason.
    """
    if model.hf != "class":
        raise ConfigError(f"transformers has no model for {model.title}; use --to xlstm or mlxhog")
    _refuse_tables(model, "transformers")
    if reason := model.unlike_transformers(tensors):
        raise ConfigError(f"{reason}; use --to xlstm or mlxhog")


def _refuse_tables(model: ModelConfig, package: str) -> None:
    if (tables := ngrams.of(model)) is not None:
        orders = ", ".join(map(str, tables.orders))
        raise ConfigError(
            f"the model has tables of n-grams (ngram_orders {orders}), which {package} does not "
            "have; use --to mlxhog"
        )


def hf_config_json(model: ModelConfig, *, dtype: np.dtype[Any], portable: bool) -> dict[str, Any]:
    """Return config.json, which AutoConfig reads, with the unknown fields of the source.

    transformers rounds the size of the cached state up to a multiple of 64, but the layer does not,
    so it fails for other widths; there such a model generates without the cache.

    Args:
        model: the result of `refuse`.
        dtype: type of the weights.
        portable: replace kernels of another package by `PORTABLE`.
    """
    fields = model.to_dict()
    for name in ("torch_dtype", "out_norm_bias"):  # an older name of dtype, and one of ours
        fields.pop(name, None)
    fields |= {"architectures": ["xLSTMForCausalLM"], "model_type": "xlstm", "dtype": dtype.name}
    if portable:
        fields |= PORTABLE
    return fields | {"use_cache": bool(fields.get("use_cache", True)) and model.hf_cache}


MODELING = Path(__file__).parents[2] / "nn" / "modeling_torch.py"
"""The code that transformers needs for sequences of layers; never imported here."""


def hf_code_json(model: ModelConfig, *, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return config.json of a model that transformers loads by `MODELING`, and mlxhog as its own.

    Raises:
        ConfigError: transformers cannot generate with the model, or would need a user's file.
    """
    families.check_language_model(model)
    fields = our_config_json(model, dtype=dtype)
    if files := fields.get(plugins.KEY):
        raise ConfigError(
            f"the model has layers of {files[0].partition(' ')[0]}, which an export does not "
            "carry; use --to mlxhog"
        )
    for theirs, name in MAD_SPELLINGS.items():
        fields[theirs] = fields.pop(name)
    return fields | {
        "architectures": ["MlxhogForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{MODELING.stem}.MlxhogConfig",
            "AutoModelForCausalLM": f"{MODELING.stem}.MlxhogForCausalLM",
        },
        "use_cache": False,
    }


GENERATION = "generation_config.json"


def generation_json(config: Mapping[str, Any], tokens: Iterable[int]) -> dict[str, Any]:
    """Return generation_config.json, by which `generate` of transformers draws tokens only.

    The embedding has more rows than there are tokens: their number is rounded up.

    Args:
        config: the fields of config.json.
        tokens: the ids that have a token.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache")
    without = sorted(set(range(config["vocab_size"])).difference(tokens))
    fields = {name: config[name] for name in names if config.get(name) is not None}
    return fields | ({"suppress_tokens": without} if without else {})


def token_ids(tokenizer_json: bytes) -> set[int]:
    """Return the ids of the tokens of a tokenizer.json.

    Raises:
        ValueError: it is not one.
    """
    try:
        description = plain_json.loads(tokenizer_json)
        vocabulary = description["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return {*ids, *(token["id"] for token in description.get("added_tokens") or ())}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"it has no vocabulary: {error!r}") from error


_OF_AN_EXPORT = ("architectures", "auto_map", "torch_dtype", "use_cache")
"""Fields that `hf_code_json` writes for `MODELING`, and an older name of dtype."""


def our_entries(model: ModelConfig, tensors: Mapping[str, NDArray[Any]]) -> dict[str, TensorSource]:
    """Return the tensors of model.safetensors; a tied head of xLSTM Large becomes a copy."""
    entries: dict[str, TensorSource] = {}
    for name, array in tensors.items():
        if is_table(name):
            entries |= table_rows.packed(name, array)
        else:
            entries[name] = TensorSource(array.shape, array.dtype, (array,))
    if model.hf == "class" and model.tie_word_embeddings:
        entries[model.untied_head] = entries[families.embedding(model)]
    return entries


def our_config_json(
    model: ModelConfig, *, dtype: np.dtype[Any], portable: bool = False
) -> dict[str, Any]:
    """Return config.json, from which `families.read` makes the model again.

    Args:
        model: the model.
        dtype: type of the weights.
        portable: as for `hf_config_json`.
    """
    if model.hf != "class":
        fields = model.to_dict() | {"dtype": dtype.name}
        names = _OF_AN_EXPORT if model.hf == "code" else ()
        return {key: value for key, value in fields.items() if key not in names}
    fields = hf_config_json(model, dtype=dtype, portable=portable)
    if (
        ngrams.of(model) is not None
    ):  # without these transformers refuses the model; else it ignores tables
        fields = {k: v for k, v in fields.items() if k not in ("model_type", "architectures")}
    return fields | ({"out_norm_bias": True} if len(model.layout.out_norm) > 1 else {})


LARGE_FIELDS = (
    "embedding_dim num_heads num_blocks vocab_size use_bias norm_eps norm_reduction_force_float32 "
    "add_out_norm qk_dim_factor v_dim_factor chunkwise_kernel sequence_kernel step_kernel mode "
    "chunk_size return_last_states autocast_kernel_dtype eps inference_state_dtype "
    "ffn_proj_factor ffn_round_up_to_multiple_of gate_soft_cap output_logit_soft_cap weight_mode"
).split()
"""Fields of xLSTMLargeConfig, which refuses other fields."""

_NAMED_BY_CONTENT = {"model_type", "architectures", "out_norm_bias", "weight_mode", "torch_dtype"}


def package_entries(
    model: ModelConfig, tensors: Mapping[str, NDArray[Any]], *, fused: bool, slstm: str
) -> dict[str, TensorSource]:
    """Return the tensors of the package's state dict.

    Args:
        model: their model.
        tensors: our name -> array.
        fused: stack matrices that share their input; xLSTM Large only.
        slstm: layout of sLSTM cells, "vanilla" or "cuda"; v1 only.

    Raises:
        ConfigError: the package has no such model.
    """
    if not model.in_xlstm:
        raise ConfigError(f"the xlstm package has no model for {model.title}; use --to mlxhog")
    _refuse_tables(model, "the xlstm package")
    ours = dict(tensors)
    if model.tie_word_embeddings:  # the package's state dicts hold both names
        ours[model.untied_head] = ours[families.embedding(model)]
    if model.layout.norms[2] and model.layout.out_norm:  # whose norms have biases, the last too
        width = ours[f"{OUT_NORM}.weight"]
        ours.setdefault(f"{OUT_NORM}.bias", np.zeros(width.shape, width.dtype))
    theirs = translation.to_xlstm(ours, model, slstm=slstm)
    if not fused:
        return {name: TensorSource(a.shape, a.dtype, (a,)) for name, a in theirs.items()}
    return {
        name: _stacked([theirs[part] for part in parts])
        for name, parts in translation.stacks(theirs).items()
    }


def package_configs(
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
    if (inside := model.to_package()) is not None:
        if inside["slstm_block"] is not None:
            inside["slstm_block"]["slstm"]["backend"] = slstm
    else:
        if portable:
            fields |= PORTABLE
        fields["weight_mode"] = "fused" if fused else "single"
        inside = {name: fields[name] for name in LARGE_FIELDS if name in fields}
    others = fields.keys() - inside.keys() - _NAMED_BY_CONTENT - set(SPELLINGS.values())
    beside = {name: fields[name] for name in sorted(others) if fields[name] is not None}
    return inside, beside


def _stacked(parts: list[NDArray[Any]]) -> TensorSource:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return TensorSource(shape, parts[0].dtype, tuple(parts))
