"""Contents of the checkpoints of each format, for a model of ours: names, layouts and configs.

transformers (`hf_`): 5.23 has no v1 stack, applies the final norm whatever `add_out_norm` says and
without a bias, and does not tie the head to the embedding: `refuse` and `hf_entries` see to it that
what it loads computes what our model does.

mlxhog (`our_`), beside its manifest: for xLSTM Large what transformers loads, as far as it has the
model.

xlstm package (`package_`), of either generation:

    config.yaml      the fields of xLSTMLargeConfig, or of xLSTMLMModelConfig, and no others
    config.json      what these have no room for: token ids, unknown fields
    model.safetensors, or model_0.safetensors ...    the state dict

xLSTM Large is loaded by `xlstm.xlstm_large.from_pretrained.load_from_pretrained(directory)`; the
package has no loader for xLSTMLMModel, whose state dict `load_state_dict(strict=True)` takes.

Our names are transformers' for xLSTM Large, and the xlstm package's for the v1 stack, always with
one matrix per role and the sLSTM cell in its "vanilla" layout. What differs elsewhere:

    xlstm package, Large     `embedding.weight` instead of `backbone.embeddings.weight`
    weight_mode "fused"      rows of matrices that share their input are stacked (`FUSED`)
    sLSTM, "cuda" backend    R (NH, DH_in, 4 DH) and b (NH, 4, DH) instead of (NH, 4 DH, DH_in) and
                             (4, NH, DH), b flat in both

`to_ours` and `to_xlstm` move elements without changing any, so they serve gradients, moments and
recorded cases as well as parameters. Results are views where NumPy can make one; what a name
translation does not know passes through, for `check` to name.

Sources: NX-AI/xlstm 2.0.6, `xlstm_large/model.py` and `blocks/slstm/cell.py`; transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ConfigError
from mlxhog.files.tensors import Entry
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.mad import MADConfig
from mlxhog.models.xlstm_large import EMBEDDING, OUT_NORM, XLSTMLargeConfig
from mlxhog.models.xlstm_large.config import SPELLINGS
from mlxhog.models.xlstm_v1 import XLSTMV1Config

Arrays: TypeAlias = Mapping[str, NDArray[Any]]

FUSED = {
    "mlstm_layer.qkv_opreact": (
        "mlstm_layer.q",
        "mlstm_layer.k",
        "mlstm_layer.v",
        "mlstm_layer.ogate_preact",
    ),
    "mlstm_layer.ifgate_preact": ("mlstm_layer.igate_preact", "mlstm_layer.fgate_preact"),
    "ffn.proj_up_gate_z": ("ffn.proj_up_gate", "ffn.proj_up"),
}
"""Fused name -> the single ones whose rows it stacks, in this order; weights and biases alike."""

_PACKAGE_EMBEDDING = "embedding.weight"
_RECURRENT = "slstm_cell._recurrent_kernel_"
_BIAS = "slstm_cell._bias_"
_GATES = 4


def to_ours(arrays: Arrays, model: ModelConfig) -> dict[str, NDArray[Any]]:
    """Translate arrays of any of the layouts above to ours.

    Args:
        arrays: name -> array, such as a state dict of transformers or of the xlstm package.
        model: whose parameters they are.

    Returns:
        Name -> array under our names: views, except where the sLSTM bias has to be reordered.
    """
    if isinstance(model, MADConfig):
        return dict(arrays)
    if not isinstance(model, XLSTMLargeConfig):
        return _vanilla(arrays)
    translated: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if name == _PACKAGE_EMBEDDING:
            translated[EMBEDDING] = array
        elif (single := _split(name, array, model)) is not None:
            translated.update(single)
        else:
            translated[name] = array
    return translated


def to_xlstm(
    arrays: Arrays, model: ModelConfig, *, fused: bool = False, slstm: str = "vanilla"
) -> dict[str, NDArray[Any]]:
    """Translate our arrays to the xlstm package's, without changing any element.

    Args:
        arrays: name -> array under our names.
        model: whose parameters they are.
        fused: stack the rows of matrices that share their input; xLSTM Large only.
        slstm: layout of the sLSTM cell, "vanilla" or "cuda"; v1 only.
    """
    if not isinstance(model, XLSTMLargeConfig):
        return _cuda(arrays) if slstm == "cuda" else dict(arrays)
    renamed = {_PACKAGE_EMBEDDING if k == EMBEDDING else k: v for k, v in arrays.items()}
    if not fused:
        return renamed
    return {
        name: np.concatenate([renamed[part] for part in parts]) if parts[1:] else renamed[name]
        for name, parts in stacks(renamed).items()
    }


def _split(
    name: str, array: NDArray[Any], model: XLSTMLargeConfig
) -> dict[str, NDArray[Any]] | None:
    """Return the single parts of a fused array; None for another name or a foreign shape."""
    stem, _, suffix = name.rpartition(".")
    ending = next((fused for fused in FUSED if stem.endswith(f".{fused}")), None)
    if ending is None:
        return None
    parts = FUSED[ending]
    rows = [_rows(part, model) for part in parts]
    if array.ndim == 0 or array.shape[0] != sum(rows):
        return None
    block = stem.removesuffix(ending)
    first = np.cumsum([0, *rows]).tolist()
    return {
        f"{block}{part}.{suffix}": array[first[i] : first[i + 1]] for i, part in enumerate(parts)
    }


def _rows(part: str, model: XLSTMLargeConfig) -> int:
    if part in ("mlstm_layer.q", "mlstm_layer.k"):
        return model.qk_dim
    if part in ("mlstm_layer.v", "mlstm_layer.ogate_preact"):
        return model.v_dim
    return model.ffn_dim if part.startswith("ffn.") else model.num_heads


def stacks(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return which single names each name of the fused layout stacks, in order.

    A name that is not fused stands for itself.
    """
    parts_of: dict[str, tuple[str, ...]] = {}
    for name in names:
        stem, _, suffix = name.rpartition(".")
        for fused, parts in FUSED.items():
            if stem.endswith(f".{parts[0]}"):
                block = stem.removesuffix(parts[0])
                parts_of[f"{block}{fused}.{suffix}"] = tuple(f"{block}{p}.{suffix}" for p in parts)
                break
            if any(stem.endswith(f".{part}") for part in parts):
                break  # stacked with the first part
        else:
            parts_of[name] = (name,)
    return parts_of


