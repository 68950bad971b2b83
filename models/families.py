"""The families of language models, by `model_type`, and the groups of their parameters.

A family is a configuration: a frozen dataclass that reads a config.json or YAML (`from_dict`), and
states its model as a list of layers (`layout`). This module imports no framework.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ConfigError, did_you_mean, shown
from mlxhog.models.adapters import is_adapter
from mlxhog.models.fields import check_names
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.model import ModelConfig, Params, State
from mlxhog.models.spec import ParamSpec, initial_value
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.models.xlstm_v1 import XLSTMV1Config

__all__ = ["ModelConfig", "Params", "State"]

FAMILIES: Mapping[str, type[ModelConfig]] = {
    family.model_type: family for family in (XLSTMLargeConfig, XLSTMV1Config, MADConfig)
}
_LAYER = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)\.")

EXPORTED = "mlxhog"
"""The model_type of an export that transformers loads by a class of ours."""


def without_export(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a model as before an export with code of ours."""
    data = {name: value for name, value in data.items() if name != "model_file"}  # of mlx-lm
    if data.get("model_type") != EXPORTED:
        return data
    family = data.get("family")
    added = {"family", *["num_hidden_layers"] * (family == MADConfig.model_type)}
    return {k: v for k, v in data.items() if k not in added} | {"model_type": family}


def read(data: Mapping[str, Any], *, strict: bool = False) -> ModelConfig:
    """Read a model's config.json or YAML; unknown fields are refused if `strict`.

    Without `model_type`, the family is "mad" if the config has `layers`, "xlstm_v1" if it has a
    block of that family, else "xlstm".

    Raises:
        ConfigError: an unknown family, or fields that the family refuses.
    """
    check_names("the architecture", data)
    data = without_export(data)
    if "space" in data:
        raise ConfigError(
            "this is a space of architectures, not an architecture; give it to "
            "mlxhog mad search --space"
        )
    blocks = {"mlstm_block", "slstm_block"}
    default = "mad" if "layers" in data else "xlstm_v1" if blocks & data.keys() else "xlstm"
    name = data.get("model_type", default)
    if not isinstance(name, str) or name not in FAMILIES:
        near = did_you_mean(name, FAMILIES) or f"; known are {', '.join(FAMILIES)}"
        raise ConfigError(
            f"model_type is {shown(name)}, which is not a family of this package{near}"
        )
    return FAMILIES[name].from_dict(data, strict=strict)


# -- parameters ------------------------------------------------------------------------------------


def param_spec(cfg: ModelConfig) -> dict[str, ParamSpec]:
    """Declare every parameter of a model, in the order in which the model uses them."""
    return dict(cfg.layout.spec)


def trainable_spec(cfg: ModelConfig) -> dict[str, ParamSpec]:
    """Declare the parameters that are trained: all of them, or those of an adapter."""
    return {name: spec for name, spec in cfg.layout.spec.items() if spec.trainable}


def frozen_names(cfg: ModelConfig) -> list[str]:
    """Return the names of the parameters that are not trained."""
    return [name for name, spec in cfg.layout.spec.items() if not spec.trainable]


def same_adapter(a: ModelConfig, b: ModelConfig) -> bool:
    """Return whether two models train the same parameters, with adapters of the same product.

    Their dropout may differ.
    """
    if a.adapter is None or b.adapter is None:
        return a.adapter is b.adapter
    return a.adapter.scale == b.adapter.scale and trainable_spec(a) == trainable_spec(b)


def param_count(cfg: ModelConfig) -> int:
    """Return the number of elements of all parameters, without n-gram tables."""
    return sum(spec.size for spec in cfg.layout.spec.values() if spec.kind != "table")


def init_params(cfg: ModelConfig, seed: int) -> dict[str, NDArray[np.float32]]:
    """Draw the initial values of every parameter; the same seed gives the same bits."""
    return {name: initial_value(spec, seed) for name, spec in cfg.layout.spec.items()}


def embedding(cfg: ModelConfig) -> str:
    """Return the name of the embedding."""
    return cfg.layout.embedding.name


def head(cfg: ModelConfig) -> str:
    """Return the name of the head's weight (V, d); that of the embedding if they are tied."""
    return embedding(cfg) if cfg.tie_word_embeddings else cfg.untied_head


def head_bias(cfg: ModelConfig) -> str | None:
    """Return the name of the bias (V,) of the logits; None if there is none."""
    return cfg.layout.head[1].name if len(cfg.layout.head) > 1 else None


def matmul_weights(cfg: ModelConfig) -> frozenset[str]:
    """Return the names of the weights that are used in matmuls alone, and of a tied head."""
    return frozenset(name for name, one in cfg.layout.spec.items() if one.autocast) | {head(cfg)}


