"""The adapter of a run: the model that has it, and the frozen base beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from mlxhog.backends import frozen
from mlxhog.base.paths import quoted
from mlxhog.base.quantities import format_bytes, format_count
from mlxhog.checkpoint.base_model import BaseModel
from mlxhog.checkpoint.formats import Opened
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import is_set
from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.adapters import LoRA
from mlxhog.models.families import ModelConfig
from mlxhog.training.plan.resume import Resumption


def with_adapter(
    config: TrainConfig, model: ModelConfig, opened: Opened | None
) -> tuple[TrainConfig, ModelConfig]:
    """Return the options and the model with the adapter that is asked for, or that is continued.

    Raises:
        ConfigError: the checkpoint of `init_from` has another one, or it does not fit the model.
    """
    own = None if opened is None else opened.config.adapter
    asked = replace(model, adapter=cast(LoRA | None, config.adapter))
    families.trainable_spec(asked)  # which checks that it fits
    if own is None:
        return config, asked
    if asked.adapter is not None:
        own = replace(own, dropout=asked.adapter.dropout)
    model = replace(model, adapter=own)
    if asked.adapter is not None and not families.same_adapter(asked, model):
        raise ConfigError(
            f"adapter is {config.adapter}, and {config.init_from} is {own.title} already; leave "
            "--adapter out to continue it, or merge it and train another beside that: mlxhog "
            f"convert {quoted(str(config.init_from))} OUT --merge --format mlxhog"
        )
    return config.having(adapter=own), model


def base_of(
    config: TrainConfig, opened: Opened | None, resumption: Resumption | None
) -> BaseModel | None:
    """Return the frozen base of a run with an adapter, perhaps the checkpoint's; None without one.

    Raises:
        ConfigError: there is none, and `base_weights` is for one.
    """
    if config.adapter is None and is_set(config, "base_weights"):
        raise ConfigError("base_weights: needs adapter; set that, or leave base_weights out")
    if config.adapter is None:
        return None
    if resumption is not None:
        base = resumption.checkpoint.base
        if base is not None:  # whose path may be that of its links in the run
            base = replace(base, title=resumption.state["base"].get("title", base.title))
    else:
        assert opened is not None, "a new adapter needs init_from"
        base = BaseModel.of(opened.base or opened)
    assert base is not None, "each checkpoint of an adapter has one"
    return replace(base, weights=config.base_weights)


def note(model: ModelConfig, base: BaseModel, n_bytes: int) -> str:
    """Return one line on what is trained, and on what is frozen."""
    assert model.adapter is not None
    counted = [spec for spec in families.param_spec(model).values() if spec.kind != "table"]
    trained = sum(spec.size for spec in counted if spec.trainable)
    n_frozen = sum(spec.size for spec in counted) - trained
    how = "" if base.weights == "keep" else f" in {base.weights}"
    return (
        f"adapter of rank {model.adapter.rank}: {format_count(trained)} parameters are trained, "
        f"beside {format_count(n_frozen)} frozen ones of {base.title}{how}: "
        f"{format_bytes(n_bytes)}, once for all workers"
    )


def base_bytes(model: ModelConfig, weights: str, tensors: frozen.Tensors | None = None) -> int:
    """Return the memory of a base: large weights in a format, all others in float32.

    For the format "keep" `tensors` are those of its files.
    """
    n_bytes, spec = 0, families.param_spec(model)
    for name in families.frozen_names(model):
        dtype = frozen.WEIGHTS["float32"] if tensors is None else tensors[name].dtype
        held = weights if frozen.is_reduced(model, name) else "float32"
        n_bytes += frozen.bytes_of(spec[name], held, dtype)
    return n_bytes
