"""Adapters in PEFT's files, as `PeftModel.from_pretrained` reads and `save_pretrained` writes them.

    adapter_config.json          rank, alpha, names of the adapted layers, and the base model
    adapter_model.safetensors    A (rank, in) and B (out, rank) of each layer, and modules to save

Names of tensors are ours after `base_model.model.`. What a file adapts is what it has tensors of,
so `target_modules` and the options that restrict it are not needed to read it.

Source: PEFT 0.17 to 0.21, `tuners/lora/config.py` and `utils/save_and_load.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mlxhog.base import plain_json, plain_yaml, reading, tensors
from mlxhog.checkpoint import hub
from mlxhog.checkpoint.formats.weights import listed
from mlxhog.errors import CheckpointError, ConfigError, shown
from mlxhog.models import families
from mlxhog.models.adapters import A, B, LoRA, is_adapter
from mlxhog.models.families import ModelConfig

CONFIG, MODEL = "adapter_config.json", "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
PREFIX = "base_model.model."

_READ = frozenset(
    "r lora_alpha lora_dropout use_rslora base_model_name_or_path revision "
    "target_modules exclude_modules modules_to_save layers_to_transform layers_pattern".split()
)
_HARMLESS = frozenset(
    "task_type auto_mapping peft_version inference_mode corda_config eva_config lora_ga_config "
    "loftq_config megatron_core qalora_group_size ensure_weight_tying runtime_config".split()
)
"""Keys that change no result of a trained adapter, unless `init_lora_weights` says so."""
_INITIALIZERS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it is."""


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter without its base."""

    lora: LoRA  # `targets` and `modules_to_save` are whole names of layers
    tensors: Mapping[str, NDArray[Any]]  # A, B and the modules to save, by our names
    base: str  # a path, or hf:OWNER/NAME; "" if the files do not say it
    revision: str | None = None  # of the base on the hub


def content(
    model: ModelConfig,
    arrays: Mapping[str, NDArray[Any]],
    base: str | Path,
    revision: str | None = None,
) -> tuple[dict[str, NDArray[Any]], bytes]:
    """Return the tensors by PEFT's names, and adapter_config.json.

    `arrays` have the trained parameters of a model with an adapter (`families.trainable_spec`).
    `base` is a path, also in the hub's cache, OWNER/NAME on the hub, or hf:OWNER/NAME@COMMIT.
    """
    lora = model.adapter
    assert lora is not None
    named = hub.name_of(Path(base)) or str(base)
    if hub.is_name(named):
        name = hub.parse(named)
        named, revision = "/".join(filter(None, (name.repo, name.folder))), name.revision
    own = {name: arrays[name] for name in families.trainable_spec(model)}
    if model.in_transformers and model.tie_word_embeddings and families.embedding(model) in own:
        own[model.untied_head] = own[families.embedding(model)]  # transformers ties nothing
    saved = [name.rpartition(".")[0] for name in own if not is_adapter(name)]
    alpha = lora.scale * lora.rank
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": named,
        "revision": revision,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": lora.dropout,
        "target_modules": stems(own),
        "modules_to_save": list(dict.fromkeys(saved)) or None,
        "bias": "none",
    }
    return {PREFIX + name: array for name, array in own.items()}, plain_json.dumps(fields, indent=1)


def stems(names: Mapping[str, object]) -> list[str]:
    """Return the names of the layers that have an A among these parameters."""
    return [name.removesuffix(A) for name in names if name.endswith(A)]


def read(folder: Path) -> AdapterFiles:
    """Read a LoRA that PEFT or `write` wrote; the tensors are views of the mapped file.

    Raises:
        CheckpointError: there are no safetensors, or the file is damaged or has other tensors.
        ConfigError: the adapter is of another kind than B A, of one rank and scale.
    """
    fields = read_fields(folder)
    _refuse_others(fields, folder)
    if not (folder / MODEL).is_file():
        pickled = (folder / PICKLE).is_file()
        raise CheckpointError(
            f"{folder} has only {PICKLE}, a pickle, which could run any program; save the adapter "
            "again: model.save_pretrained(FOLDER, safe_serialization=True)"
            if pickled
            else f"{folder} has no {MODEL} beside {CONFIG}; copy the adapter again"
        )
    arrays = tensors.read(folder / MODEL)
    if foreign := [name for name in arrays if not name.startswith(PREFIX)]:
        raise CheckpointError(
            f"{folder / MODEL} has {listed(foreign)}, and PEFT's names begin with {PREFIX}; save "
            "the adapter again with PEFT's save_pretrained"
        )
    own = {name.removeprefix(PREFIX): array for name, array in arrays.items()}
    rank, alpha = fields.get("r", 8), fields.get("lora_alpha", 8)
    if fields.get("use_rslora"):  # whose scale is alpha / sqrt(rank)
        alpha = number(alpha, "lora_alpha", folder) * math.sqrt(number(rank, "r", folder))
    base, revision = fields.get("base_model_name_or_path"), fields.get("revision")
    dropout = fields.get("lora_dropout", 0.0)
    return AdapterFiles(
        lora_of(own, rank=rank, alpha=alpha, dropout=dropout, folder=folder),
        own,
        base if isinstance(base, str) else "",
        revision if isinstance(revision, str) else None,
    )


def lora_of(
    own: Mapping[str, NDArray[Any]], *, rank: Any, alpha: Any, dropout: Any, folder: Path
) -> LoRA:
    """Return the adapter that has these tensors, under our names, and these values of a config."""
    targets = stems(own)
    pairs = {stem + end for stem in targets for end in (A, B)}
    odd = [name for name in own if name not in pairs and (".lora_" in name or "." not in name)]
    odd += sorted(pairs - own.keys())
    if odd or not targets:
        what = f"{listed(odd)} without its pair" if odd else f"no layer with A and B ({A})"
        raise CheckpointError(f"{folder} has {what}; save the adapter again, or merge it in PEFT")
    whole = dict.fromkeys(name.rpartition(".")[0] for name in own if name not in pairs)
    r = number(rank, "the rank", folder)
    if r < 1 or r != int(r):
        raise ConfigError(f"{folder}: the rank is {shown(rank)}, wanted a whole number above 0")
    numbers = number(alpha, "the scale", folder), number(dropout, "the dropout", folder)
    how: dict[str, Any] = {"targets": tuple(targets), "modules_to_save": tuple(whole)}
    try:
        return LoRA(rank=int(r), alpha=numbers[0], dropout=numbers[1], **how)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}; correct {CONFIG}") from error


def number(value: Any, what: str, folder: Path) -> float:
    """Return a finite number of a config; ConfigError for another value."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{folder}: {what} is {shown(value)}, wanted a number; correct the file")
    return float(value)


def read_fields(folder: Path) -> dict[str, Any]:
    """Return the fields of adapter_config.json, of PEFT or mlx-lm."""
    how: dict[str, Any] = {"most": reading.MAX_CONFIG_BYTES, "named": False}
    read = partial(reading.read_small, **how, refusal=ConfigError)
    return plain_yaml.read_fields(folder / CONFIG, "the config", read)


def _refuse_others(fields: Mapping[str, Any], folder: Path) -> None:
    """Refuse adapters that compute something else, each by the field that says so."""
    wanted: dict[str, tuple[object, ...]] = {
        "peft_type": ("LORA",), "bias": ("none", None), "init_lora_weights": _INITIALIZERS,
    }  # fmt: skip
    for name, value in fields.items():
        known = wanted.get(name, (None, False, 0, "", [], {}))
        if name not in _READ | _HARMLESS and value not in known:
            raise ConfigError(
                f"{folder}: {name} is {shown(value)}, and mlxhog reads a LoRA of one rank and "
                "scale without more; merge it in PEFT, model.merge_and_unload()."
                "save_pretrained(FOLDER), and open that folder"
            )
