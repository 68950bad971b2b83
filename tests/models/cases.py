"""Reads recorded cases: `NAME.safetensors` with every tensor, `NAME.json` with its config.

The format is that of the golden data set xlstm (its README lists the names): a language model with
parameters, tokens, outputs and gradients; a cell alone; or single operators. Reading renames and
reorders into the names and layouts of this package, and computes nothing.

    in the file                            here
    param.X, grad.X                        our name of X; fused rows split
    input_ids, labels                      tokens, targets: the next token's label, -100 at the end
    NAME_f64                               the same on the side "recorded_f64"
    stepwise_logits, stepwise_state.L.P    stepwise/logits, stepwise/state/L/P
    cached_logits                          logits of the side "recorded_cached"
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load_file

from mlxhog.models import families
from mlxhog.models.translation import to_ours
from mlxhog.models.xlstm_large import OUT_NORM, XLSTMLargeConfig
from mlxhog.parity.subject import Array, ModelPlan, Results, next_labels
from tests.models.cells import ComponentsPlan, MlstmPlan, SlstmPlan, call_of

RECORDED = "recorded"
GREEDY = "init/greedy_ids"  # whole numbers, which a tolerance of 2e-6 leaves equal


CellPlan = MlstmPlan | SlstmPlan | ComponentsPlan


@dataclass(frozen=True)
class RecordedCase:
    """A computation and its recorded results.

    Attributes:
        title: its name.
        plan: of the computation.
        inputs: parameters and other float32 inputs, by name.
        fixed: `tokens` and `targets` (B, S) int32, `greedy_prompt` (B, P) int32, or weights of the
            outputs of a cell.
        recorded: results by the name of their side.
        notes: on what is not compared, and why.
        greedy: tokens that follow `greedy_prompt`.
    """

    title: str
    plan: ModelPlan | CellPlan
    inputs: dict[str, Array]
    fixed: dict[str, Array]
    recorded: Mapping[str, Results]
    notes: tuple[str, ...] = ()
    greedy: int = 0


def read(path):
    """Read a recorded case: the .safetensors file, and the .json file beside it."""
    arrays = load_file(path)
    meta = json.loads(path.with_suffix(".json").read_text())
    title, names = f"{path.stem}: {meta.get('what', 'recorded case')}", set(arrays)
    if "input_ids" in names:
        return _model(title, arrays, meta)
    if {*"qkvif", "h_weight"} <= names:
        return _mlstm(title, arrays, meta)
    if {"Wx", "R", "b", "y_weight"} <= names:
        return _slstm(title, arrays)
    return _components(title, arrays)


def _model(title, arrays, meta):
    cfg = _config(meta["config"])
    params = to_ours(_below("param.", arrays), cfg)
    grads = to_ours(_below("grad.", arrays), cfg)
    cfg, notes = _as_it_ran(cfg, params, grads)
    tokens = arrays.pop("input_ids")
    labels = arrays.pop("labels", tokens)
    fixed = {"tokens": tokens.astype(np.int32)}
    if ((targets := next_labels(labels)) != -100).any():  # one token has no next one
        fixed["targets"] = targets
    greedy = 0
    if "greedy_prompt" in arrays and "greedy_ids" in arrays:
        prompt = arrays.pop("greedy_prompt").astype(np.int32)
        arrays["greedy_ids"] = _continuation(arrays["greedy_ids"], prompt)
        fixed["greedy_prompt"], greedy = prompt, arrays["greedy_ids"].shape[1]
    recorded = {}
    for name, grad in grads.items():
        recorded.setdefault(RECORDED, {})[f"grad/{name}"] = grad
    for name, value in arrays.items():
        if name.startswith(("param.", "grad.")):
            continue
        side = RECORDED + ("_f64" if name.endswith("_f64") else "")
        ours = _result_name(name.removesuffix("_f64"))
        if name == "cached_logits":
            side, ours = f"{RECORDED}_cached", "logits"
        if ours is None:
            notes.append(f"not compared: {name}, a name unknown here")
        else:
            recorded.setdefault(side, {})[ours] = _shaped(ours, value)
    inputs = {name: np.asarray(value, np.float32) for name, value in params.items()}
    return RecordedCase(title, ModelPlan(cfg), inputs, fixed, recorded, tuple(notes), greedy)


def _as_it_ran(cfg, params, grads):
    """Return the model that the package ran, which may differ from its config; and notes on that.

    With `use_bias` the final norm of the xlstm package has a bias, that of transformers has none.
    transformers applies this norm even with `add_out_norm` false, and ties no head. If a head is
    tied, its second name is removed from `params` and `grads`.
    """
    changes = {}
    notes = []
    if isinstance(cfg, XLSTMLargeConfig):
        changes["out_norm_bias"] = f"{OUT_NORM}.bias" in params
        if not cfg.add_out_norm and f"{OUT_NORM}.weight" in params:
            changes["add_out_norm"] = True
            notes.append("add_out_norm is false, but the recorded model applies the final norm")
    head, embedding = families.of(cfg).head, families.embedding(cfg)
    if cfg.tie_word_embeddings and head in params and embedding in params:
        if np.array_equal(params[head], params[embedding]):
            del params[head]
            grads.pop(head, None)
        else:
            large = isinstance(cfg, XLSTMLargeConfig)
            changes["tie_word_embeddings" if large else "tie_weights"] = False
            notes.append("the config ties the head, but the recorded head is a separate matrix")
    return dataclasses.replace(cfg, **changes), notes


def _config(fields):
    """Read a config of either package; only the v1 stack has fields for two kinds of blocks."""
    v1 = "mlstm_block" in fields or "slstm_block" in fields
    return families.read({"model_type": "xlstm_v1", **fields} if v1 else fields)


def _below(prefix, arrays):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _continuation(ids, prompt):
    """Tokens after the prompt: transformers' generate repeats the prompt, xlstm's does not."""
    P = prompt.shape[1]
    repeats = ids.shape[1] > P and np.array_equal(ids[:, :P], prompt)
    return ids[:, P:] if repeats else ids


def _result_name(name):
    """Return the name of a recorded result in `subject.py`, or None for one that has none."""
    if name == "greedy_ids":
        return GREEDY
    if name in ("logits", "loss"):
        return name
    step = "stepwise/" if name.startswith("stepwise_") else ""
    match name.removeprefix("stepwise_").split(".", 1):
        case ["logits"]:
            return step + "logits"
        case ["hidden", which]:
            return f"hidden/{which}"
        case ["state", which]:
            return f"{step}state/{which.replace('.', '/')}"
        case ["init", which]:
            return f"init/{which}"
    return None


def _shaped(name, value):
    if name == "loss":
        return value.reshape(())
    if name.endswith("/m") and value.ndim == 3 and value.shape[-1] == 1:
        return value[..., 0]
    return value


def _mlstm(title, arrays, meta):
    inputs = {letter: _positions_second(arrays[letter]) for letter in "qkvif"}
    if "c_initial" in arrays:
        inputs |= {
            "C0": arrays["c_initial"],
            "n0": arrays["n_initial"],
            "m0": arrays["m_initial"][..., 0],
        }
    recorded = {}
    notes = []
    scale = arrays["q"].shape[-1] ** 0.5
    for key, value in arrays.items():
        recorded_form, dot, what = key.partition(".")
        if not dot:
            continue
        form, side = _form(recorded_form, arrays)
        v1 = recorded_form.startswith("v1_")
        if recorded_form.endswith("_custbw") and what.startswith("grad_"):
            continue  # not the gradient: it treats the denominator as a constant
        name, ours = _mlstm_result(what, value, scale if v1 else 1.0)
        if name is None:
            notes.append(f"not compared: {key}, a name unknown here")
        else:
            recorded.setdefault(side, {})[f"{form}/{name}"] = ours
    if any("_custbw.grad" in key for key in arrays):
        notes.append("not compared: gradients *_custbw, which treat the denominator as a constant")
    plan = MlstmPlan(chunk_size=int(meta["shape"]["chunk_size"]), eps=float(meta["eps"]))
    fixed = {"h_weight": _positions_second(arrays["h_weight"])}
    return _in_float32(title, plan, inputs, fixed, recorded, notes)


def _form(recorded, arrays):
    """Return the form of a recorded name, and its side."""
    f64 = "_f64" if recorded.endswith("_f64") else ""
    base = recorded.removesuffix("_f64")
    form, side = base, RECORDED
    for mark, cut in (("v1_", str.removeprefix), ("_custbw", str.removesuffix)):
        if mark in form:
            form, side = cut(form, mark), f"{side}_{mark.strip('_')}"
    if form.endswith("_padded"):
        form = form.removesuffix("_padded")
        if f"{form}{f64}.h" in arrays:  # also recorded without padding
            side += "_padded"
    return form, side + f64


def _mlstm_result(what, value, scale):
    """Return a result in our name and layout; v1 has `scale` in the key, we in the query."""
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


def _in_float32(title, plan, inputs, fixed, recorded, notes):
    """Return a subject in float32, so that all sides get the same numbers, NumPy's float64 too."""
    narrow, weights = (
        {name: np.asarray(value, np.float32) for name, value in arrays.items()}
        for arrays in (inputs, fixed)
    )
    return RecordedCase(title, plan, narrow, weights, recorded, tuple(notes))


