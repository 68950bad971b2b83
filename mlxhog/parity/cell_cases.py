"""Recorded cells and operators, in our layouts: batch first, positions second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlxhog.errors import DataError
from mlxhog.parity import components
from mlxhog.parity.subject import Array, ComponentsPlan, MlstmPlan, SlstmPlan, Subject

RECORDED = "recorded"


def read(title: str, found: Mapping[str, Array], meta: Mapping[str, Any]) -> Subject | None:
    """Return the cell or the operators that were recorded, or None where these are neither.

    Raises:
        DataError: a fact is missing.
    """
    names = set(found)
    try:
        if {*"qkvif", "h_weight"} <= names:
            return _mlstm(title, found, meta)
        if {"Wx", "R", "b", "y_weight"} <= names:
            return _slstm(title, found)
        if "x" in names and any(name.endswith(".y") for name in names):
            return _components(title, found)
    except KeyError as error:
        raise DataError(f"{title}: the case lacks {error}; see the format's README") from error
    return None


def _mlstm(title: str, found: Mapping[str, Array], meta: Mapping[str, Any]) -> Subject:
    inputs = {letter: _positions_second(found[letter]) for letter in "qkvif"}
    if "c_initial" in found:
        inputs |= {
            "C0": found["c_initial"],
            "n0": found["n_initial"],
            "m0": found["m_initial"][..., 0],
        }
    recorded: dict[str, dict[str, Array]] = {}
    notes = []
    scale = found["q"].shape[-1] ** 0.5
    for key, value in found.items():
        recorded_form, dot, what = key.partition(".")
        if not dot:
            continue
        form, side = _form(recorded_form, found)
        v1 = recorded_form.startswith("v1_")
        if recorded_form.endswith("_custbw") and what.startswith("grad_"):
            continue  # treats the denominator as a constant: not the gradient
        name, ours = _mlstm_result(what, value, scale if v1 else 1.0)
        if name is None:
            notes.append(f"not compared: {key}, a name unknown here")
        else:
            recorded.setdefault(side, {})[f"{form}/{name}"] = ours
    if any("_custbw.grad" in key for key in found):
        notes.append("not compared: gradients *_custbw, which treat the denominator as a constant")
    return Subject(
        title=title,
        plan=MlstmPlan(chunk_size=int(meta["shape"]["chunk_size"]), eps=float(meta["eps"])),
        inputs=_float32(inputs),
        fixed=_float32({"h_weight": _positions_second(found["h_weight"])}),
        recorded=recorded,
        notes=tuple(notes),
    )


def _form(recorded: str, found: Mapping[str, Array]) -> tuple[str, str]:
    """Return the form that a recorded one is, and the side whose result it is."""
    f64 = "_f64" if recorded.endswith("_f64") else ""
    base = recorded.removesuffix("_f64")
    form, side = base, RECORDED
    for mark, cut in (("v1_", str.removeprefix), ("_custbw", str.removesuffix)):
        if mark in form:
            form, side = cut(form, mark), f"{side}_{mark.strip('_')}"
    if form.endswith("_padded"):
        form = form.removesuffix("_padded")
        if f"{form}{f64}.h" in found:  # recorded without padding too
            side += "_padded"
    return form, side + f64


def _mlstm_result(what: str, value: Array, scale: float) -> tuple[str | None, Array]:
    """Return our name and layout; `scale` is what v1 keeps in the key and we in the query."""
    if what == "h":
        return "h", _positions_second(value)
    if what == "C":
        return "state/C", value * scale
    if what == "n":
        return "state/n", value.reshape(value.shape[:3]) * scale
    if what == "m":
        return "state/m", value.reshape(value.shape[:2])
    if what.startswith("grad_") and what.endswith("_initial"):
        letter = what.removeprefix("grad_").removesuffix("_initial")
        return f"grad/{'C' if letter == 'c' else letter}0", value
    if what.startswith("grad_"):
        return f"grad/{what.removeprefix('grad_')}", _positions_second(value)
    return None, value


def _float32(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """What every side gets; only NumPy computes in more."""
    return {name: np.asarray(value, np.float32) for name, value in arrays.items()}


def _positions_second(x: Array) -> Array:
    """(B, NH, S, ...) -> (B, S, NH, ...)."""
    return np.ascontiguousarray(x.swapaxes(1, 2))


def _slstm(title: str, found: Mapping[str, Array]) -> Subject:
    NH, _, DH = found["R"].shape
    S, B, _ = found["Wx"].shape

    def gates(x: Array) -> dict[str, Array]:
        split = x.reshape(S, B, 4, NH, DH).transpose(2, 1, 0, 3, 4)
        return dict(zip("ifzo", map(np.ascontiguousarray, split), strict=True))

    def heads(x: Array) -> Array:  # (S, B, H) -> (B, S, NH, DH)
        return np.ascontiguousarray(x.reshape(S, B, NH, DH).swapaxes(0, 1))

    def state(x: Array) -> dict[str, Array]:  # (4, B, H) in the order h, c, n, m
        return {
            f"{letter}0": part.reshape(B, NH, DH) for letter, part in zip("hcnm", x, strict=True)
        }

    recorded: dict[str, dict[str, Array]] = {}
    for prefix, side in (("", RECORDED), ("f64.", f"{RECORDED}_f64")):
        grads: dict[str, Callable[[Array], dict[str, Array]]] = {
            "grad_Wx": gates,
            "grad_state0": state,
            "grad_R": lambda x: {"R": x},
            "grad_b": lambda x: {"b": x},
        }
        results: dict[str, Array] = {}
        if f"{prefix}states_all" in found:
            h, *others = (heads(part) for part in found[f"{prefix}states_all"])
            results |= {"sequence/h": h, "stepwise/h": h}
            for letter, part in zip("hcnm", (h, *others), strict=True):
                results[f"sequence/state/{letter}"] = part[:, -1]
                if letter != "h":
                    results[f"stepwise/states/{letter}"] = part
        for key, split in grads.items():
            if prefix + key in found:
                parts = split(found[prefix + key])
                results |= {f"sequence/grad/{name}": part for name, part in parts.items()}
        if results:
            recorded[side] = results
    known = {"Wx", "R", "b", "state0", "y_weight", "states_all", *grads}
    notes = [
        f"not compared: {key}, a name unknown here"
        for key in found
        if key.removeprefix("f64.") not in known
    ]
    return Subject(
        title=title,
        plan=SlstmPlan(),
        inputs=_float32(
            {
                **gates(found["Wx"]),
                "R": found["R"],
                "b": found["b"],
                **state(found.get("state0", np.zeros((4, B, NH * DH), np.float32))),
            }
        ),
        fixed=_float32({"h_weight": heads(found["y_weight"])}),
        recorded=recorded,
        notes=tuple(notes),
    )


def _components(title: str, found: Mapping[str, Array]) -> Subject:
    recorded: dict[str, dict[str, Array]] = {}
    inputs, names, notes = {}, [], []
    for key, value in found.items():
        if not key.removesuffix("_f64").endswith(".y"):
            inputs[key] = value
            continue
        name = key.removesuffix("_f64").removesuffix(".y")
        if components.call_of(name) is None:
            notes.append(f"not compared: {key}, an operator unknown here")
            continue
        side = RECORDED + ("_f64" if key.endswith("_f64") else "")
        if value.ndim == 4:
            value = _positions_second(value).reshape(value.shape[0], value.shape[2], -1)
        recorded.setdefault(side, {})[f"{name}/y"] = value
        names.append(name)
    return Subject(
        title=title,
        plan=ComponentsPlan(tuple(dict.fromkeys(names))),
        inputs=_float32(inputs),
        fixed={},
        recorded=recorded,
        notes=tuple(notes),
    )
