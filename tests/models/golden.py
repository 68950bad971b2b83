"""The recorded cases in tests/golden/xlstm, under the names that this package uses."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.xlstm_large import EMBEDDING

FOLDER = Path(__file__).parents[1] / "golden" / "xlstm"
MODELS = (
    "hf_a",
    "hf_b_oddlen",
    "hf_d_generate",
    "hf_e_len1",
    "hf_f_vdim",
    "large_a",
    "large_b_oddlen",
)
TRAINED = tuple(name for name in MODELS if name != "hf_e_len1")
V1_MODELS = (
    "v1_mlstm",
    "v1_mlstm_b",
    "v1_slstm",
    "v1_slstm_b",
    "v1_mixed_7to1",
    "v1_mixed_02",
)
CELLS = tuple(
    f"mlstm_cell_{case}"
    for case in ("a", "b_oddlen", "c_init", "d_extreme", "e_igate_minus10", "f_len1")
)

Array = NDArray[Any]


@dataclass(frozen=True)
class ModelCase:
    """One recorded model: its config, its parameters and all tensors of the file."""

    cfg: ModelConfig
    params: dict[str, Array]
    grads: dict[str, Array]
    tensors: dict[str, Array]

    @property
    def tokens(self):
        return self.tensors["input_ids"].astype(np.int32)

    @property
    def labels(self):
        """The target of each position: the next token's label, and -100 at the end."""
        recorded = self.tensors.get("labels", self.tensors["input_ids"])
        end = np.full_like(recorded[:, :1], -100)
        return np.concatenate([recorded[:, 1:], end], axis=1).astype(np.int32)

    def state(self, layer, prefix="state"):
        """Recorded C, n and m of one block, m as (B, NH)."""
        C, n, m = (self.tensors[f"{prefix}.{layer}.{name}"] for name in "Cnm")
        return C, n, m[..., 0]


def model_case(name):
    tensors = load_file(FOLDER / f"{name}.safetensors")
    config = recorded_config(name)
    return ModelCase(
        cfg=families.read(config),
        params=_renamed(tensors, "param."),
        grads=_renamed(tensors, "grad."),
        tensors=tensors,
    )


def recorded_config(name):
    """The config that the library of a case was given, with what it made of it."""
    config = json.loads((FOLDER / f"{name}.json").read_text())["config"]
    return config


def _renamed(tensors, prefix):
    """Tensors of one prefix; the xlstm package calls the embedding `embedding.weight`."""
    result = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return {EMBEDDING if k == "embedding.weight" else k: v for k, v in result.items()}


@dataclass(frozen=True)
class CellCase:
    """One recorded run of the cell alone, in our layouts (B, S, NH, ...)."""

    inputs: dict[str, Array]
    state: tuple[Array, Array, Array] | None
    h_weight: Array
    chunk_size: int
    eps: float
    recorded: dict[str, Array]

    def h(self, form):
        return _positions_first(self.recorded[f"{form}.h"])

    def last_state(self, form):
        C, n, m = (self.recorded[f"{form}.{name}"] for name in "Cnm")
        return C, n, m[..., 0]

    def grad(self, form, name):
        return _positions_first(self.recorded[f"{form}.grad_{name}"])

    def forms(self):
        """Recorded float64 forms that start from m = 0 or the given state: all but `parallel`."""
        return [
            form
            for form in ("chunkwise_f64", "chunkwise_padded_f64", "recurrent_f64")
            if f"{form}.h" in self.recorded
        ]


def cell_case(name):
    tensors = load_file(FOLDER / f"{name}.safetensors")
    meta = json.loads((FOLDER / f"{name}.json").read_text())
    state = None
    if "c_initial" in tensors:
        C, n, m = (tensors[f"{part}_initial"] for part in "cnm")
        state = (C, n, m[..., 0])
    return CellCase(
        inputs={name: _positions_first(tensors[name]) for name in "qkvif"},
        state=state,
        h_weight=_positions_first(tensors["h_weight"]),
        chunk_size=meta["shape"]["chunk_size"],
        eps=meta["eps"],
        recorded={k: v for k, v in tensors.items() if "." in k},
    )


def _positions_first(x):
    """(B, NH, S, ...) -> (B, S, NH, ...)."""
    return x.swapaxes(1, 2)
