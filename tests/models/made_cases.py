"""Cases in the recorded format, computed by the float64 reference."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mlxhog.models import lm_float64
from mlxhog.models.ops.reference import mlstm_numpy
from mlxhog.models.translation import stacks, to_xlstm
from mlxhog.parity.subject import next_labels
from tests.models.sample import cell_inputs, config, perturbed_params

Array = NDArray[Any]


def stacked(arrays):
    """Arrays of the xlstm package as weight_mode "fused" has them."""
    return {
        name: np.concatenate([arrays[part] for part in parts]) if parts[1:] else arrays[name]
        for name, parts in stacks(arrays).items()
    }


def large_model(folder, *, fused=False, changes=None, said=None, **spoilt):
    """Write a case of xLSTM Large, under the names of the xlstm package where `fused`.

    Args:
        folder: where the two files go.
        fused: stack rows as weight_mode "fused" does.
        changes: fields of the model.
        said: fields that the config has instead of the model's; None is no field.
        spoilt: values of tensors that replace the right ones, "." in a name written as "__".
    """
    cfg = config(**(changes or {}))
    params = perturbed_params(cfg, 3)
    tokens = np.random.default_rng(3).integers(0, cfg.vocab_size, (2, 11)).astype(np.int64)
    hidden = []
    logits, state = lm_float64.forward(
        cfg, params, lm_float64.embed(cfg, params, tokens), hidden=hidden
    )
    loss, grads = lm_float64.differentiate(cfg, params, tokens, next_labels(tokens))
    if fused:
        params, grads = (stacked(to_xlstm(arrays, cfg)) for arrays in (params, grads))
    tensors = {
        "input_ids": tokens,
        "logits": logits.astype(np.float32),
        "logits_f64": logits,
        "loss": np.array([loss], np.float32),
        "stepwise_logits": logits.astype(np.float32),
        **{f"hidden.{layer}": x.astype(np.float32) for layer, x in enumerate(hidden[:-1])},
        "hidden.out_norm": hidden[-1].astype(np.float32),
        **{f"param.{name}": value for name, value in params.items()},
        **{f"grad.{name}": value.astype(np.float32) for name, value in grads.items()},
    }
    for layer, (C, n, m) in enumerate(state):
        parts = {"C": C, "n": n, "m": m[..., None]}
        tensors |= {f"state.{layer}.{p}": x.astype(np.float32) for p, x in parts.items()}
    fields = cfg.to_dict() | ({"weight_mode": "fused"} if fused else {}) | dict(said or {})
    fields = {name: value for name, value in fields.items() if value is not None}
    return _write(folder, "made_large", tensors, {"config": fields}, spoilt)


def mlstm_cell(folder, **spoilt):
    """Write a case of the mLSTM cell, its form v1_recurrent with the scale in the key."""
    inputs = cell_inputs(2, 7, 2, 4, 6, 5)
    weight = np.random.default_rng(5).standard_normal((2, 7, 2, 6)).astype(np.float32)
    exact = [value.astype(np.float64) for value in inputs.values()]
    h, (C, n, m), back = mlstm_numpy.recurrent(*exact, eps=1e-6)
    grads = dict(zip("qkvif", back(weight.astype(np.float64)), strict=False))
    tensors = {name: _heads_first(value) for name, value in inputs.items()}
    tensors |= {
        "h_weight": _heads_first(weight),
        "recurrent_f64.h": _heads_first(h),
        "recurrent_f64.C": C,
        "recurrent_f64.n": n,
        "recurrent_f64.m": m[..., None],
        "v1_recurrent.h": _heads_first(h).astype(np.float32),
        "v1_recurrent.C": (C * 4**-0.5).astype(np.float32),
        "v1_recurrent.n": (n * 4**-0.5).astype(np.float32)[..., None],
        "v1_recurrent.m": m.astype(np.float32)[..., None, None],
        "parallel_custbw.grad_q": np.zeros_like(_heads_first(inputs["q"])),
        **{f"recurrent_f64.grad_{name}": _heads_first(grad) for name, grad in grads.items()},
    }
    facts = {"shape": {"chunk_size": 4}, "eps": 1e-6}
    return _write(folder, "made_cell", tensors, facts, spoilt)


def _heads_first(x):
    return np.ascontiguousarray(x.swapaxes(1, 2))


def _write(folder, name, tensors, facts, spoilt):
    tensors |= {key.replace("__", "."): value for key, value in spoilt.items()}
    path = folder / f"{name}.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)
    path.with_suffix(".json").write_text(json.dumps({"what": "made by a test", **facts}))
    return path
