"""Translate arrays of other packages to our names and layouts, and ours to the xlstm package's.

Our names are transformers' for xLSTM Large, and the xlstm package's for the v1 stack, always with
one matrix per role and the sLSTM cell in its "vanilla" layout. The differences of others:

    xlstm package, Large     `embedding.weight` instead of `backbone.embeddings.weight`
    weight_mode "fused"      rows of matrices that share their input are stacked (`FUSED`)
    sLSTM, "cuda" backend    R (NH, DH_in, 4 DH) and b (NH, 4, DH) instead of (NH, 4 DH, DH_in) and
                             (4, NH, DH), b flat in both

No element changes, so both functions serve gradients, moments and recorded cases as well as
parameters. Results are views where NumPy can make one; an unknown name passes through.

Sources: NX-AI/xlstm 2.0.6, `xlstm_large/model.py` and `blocks/slstm/cell.py`; transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxhog.models.families import ModelConfig
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.xlstm_large import EMBEDDING, XLSTMLargeConfig

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
"""Fused name -> the single names whose rows it stacks, in order; also for biases."""

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
    arrays: Arrays, model: ModelConfig, *, slstm: str = "vanilla"
) -> dict[str, NDArray[Any]]:
    """Translate our arrays to the xlstm package's, without changing any element.

    Args:
        arrays: name -> array under our names.
        model: whose parameters they are.
        slstm: layout of the sLSTM cell, "vanilla" or "cuda"; v1 only.
    """
    if not isinstance(model, XLSTMLargeConfig):
        return _cuda(arrays) if slstm == "cuda" else dict(arrays)
    return {_PACKAGE_EMBEDDING if k == EMBEDDING else k: v for k, v in arrays.items()}


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
    """Return name of the fused layout -> the single names that it stacks, in order.

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
    """Convert sLSTM cells to the vanilla layout; the shape of R shows the present one."""
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
