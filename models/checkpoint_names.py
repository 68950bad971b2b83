"""Convert parameter names and layouts of other packages' checkpoints to ours, and ours to xlstm's.

Our names are transformers' for xLSTM Large, and the xlstm package's for the v1 stack, always with
one matrix per role and the sLSTM cell in its "vanilla" layout. The differences of others:

    xlstm package, Large     `embedding.weight` instead of `backbone.embeddings.weight`
    weight_mode "fused"      rows of matrices that share their input are stacked (`FUSED`)
    sLSTM, "cuda" backend    R (NH, DH_in, 4 DH) and b (NH, 4, DH) instead of (NH, 4 DH, DH_in) and
                             (4, NH, DH), b flat in both
    saved by mlx-lm          `recurrent_kernel` and `bias` of the sLSTM cell, without underscores

No element changes, so gradients and moments can be converted, too. Results are views where NumPy
allows it; unknown names stay.

Sources: NX-AI/xlstm 2.0.6, `xlstm_large/model.py` and `blocks/slstm/cell.py`; transformers 5.23.
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxhog.models.families import ModelConfig
from mlxhog.models.xlstm_large import EMBEDDING, XLSTMLargeConfig

Arrays: TypeAlias = Mapping[str, NDArray[Any]]

FUSED = {
    "mlstm_layer.qkv_opreact": (
        "mlstm_layer.q", "mlstm_layer.k", "mlstm_layer.v", "mlstm_layer.ogate_preact",
    ),
    "mlstm_layer.ifgate_preact": ("mlstm_layer.igate_preact", "mlstm_layer.fgate_preact"),
    "ffn.proj_up_gate_z": ("ffn.proj_up_gate", "ffn.proj_up"),
}  # fmt: skip
"""Fused name -> the names whose rows it stacks, in order; also for biases."""

_PACKAGE_EMBEDDING = "embedding.weight"
_RECURRENT, _BIAS = "slstm_cell._recurrent_kernel_", "slstm_cell._bias_"
_GATES = 4
_OF_MLX_LM = {"slstm_cell.recurrent_kernel": _RECURRENT, "slstm_cell.bias": _BIAS}


def to_ours(arrays: Arrays, model: ModelConfig) -> dict[str, NDArray[Any]]:
    """Convert arrays by name, such as a state dict, from any of the layouts above to ours."""
    if not isinstance(model, XLSTMLargeConfig):
        return _slstm_cells(arrays) if model.in_xlstm else dict(arrays)
    spec = model.layout.spec
    rows = {part: spec[f"backbone.blocks.0.{part}.weight"].shape[0]
            for parts in FUSED.values() for part in parts}  # fmt: skip
    translated: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        stem, _, suffix = name.rpartition(".")
        fused = next((one for one in FUSED if stem.endswith(f".{one}")), "")
        ends = [*accumulate(rows[part] for part in FUSED.get(fused, ()))]
        if fused and array.ndim and array.shape[0] == ends[-1]:
            block = stem.removesuffix(fused)
            singles = np.split(array, ends[:-1])
            names = (f"{block}{part}.{suffix}" for part in FUSED[fused])
            translated |= zip(names, singles, strict=True)
        else:
            translated[EMBEDDING if name == _PACKAGE_EMBEDDING else name] = array
    return translated


def to_xlstm(arrays: Arrays, model: ModelConfig) -> dict[str, NDArray[Any]]:
    """Convert our arrays to the names of the xlstm package."""
    if not isinstance(model, XLSTMLargeConfig):
        return dict(arrays)
    return {_PACKAGE_EMBEDDING if k == EMBEDDING else k: v for k, v in arrays.items()}


def _slstm_cells(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Convert sLSTM cells from mlx-lm's names, and from the CUDA layout, known by R's shape."""
    translated = dict[str, NDArray[Any]]()
    for name, array in arrays.items():
        theirs = next((end for end in _OF_MLX_LM if name.endswith(f".{end}")), "")
        translated[name.removesuffix(theirs) + _OF_MLX_LM.get(theirs, "")] = array
    arrays = dict(translated)
    for name, R in arrays.items():
        if not name.endswith(_RECURRENT) or R.ndim != 3:
            continue
        heads, rows, columns = R.shape
        width = min(rows, columns)
        if columns != _GATES * width:
            continue
        translated[name] = R.transpose(0, 2, 1)
        bias = name.removesuffix(_RECURRENT) + _BIAS
        if bias in arrays and arrays[bias].shape == (heads * _GATES * width,):
            b = arrays[bias].reshape(heads, _GATES, width)
            translated[bias] = b.swapaxes(0, 1).reshape(-1)
    return translated
