"""The sLSTM cell for tests: random inputs, and the recorded cases, in our layouts."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.models.golden import FOLDER

Array = NDArray[Any]

CASES = ("slstm_cell_a", "slstm_cell_b_init", "slstm_cell_c_extreme")
INPUTS = ("i", "f", "z", "o", "R", "b")
STATE = ("h", "c", "n", "m")


@dataclass(frozen=True)
class SlstmCase:
    """One recorded run: a gate or h is (B, S, NH, DH), a state four arrays (B, NH, DH).

    The recorded loss is the sum of h * h_weight; `grads` has its float64 gradients by the names in
    INPUTS, and d_state those of a state that is not zero.
    """

    inputs: dict[str, Array]
    state: tuple[Array, ...]
    h_weight: Array
    states: tuple[Array, ...]
    grads: dict[str, Array]
    d_state: tuple[Array, ...] | None


def slstm_case(name):
    t = load_file(FOLDER / f"{name}.safetensors")
    shape = json.loads((FOLDER / f"{name}.json").read_text())["shape"]
    B, S, NH, DH = (shape[letter] for letter in ("B", "S", "NH", "DH"))

    def positions(x, *parts):
        """(..., S, B, parts * NH * DH) -> parts, if any, then (B, S, NH, DH)."""
        split = x.reshape(*x.shape[:-2], B, *parts, NH, DH)
        first = np.moveaxis(split, -3, 0) if parts else split
        return np.ascontiguousarray(first.swapaxes(-4, -3))

    gates = dict(zip(INPUTS, positions(t["Wx"], 4), strict=False))
    d_gates = dict(zip(INPUTS, positions(t["f64.grad_Wx"], 4), strict=False))
    d_state = t.get("f64.grad_state0")
    return SlstmCase(
        inputs=gates | {"R": t["R"], "b": t["b"]},
        state=tuple(t["state0"].reshape(4, B, NH, DH)),
        h_weight=positions(t["y_weight"]),
        states=tuple(positions(t["f64.states_all"])),
        grads=d_gates | {"R": t["f64.grad_R"], "b": t["f64.grad_b"]},
        d_state=None if d_state is None else tuple(d_state.reshape(4, B, NH, DH)),
    )


def slstm_inputs(B, S, NH, DH, *, seed=0):
    """Random inputs by the names in INPUTS, float32."""
    rng = np.random.default_rng((seed, B, S, NH, DH))
    gates = {name: rng.normal(0, 2, (B, S, NH, DH)) for name in "ifzo"}
    gates["R"] = rng.normal(0, DH**-0.5, (NH, 4 * DH, DH))
    gates["b"] = rng.normal(0, 1, 4 * NH * DH)
    return {name: value.astype(np.float32) for name, value in gates.items()}


def slstm_state(B, NH, DH, *, seed=0):
    """A random state that the cell could have reached."""
    rng = np.random.default_rng((seed, B, NH, DH))
    h, c, n, m = rng.normal(0, 1, (4, B, NH, DH)).astype(np.float32)
    return h, c, 1 + np.abs(n), m


def wide(x):
    """The same numbers in float64."""
    return {name: value.astype(np.float64) for name, value in x.items()}
