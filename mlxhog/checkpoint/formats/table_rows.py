"""Tables of n-grams in model.safetensors: only rows that are not zero.

    ngrams.table_N.rows    (k,) int32, ascending
    ngrams.table_N.values  (k, width), of the type of the other tensors

Tables begin at zero, so these are the rows that training has touched. A short run touches few of
them; a long one nearly all rows of high orders, whose floats do not compress. So a run keeps one
checkpoint of such a model unless `keep_last` says more, exact to the bit in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base.mapped import FLOATS
from mlxhog.base.tensors import TensorSource
from mlxhog.errors import CheckpointError
from mlxhog.models import families
from mlxhog.models.families import ModelConfig


def packed(name: str, table: NDArray[Any]) -> dict[str, TensorSource]:
    """Return the two tensors of a table."""
    rows = np.flatnonzero(table.any(axis=1)).astype(np.int32)
    values = table[rows]
    return {
        f"{name}.rows": TensorSource(rows.shape, rows.dtype, (rows,)),
        f"{name}.values": TensorSource(values.shape, values.dtype, (values,)),
    }


def unpacked(
    tensors: Mapping[str, NDArray[Any]], model: ModelConfig, where: Path
) -> dict[str, NDArray[Any]]:
    """Return tensors with whole tables in place of their rows.

    Raises:
        CheckpointError: rows and values do not fit each other or the table.
    """
    whole = dict(tensors)
    for name, spec in families.table_spec(model).items():
        if f"{name}.rows" not in whole or f"{name}.values" not in whole:
            continue
        rows, values = whole.pop(f"{name}.rows"), whole.pop(f"{name}.values")
        fits = rows.dtype == np.int32 and rows.ndim == 1 and values.dtype in FLOATS
        fits = fits and values.shape == (len(rows), *spec.shape[1:])
        ascend = fits and np.all(np.diff(rows, prepend=-1, append=spec.shape[0]) > 0)
        if not ascend:
            raise CheckpointError(
                f"{where}: the rows of {name} do not fit a table of {spec.shape[0]:,} rows of "
                f"{spec.shape[1]} floats; use the config of these tensors, or copy the checkpoint "
                "again"
            )
        table = np.zeros(spec.shape, np.float32)
        table[rows] = values
        whole[name] = table
    return whole