def _vanilla(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Bring sLSTM cells to the vanilla layout; the shape of R tells which one they have."""
    translated = dict(arrays)
    for name, R in arrays.items():
        if not name.endswith(_RECURRENT) or R.ndim != 3 or R.shape[2] != _GATES * R.shape[1]:
            continue
        translated[name] = R.transpose(0, 2, 1)
        bias = name.removesuffix(_RECURRENT) + _BIAS
        heads, width, _ = R.shape
        if bias in arrays and arrays[bias].shape == (heads * _GATES * width,):
            translated[bias] = arrays[bias].reshape(heads, _GATES, width).swapaxes(0, 1).reshape(-1)
    return translated


def _cuda(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Bring sLSTM cells from the vanilla layout to that of the CUDA backend."""
    translated = dict(arrays)
    for name, R in arrays.items():
        if name.endswith(_RECURRENT):
            translated[name] = R.transpose(0, 2, 1)
            bias = name.removesuffix(_RECURRENT) + _BIAS
            heads, _, width = R.shape
            translated[bias] = arrays[bias].reshape(_GATES, heads, width).swapaxes(0, 1).reshape(-1)
    return translated


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


def hf_entries(model: ModelConfig, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Entry]:
    """Return the tensors of a directory of transformers; a tied head is written out."""
    entries = {
        name: Entry(array.shape, array.dtype, (array,))
        for name, array in tensors.items()
        if name != f"{OUT_NORM}.bias"
    }
    if model.tie_word_embeddings:
        entries[families.of(model).head] = entries[families.embedding(model)]
    return entries


def hf_config_json(
    model: XLSTMLargeConfig, *, dtype: np.dtype[Any], portable: bool
) -> dict[str, Any]:
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


def our_entries(model: ModelConfig, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Entry]:
    """Return the tensors of model.safetensors; a tied head of xLSTM Large is written out."""
    entries = {name: Entry(array.shape, array.dtype, (array,)) for name, array in tensors.items()}
    if isinstance(model, XLSTMLargeConfig) and model.tie_word_embeddings:
        entries[families.of(model).head] = entries[families.embedding(model)]
    return entries


def our_config_json(
    model: ModelConfig, *, dtype: np.dtype[Any], portable: bool = False
) -> dict[str, Any]:
    """Return config.json, from which `families.read` makes the model again.

    Args:
        model: the model.
        dtype: of the weights.
        portable: as for `hf_config_json`.
    """
    if not isinstance(model, XLSTMLargeConfig):
        return model.to_dict() | {"dtype": dtype.name}
    fields = hf_config_json(model, dtype=dtype, portable=portable)
    return fields | ({"out_norm_bias": True} if model.out_norm_bias else {})


LARGE_FIELDS = (
    "embedding_dim num_heads num_blocks vocab_size use_bias norm_eps norm_reduction_force_float32 "
    "add_out_norm qk_dim_factor v_dim_factor chunkwise_kernel sequence_kernel step_kernel mode "
    "chunk_size return_last_states autocast_kernel_dtype eps inference_state_dtype "
    "ffn_proj_factor ffn_round_up_to_multiple_of gate_soft_cap output_logit_soft_cap weight_mode"
).split()
"""Of xLSTMLargeConfig, which refuses others."""

_NAMED_BY_CONTENT = {"model_type", "architectures", "out_norm_bias", "weight_mode", "torch_dtype"}


def package_entries(
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
    theirs = to_xlstm(ours, model, slstm=slstm)
    if not fused:
        return {name: Entry(a.shape, a.dtype, (a,)) for name, a in theirs.items()}
    return {
        name: _stacked([theirs[part] for part in parts]) for name, parts in stacks(theirs).items()
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
    if isinstance(model, XLSTMV1Config):
        inside = model.to_package()
        if model.slstm_block is not None:
            inside["slstm_block"]["slstm"]["backend"] = slstm
    else:
        if portable:
            fields |= PORTABLE
        fields["weight_mode"] = "fused" if fused else "single"
        inside = {name: fields[name] for name in LARGE_FIELDS if name in fields}
    others = fields.keys() - inside.keys() - _NAMED_BY_CONTENT - set(SPELLINGS.values())
    beside = {name: fields[name] for name in sorted(others) if fields[name] is not None}
    return inside, beside


def _stacked(parts: list[NDArray[Any]]) -> Entry:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Entry(shape, parts[0].dtype, tuple(parts))