def hidden_matrices(cfg: ModelConfig) -> frozenset[str]:
    """Return the names of the large matmul weights inside the blocks.

    No side is shorter than half the model's width, but for the matrices of an adapter. Embedding,
    head, gates, norms, convolutions and block-diagonal weights are not among them.
    """
    outside, min_width = {embedding(cfg), head(cfg)}, cfg.hidden_size
    return frozenset(
        name
        for name, one in trainable_spec(cfg).items()
        if one.autocast and name not in outside
        if len(one.shape) == 2
        if 2 * min(one.shape) >= min_width or is_adapter(name)
    )


def rate_groups(cfg: ModelConfig) -> dict[str, frozenset[str]]:
    """Return the names of the parameters beside the hidden matrices, by learning-rate group.

    The groups are the embedding, the head (empty if it is tied), tables, and "scalar": gates,
    biases, norms and all others.
    """
    spec = trainable_spec(cfg)
    first, last = (frozenset({name} & spec.keys()) for name in (embedding(cfg), head(cfg)))
    tables = frozenset(name for name, one in spec.items() if one.kind == "table")
    others = spec.keys() - hidden_matrices(cfg) - first - last - tables
    groups = {"embedding": first, "head": last - first, "table": tables}
    return {**groups, "scalar": frozenset(others)}


class ParameterBlock(NamedTuple):
    """The parameters of the embedding, a layer, or the final norm with the head.

    The cell of a layer is "mlstm" or "slstm"; a layer without one, such as a feed-forward layer of
    a MAD model, has that of the layers before it, else None.
    """

    name: str  # "embedding", "layer 0" and so on, or "head"
    cell: str | None
    params: tuple[str, ...]  # in the order of use
    size: int  # number of their elements, without tables

    @property
    def is_layer(self) -> bool:
        """Whether it is neither the embedding nor the head."""
        return self.name.startswith("layer")


def parameter_blocks(cfg: ModelConfig) -> list[ParameterBlock]:
    """Partition the trained parameters into blocks; a tied head is the embedding's block."""
    spec, names_of = trainable_spec(cfg), dict[str, list[str]]()
    for name in spec:
        match = _LAYER.search(name)
        first = name == embedding(cfg) or name in {one.name for one in cfg.layout.ngrams}
        outside = "embedding" if first else "head"
        names_of.setdefault(f"layer {match[1]}" if match else outside, []).append(name)
    cells, cell = dict[str, str | None](), None
    for part, *_ in cfg.layout.blocks:
        own = next((kind for kind in ("mlstm", "slstm") if part.layer.name.startswith(kind)), None)
        cell = own or (cell if part.layer.kind == "channel" else None)
        if match := _LAYER.search(f"{part.name}."):
            cells[f"layer {match[1]}"] = cell
    return [
        ParameterBlock(
            block,
            cells.get(block),
            tuple(names),
            sum(spec[name].size for name in names if spec[name].kind != "table"),
        )
        for block, names in names_of.items()
    ]


# -- tokens ----------------------------------------------------------------------------------------


def for_tokens(cfg: ModelConfig, *, bos: int, vocab_size: int) -> ModelConfig:
    """Return the model with a tokenizer's BOS and vocabulary size.

    Ids of a config.json outside the vocabulary, such as `pad_token_id`, are dropped.
    """
    changes: dict[str, Any] = {"bos_token_id": bos, "vocab_size": vocab_size}
    if vocab_size < cfg.vocab_size:
        changes["extra"] = extra = dict(cfg.extra)
        for name, value in extra.items():
            is_id = isinstance(value, int) and 0 <= value < vocab_size
            extra[name] = None if name.endswith("_token_id") and not is_id else value
    return dataclasses.replace(cfg, **changes)


def reset_token(cfg: ModelConfig) -> int | None:
    """Return the token at which the state is reset; None for a model without resets."""
    return cfg.bos_token_id if cfg.reset_at_document_boundaries else None


def is_language_model(cfg: ModelConfig) -> bool:
    """Whether the model predicts each token from those before it."""
    return cfg.backbone == "language-model"


def check_language_model(cfg: ModelConfig) -> None:
    """Refuse an autoencoder, which does not predict the next token, by a ConfigError."""
    if not is_language_model(cfg):
        raise ConfigError(
            "the model's backbone is autoencoder: it reconstructs a whole sequence and cannot "
            "write text; set backbone to language-model, or train it on compression with "
            "mlxhog mad train"
        )


def check_length(cfg: ModelConfig, length: int) -> None:
    """Refuse sequences that are longer than the model's position embeddings, by a ConfigError."""
    if cfg.position != "none" and length > cfg.max_length:
        raise ConfigError(
            f"sequences have {length} tokens, but the model has {cfg.max_length} positions "
            "(max_length); use fewer tokens, or train a model with a larger max_length or without "
            "positions"
        )
