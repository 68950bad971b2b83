"""Recorded cases: `NAME.safetensors` with every tensor, `NAME.json` with the config beside it.

The format is that of the golden data set xlstm (its README lists the names): a language model with
parameters, tokens, outputs and gradients; a cell alone; or single operators. Reading is pure. It
renames and reorders into the names and layouts of this package, and computes nothing.

    in the file                            here
    param.X, grad.X                        our name of X; fused rows split
    input_ids, labels                      tokens, targets: the next token's label, -100 at the end
    NAME_f64                               the same on the side "recorded_f64"
    stepwise_logits, stepwise_state.L.P    stepwise/logits, stepwise/state/L/P
    cached_logits                          logits of the side "recorded_cached"
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlxhog.checkpoint.formats.names import to_ours
from mlxhog.config.limits import said
from mlxhog.errors import CheckpointError, DataError
from mlxhog.files import plain_json, tensors
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.xlstm_large import OUT_NORM, XLSTMLargeConfig
from mlxhog.parity import cell_cases
from mlxhog.parity.subject import Array, ModelPlan, Subject

RECORDED = "recorded"


def read(path: Path, *, steps: int) -> Subject:
    """Read a recorded case.

    Args:
        path: the .safetensors file; the .json file lies beside it.
        steps: updates that a model is taken with each optimizer.

    Raises:
        DataError: a file is missing or damaged, or is no case of this format.
        ConfigError: the architecture in it is not one of ours.
    """
    path = path.with_suffix(".safetensors") if path.suffix == ".json" else path
    if not path.is_file():
        raise DataError(f"no case {path}; give the .safetensors file of a recorded case")
    try:
        found = dict(tensors.read(path))
    except CheckpointError as error:
        raise DataError(f"{error}; record the case again") from error
    meta = _meta(path.with_suffix(".json"))
    names = sorted(found)
    title = f"{path.stem}: {meta.get('what', 'recorded case')}"
    try:
        if "input_ids" in found:
            return _model(title, path, found, meta, steps)
        subject = cell_cases.read(title, found, meta)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Arrays of other shapes than the format's: what fails is NumPy's to choose.
        raise DataError(
            f"{path}: its arrays and facts do not fit together ({said(error)}); record it again"
        ) from error
    if subject is None:
        raise DataError(
            f"{path} is no case of a kind known here: it has {', '.join(names[:6])} ..; "
            "wanted input_ids with param.*, q k v i f with h_weight, Wx R b with y_weight, or x "
            "with the outputs *.y of operators"
        )
    return subject


def _meta(path: Path) -> Mapping[str, Any]:
    try:
        meta = plain_json.read(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot read the facts of a case: {error}; a case is two files, "
            "NAME.safetensors and NAME.json"
        ) from error
    if not isinstance(meta, dict):
        raise DataError(f"{path}: holds a {type(meta).__name__}, wanted an object of facts")
    return meta


def _model(
    title: str, path: Path, found: dict[str, Array], meta: Mapping[str, Any], steps: int
) -> Subject:
    if not isinstance(meta.get("config"), dict):
        raise DataError(f"{path.with_suffix('.json')}: lacks the field config, the architecture")
    cfg = _config(meta["config"])
    params = to_ours(_below("param.", found), cfg)
    grads = to_ours(_below("grad.", found), cfg)
    cfg, notes = _as_it_ran(cfg, params, grads)
    _check_params(path, params, families.param_spec(cfg))
    tokens = found.pop("input_ids")
    labels = found.pop("labels", tokens)
    fixed = {"tokens": tokens.astype(np.int32)}
    if ((targets := next_labels(labels)) != -100).any():  # one token has no next one
        fixed["targets"] = targets
    greedy = 0
    if "greedy_prompt" in found and "greedy_ids" in found:
        prompt = found.pop("greedy_prompt").astype(np.int32)
        found["greedy_ids"] = _continuation(found["greedy_ids"], prompt)
        fixed["greedy_prompt"], greedy = prompt, found["greedy_ids"].shape[1]
    recorded: dict[str, dict[str, Array]] = {}
    unknown = []
    for name, grad in grads.items():
        recorded.setdefault(RECORDED, {})[f"grad/{name}"] = grad
    for name, value in found.items():
        if name.startswith(("param.", "grad.")):
            continue
        side = RECORDED + ("_f64" if name.endswith("_f64") else "")
        ours = _result_name(name.removesuffix("_f64"))
        if name == "cached_logits":
            side, ours = f"{RECORDED}_cached", "logits"
        if ours is None:
            unknown.append(name)
        else:
            recorded.setdefault(side, {})[ours] = _shaped(ours, value)
    fixed_init = [name.removeprefix("init/") for name in recorded.get(RECORDED, {})]
    return Subject(
        title=title,
        plan=ModelPlan(
            cfg,
            steps=steps,
            greedy=greedy,
            fixed_init=tuple(name for name in fixed_init if name in params),
        ),
        inputs={name: np.asarray(value, np.float32) for name, value in params.items()},
        fixed=fixed,
        recorded=recorded,
        notes=(*notes, *(f"not compared: {name}, a name unknown here" for name in unknown)),
    )


def _as_it_ran(
    cfg: ModelConfig, params: dict[str, Array], grads: dict[str, Array]
) -> tuple[ModelConfig, list[str]]:
    """Return the model that the parameters are of, where its package does not do what it says.

    With `use_bias` the final norm of the xlstm package has a bias, and that of transformers none.
    transformers applies that norm whatever `add_out_norm` says, and ties no head. A second name of
    a tied head is taken away.
    """
    changes: dict[str, Any] = {}
    notes: list[str] = []
    if isinstance(cfg, XLSTMLargeConfig):
        changes["out_norm_bias"] = f"{OUT_NORM}.bias" in params
        if not cfg.add_out_norm and f"{OUT_NORM}.weight" in params:
            changes["add_out_norm"] = True
            notes.append("add_out_norm is false, and the final norm that was recorded is applied")
    head, embedding = families.of(cfg).head, families.embedding(cfg)
    if cfg.tie_word_embeddings and head in params and embedding in params:
        if np.array_equal(params[head], params[embedding]):
            del params[head]
            grads.pop(head, None)
        else:
            large = isinstance(cfg, XLSTMLargeConfig)
            changes["tie_word_embeddings" if large else "tie_weights"] = False
            notes.append("the head is tied by the config, and recorded as a matrix of its own")
    return dataclasses.replace(cfg, **changes), notes  # type: ignore[type-var]


def _config(fields: Mapping[str, Any]) -> ModelConfig:
    """Read a config of either package; only that of the v1 stack names kinds of blocks."""
    v1 = "mlstm_block" in fields or "slstm_block" in fields
    return families.read({"model_type": "xlstm_v1", **fields} if v1 else fields)


def next_labels(labels: Array) -> Array:
    """Return the target of each position, (B, S) int32: the next label, and -100 at the end."""
    end = np.full_like(labels[:, :1], -100)
    return np.concatenate([labels[:, 1:], end], axis=1).astype(np.int32)


def _below(prefix: str, found: Mapping[str, Array]) -> dict[str, Array]:
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def _check_params(path: Path, params: Mapping[str, Array], spec: Mapping[str, Any]) -> None:
    lacking = [name for name in spec if name not in params]
    if lacking:
        raise DataError(f"{path}: lacks param.{lacking[0]}, which its config asks for")
    for name, value in params.items():
        if name not in spec:
            raise DataError(f"{path}: holds param.{name}, which its config has no place for")
        if value.shape != spec[name].shape:
            raise DataError(
                f"{path}: param.{name} has shape {value.shape}, and its config says "
                f"{spec[name].shape}"
            )


def _continuation(ids: Array, prompt: Array) -> Array:
    """What follows the prompt: transformers' generate repeats it, that of xlstm does not."""
    P = prompt.shape[1]
    repeats = ids.shape[1] > P and np.array_equal(ids[:, :P], prompt)
    return ids[:, P:] if repeats else ids


def _result_name(name: str) -> str | None:
    """Return the name of a recorded result in `subject.py`, or None for one that has none."""
    if name in ("logits", "loss", "greedy_ids"):
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


def _shaped(name: str, value: Array) -> Array:
    if name == "loss":
        return value.reshape(())
    if name.endswith("/m") and value.ndim == 3 and value.shape[-1] == 1:
        return value[..., 0]
    return value
