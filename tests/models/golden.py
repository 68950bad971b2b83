"""The recorded cases in tests/golden/xlstm, under the names and in the layouts of this package.

The README of the golden data set lists the names in the files.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from mlxhog.models import families
from mlxhog.models.checkpoint_names import to_ours
from mlxhog.models.families import ModelConfig

FOLDER = Path(__file__).parents[1] / "golden" / "xlstm"
NAMES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
V1_MODELS = tuple(name for name in NAMES if name.startswith("v1_"))
MLSTM, SLSTM = "qkvif", ("i", "f", "z", "o", "R", "b")
MLSTM_STATE, SLSTM_STATE = ("C0", "n0", "m0"), ("h0", "c0", "n0", "m0")

Array = NDArray[Any]


@dataclass(frozen=True)
class ModelCase:
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


@dataclass(frozen=True)
class CellCase:
    """One recorded run of a cell, with the state as inputs, and all recorded results by form."""

    inputs: dict[str, Array]
    how: dict[str, Any]
    weight: Array
    forms: dict[str, dict[str, Array]]


def meta(name, folder=FOLDER):
    return json.loads((folder / f"{name}.json").read_text())


def model_case(name, folder=FOLDER):
    tensors = load_file(folder / f"{name}.safetensors")
    config = meta(name, folder)["config"]
    if {"mlstm_block", "slstm_block"} & config.keys():
        config = {"model_type": "xlstm_v1", **config}
    cfg = families.read(config)

    def below(prefix):
        found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        return to_ours(found, cfg)

    return ModelCase(cfg, below("param."), below("grad."), tensors)


def cell_case(name, folder=FOLDER):
    """An mLSTM cell. In the parallel form the stabilizer comes from the sequence alone."""
    t, facts = load_file(folder / f"{name}.safetensors"), meta(name, folder)
    inputs = {letter: _positions_second(t[letter]) for letter in MLSTM}
    if "c_initial" in t:
        inputs |= {"C0": t["c_initial"], "n0": t["n_initial"], "m0": t["m_initial"][..., 0]}
    states, forms = {"grad_c_initial": "dC0", "grad_n_initial": "dn0"}, {}
    for key, value in t.items():
        form, _, what = key.partition(".")
        if form.endswith("_f64"):  # those in float32 add nothing; some are of other equations
            result = states.get(what, what.replace("grad_", "d"))
            forms.setdefault(form, {})[result] = (
                value[..., 0] if what == "m" else
                value if what in "Cn" or what.endswith("_initial") else _positions_second(value)
            )  # fmt: skip
    how = {"chunk_size": facts["shape"]["chunk_size"], "eps": facts["eps"]}
    return CellCase(inputs, how, _positions_second(t["h_weight"]), forms)


def slstm_case(name, folder=FOLDER):
    """An sLSTM cell; results are the states after every position, "all h" and so on."""
    t = load_file(folder / f"{name}.safetensors")
    shape = meta(name, folder)["shape"]
    B, NH, DH = (shape[letter] for letter in ("B", "NH", "DH"))

    def positions(x, *parts):
        """(..., S, B, parts * NH * DH) -> parts, if any, then (B, S, NH, DH)."""
        split = x.reshape(*x.shape[:-2], B, *parts, NH, DH)
        first = np.moveaxis(split, -3, 0) if parts else split
        return np.ascontiguousarray(first.swapaxes(-4, -3))

    def state(x):
        return dict(zip(SLSTM_STATE, x.reshape(4, B, NH, DH), strict=True))

    inputs = dict(zip("ifzo", positions(t["Wx"], 4), strict=True))
    inputs |= {"R": t["R"], "b": t["b"]} | state(t["state0"])
    grads = dict(zip("ifzo", positions(t["f64.grad_Wx"], 4), strict=True))
    grads |= {"R": t["f64.grad_R"], "b": t["f64.grad_b"]}
    if "f64.grad_state0" in t:
        grads |= state(t["f64.grad_state0"])
    results = {f"d{name}": grad for name, grad in grads.items()}
    for letter, x in zip("hcnm", positions(t["f64.states_all"]), strict=True):
        results[f"all {letter}"] = x
    return CellCase(inputs, {}, positions(t["y_weight"]), {"f64": results})


def _positions_second(x):
    """(B, NH, S, ...) -> (B, S, NH, ...)."""
    return np.ascontiguousarray(x.swapaxes(1, 2))
