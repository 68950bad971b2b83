"""Compares the float64 reference and every twin with the recorded outputs of other packages.

    python -m tests.models.recorded tests/golden/xlstm/hf_a.safetensors

prints a line per disagreement and a verdict; exit code 1 if anything disagrees.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from mlxhog.models import families
from mlxhog.models.spec import initial_value
from tests import tolerances as near
from tests.models.golden import FOLDER, cell_case, model_case, slstm_case
from tests.models.operators import SLSTM_GATES, run_mlstm, run_slstm
from tests.models.twins import EXACT, TWINS
from tests.tolerances import assert_close

SIDES = {"float64": EXACT} | TWINS
COMPONENTS = {
    "conv": lambda ops, t: ops.causal_conv(t["x"], t["conv.weight"], t["conv.bias"], silu=False)[0],
    "headwise": lambda ops, t: ops.block_diagonal(
        t["x"], [t["headwise.weight"]], [t["headwise.bias"]]
    ),
    "v1_ln": lambda ops, t: ops.layer_norm(t["x"], 1.0 + t["v1_ln.weight"], 1e-5),
    "v1_mhln": lambda ops, t: ops.head_norm(_heads(t), 1.0 + t["v1_ln.weight"], 1e-5),
    "rms": lambda ops, t: ops.rms_norm(t["x"], t["rms.weight"], 1e-6),
    "mhln": lambda ops, t: ops.head_norm(_heads(t), t["rms.weight"], 1e-6),
    "mhrms": lambda ops, t: (
        ops.rms_norm(_heads(t), 0.0 * t["rms.weight"][: t["x4_bnsh"].shape[-1]] + 1.0, 1e-6)
        .reshape(*t["x"].shape) * t["rms.weight"]
    ),
    "soft_cap_15": lambda ops, t: ops.soft_cap(20.0 * t["x"], 15.0),
    "soft_cap_30": lambda ops, t: ops.soft_cap(20.0 * t["x"], 30.0),
}  # fmt: skip
"""Single operators of the case "components"; x4_bnsh has heads before positions."""


def _heads(t):
    return t["x4_bnsh"].swapaxes(1, 2)


def disagreements(name, twin, folder=FOLDER):
    """Yield what a twin computes differently than recorded, or does not compute, by name."""
    of_kind = {"mlstm": _mlstm, "slstm": _slstm, "components": _components}
    rows = of_kind.get(name.partition("_cell_")[0], _model)
    for what, actual, expected, tolerance in rows(name, twin, folder):
        try:
            assert_close(actual, expected, tolerance, label=what)
        except AssertionError as error:
            yield str(error)


def _model(name, twin, folder):
    case = model_case(name, folder)
    cfg, params, tokens = case.cfg, case.params, case.tokens
    exact, v1 = twin is EXACT, name.startswith("v1_")
    start = _unwritten(twin, case) if exact and v1 else None
    logits, state = twin.logits(cfg, params, tokens, start)
    results = {"logits": (logits, near.LOGITS_F32), "cached_logits": (logits, near.LOGITS_F32)}
    results["logits_f64"] = logits, near.FLOAT64 if exact else near.LOGITS_F32
    hidden = twin.hidden(cfg, params, tokens, start)
    results |= {f"hidden.{n}": (x, near.LOGITS_F32) for n, x in enumerate(hidden)}
    results["hidden.out_norm"] = hidden[-1], near.LOGITS_F32
    results |= _states("state", state)
    if any(key.startswith("grad.") for key in case.tensors):
        loss, grads = twin.loss_and_grads(cfg, params, tokens, case.labels, state=start)
        results["loss"] = np.array([loss]), near.LOSS_F32
        results["loss_f64"] = np.array([loss]), near.FLOAT64 if exact else near.LOSS_F32
        assert set(grads) == set(case.grads) == set(params) == set(families.param_spec(cfg))
        for key, expected in case.grads.items():
            yield f"grad.{key}", grads[key], expected, near.GRADIENT_F32
    if "stepwise_logits" in case.tensors:
        steps, state = [], start
        for t in range(tokens.shape[1]):
            one, state = twin.logits(cfg, params, tokens[:, t : t + 1], state)
            steps.append(one)
        results["stepwise_logits"] = np.concatenate(steps, 1), near.LOGITS_F32
        results |= _states("stepwise_state", state)
    for key, spec in families.param_spec(cfg).items():
        results[f"init.{key}"] = initial_value(spec, seed=0), near.INITIAL_F32
    if "greedy_ids" in case.tensors:
        prompt = case.tensors["greedy_prompt"].astype(np.int32)
        recorded, n = case.tensors["greedy_ids"], prompt.shape[1]
        n *= (recorded[:, :n] == prompt).all()  # whether the prompt is repeated
        ids = _greedy(twin, case, prompt, recorded.shape[1] - n)
        results["greedy_ids"] = np.concatenate([prompt[:, :n], ids], 1), near.FLOAT64
    for key, expected in case.tensors.items():
        if key.startswith(("param.", "grad.")) or key in ("input_ids", "labels", "greedy_prompt"):
            continue
        actual, tolerance = results.get(key, (np.nan * expected, near.FLOAT64))
        yield key, np.reshape(actual, expected.shape), expected, tolerance


def _unwritten(twin, case):
    """The state whose memory has never been written: the parallel form of the v1 package.

    Its stabilizer comes from the sequence alone; otherwise eps enters at another scale.
    """
    state = twin.zero_state(case.cfg, len(case.tokens))
    mlstm = [f"xlstm_block_stack.blocks.{n}.xlstm.q_proj.weight" in case.params
             for n in range(len(state))]  # fmt: skip
    return [(*b[:-1], b[-1] - 1e30) if m else b for b, m in zip(state, mlstm, strict=True)]


def _states(prefix, state):
    return {
        f"{prefix}.{layer}.{letter}": (part, near.STATE_F32)
        for layer, parts in enumerate(state)
        for letter, part in zip("Cnm", parts, strict=False)
    }


def _greedy(twin, case, token, count):
    ids, state = [], None
    while len(ids) < count:
        logits, state = twin.logits(case.cfg, case.params, token, state)
        token = logits[:, -1:].argmax(-1).astype(np.int32)
        ids.append(token)
    return np.concatenate(ids, 1)


def _mlstm(name, twin, folder):
    case, exact = cell_case(name, folder), near.FLOAT64_CELL if twin is EXACT else None
    tolerances = dict.fromkeys("Cnm", near.STATE_F32)
    tolerances["h"] = near.CELL_EXTREME_F32 if name.endswith("extreme") else near.CELL_F32
    for form, recorded in case.forms.items():
        inputs = dict(case.inputs)
        if exact and form.startswith("parallel"):
            (B, _, NH, DK), DV = inputs["q"].shape, inputs["v"].shape[-1]
            inputs |= {"C0": np.zeros((B, NH, DK, DV)), "n0": np.zeros((B, NH, DK))}
            inputs["m0"] = np.full((B, NH), -1e30)
        weights = [case.weight, *[np.zeros(())] * 3]
        results, grads = twin.run(run_mlstm, inputs, case.how, weights)
        results = dict(zip("hCnm", results, strict=True))
        results |= {f"d{key}": grad for key, grad in grads.items()}
        for key, expected in recorded.items():
            tolerance = exact or tolerances.get(key, near.GRADIENT_ANY_F32)
            yield f"{form}.{key}", results[key].reshape(expected.shape), expected, tolerance


def _slstm(name, twin, folder):
    case = slstm_case(name, folder)
    recorded, S = case.forms["f64"], case.weight.shape[1]
    weights = [case.weight, *[np.zeros(())] * 4]
    (h, *last), grads = twin.run(run_slstm, case.inputs, {}, weights)
    exact = near.FLOAT64 if twin is EXACT else None
    yield "h", h, recorded["all h"], exact or near.SLSTM_F32
    for letter, part in zip("hcnm", last, strict=True):
        yield f"last {letter}", part, recorded[f"all {letter}"][:, -1], exact or near.SLSTM_F32
    for key, expected in recorded.items():
        if key.startswith("d"):
            yield key, grads[key[1:]], expected, exact or near.SLSTM_GRADIENT_F32
    x = dict(case.inputs)
    for t in range(S):
        x |= {gate: case.inputs[gate][:, t : t + 1] for gate in SLSTM_GATES}
        _, *state = twin.results(run_slstm, x)
        for letter, part in zip("hcnm", state, strict=True):
            x[f"{letter}0"] = part
            expected = recorded[f"all {letter}"][:, t]
            yield f"{letter} at {t}", part, expected, exact or near.SLSTM_F32


def _components(name, twin, folder):
    tensors = load_file(folder / f"{name}.safetensors")
    for key, expected in tensors.items():
        operator, dot, y = key.rpartition(".")
        if y == "y":
            (actual,) = twin.results(COMPONENTS[operator], tensors)
            if expected.ndim == 4:  # heads before positions
                expected = expected.swapaxes(1, 2)
            yield key, actual.reshape(expected.shape), expected, near.OP_F32


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.models.recorded", description=__doc__)
    parser.add_argument("case", type=Path, help="a .safetensors file with its .json beside it")
    path, bad = parser.parse_args().case, 0
    for side, twin in SIDES.items():
        for line in disagreements(path.stem, twin, path.parent):
            print(f"{side}: {line}")
            bad += 1
    print(f"{path.stem}: {'FAILED' if bad else 'every side agrees'}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