def _positions_second(x):
    """(B, NH, S, ...) -> (B, S, NH, ...)."""
    return np.ascontiguousarray(x.swapaxes(1, 2))


def _slstm(title, arrays):
    NH, _, DH = arrays["R"].shape
    S, B, _ = arrays["Wx"].shape

    def gates(x):
        split = x.reshape(S, B, 4, NH, DH).transpose(2, 1, 0, 3, 4)
        return dict(zip("ifzo", map(np.ascontiguousarray, split), strict=True))

    def heads(x):  # (S, B, H) -> (B, S, NH, DH)
        return np.ascontiguousarray(x.reshape(S, B, NH, DH).swapaxes(0, 1))

    def state(x):  # (4, B, H) in the order h, c, n, m
        return {
            f"{letter}0": part.reshape(B, NH, DH) for letter, part in zip("hcnm", x, strict=True)
        }

    recorded = {}
    for prefix, side in (("", RECORDED), ("f64.", f"{RECORDED}_f64")):
        grads = {
            "grad_Wx": gates,
            "grad_state0": state,
            "grad_R": lambda x: {"R": x},
            "grad_b": lambda x: {"b": x},
        }
        results = {}
        if f"{prefix}states_all" in arrays:
            h, *others = (heads(part) for part in arrays[f"{prefix}states_all"])
            results |= {"sequence/h": h, "stepwise/h": h}
            for letter, part in zip("hcnm", (h, *others), strict=True):
                results[f"sequence/state/{letter}"] = part[:, -1]
                if letter != "h":
                    results[f"stepwise/states/{letter}"] = part
        for key, split in grads.items():
            if prefix + key in arrays:
                parts = split(arrays[prefix + key])
                results |= {f"sequence/grad/{name}": part for name, part in parts.items()}
        if results:
            recorded[side] = results
    known = {"Wx", "R", "b", "state0", "y_weight", "states_all", *grads}
    notes = [
        f"not compared: {key}, a name unknown here"
        for key in arrays
        if key.removeprefix("f64.") not in known
    ]
    start = state(arrays.get("state0", np.zeros((4, B, NH * DH), np.float32)))
    inputs = {**gates(arrays["Wx"]), "R": arrays["R"], "b": arrays["b"], **start}
    fixed = {"h_weight": heads(arrays["y_weight"])}
    return _in_float32(title, SlstmPlan(), inputs, fixed, recorded, notes)


def _components(title, arrays):
    recorded = {}
    inputs, names, notes = {}, [], []
    for key, value in arrays.items():
        if not key.removesuffix("_f64").endswith(".y"):
            inputs[key] = value
            continue
        name = key.removesuffix("_f64").removesuffix(".y")
        if call_of(name) is None:
            notes.append(f"not compared: {key}, an operator unknown here")
            continue
        side = RECORDED + ("_f64" if key.endswith("_f64") else "")
        if value.ndim == 4:
            value = _positions_second(value).reshape(value.shape[0], value.shape[2], -1)
        recorded.setdefault(side, {})[f"{name}/y"] = value
        names.append(name)
    plan = ComponentsPlan(tuple(dict.fromkeys(names)))
    return _in_float32(title, plan, inputs, {}, recorded, notes)
