"""Results of an implementation, as files that `mlxhog parity judge` reads."""

import json
from functools import cache

import ml_dtypes
import numpy as np

from mlxhog.base import tensors
from mlxhog.conformance.vectors.case import MANIFEST, STEPS
from mlxhog.conformance.vectors.cells import CELLS
from mlxhog.conformance.vectors.export import make

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
EVERY = ("forward", "states", "steps", "gradients")


@cache
def made(name, kind="usual", seed=0):
    """A case of some equations, with its results in float64."""
    return make(CELLS[name], kind, seed)


def set_of(folder, *cases):
    """Write cases as a set; return its folder."""
    folder.mkdir(parents=True)
    entries = [case.write(folder) for case in cases]
    manifest = {"format": 1, "set": "few", "version": 1, "cases": entries}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def right(case, dtype="float32", checks=EVERY):
    """The expected results of some checks of a case, rounded to a dtype, states to float32."""
    names = [name for check in checks for name in case.checks[check]]

    def stored(stem):
        dtype_of = np.float32 if stem.startswith("state.") else TYPES[dtype]
        return case.expected[stem].astype(dtype_of)

    return {name: stored(name.removeprefix(STEPS)) for name in names}


def results_of(folder, arrays, claims=None, **fields):
    """Write results by case as an implementation's; return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in arrays.items():
        tensors.write(folder / f"{name}.safetensors", own)
    record = {"format": 1, "implementation": "a.c", "dtype": "float32"}
    record |= {"claims": claims or {name: EVERY for name in arrays}} | fields
    (folder / "results.json").write_text(json.dumps(record))
    return folder
