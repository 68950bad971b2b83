"""The families of language models, by `model_type`, for arena, checkpoints and backends.

A family is a package of `models/`: a config, and a module `model` with its parameters and its
forward pass (`Model`). `lm` puts the embedding, the head and the loss around them. This module
imports no framework.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ConfigError, nearest
from mlxhog.models import mad, ngrams, xlstm_large, xlstm_v1
from mlxhog.models.fields import check_names
from mlxhog.models.forward_pass import Pass
from mlxhog.models.ops.arrays import Array, Arrays
from mlxhog.models.spec import ParamSpec, initial_value

Params = Mapping[str, Array]
State = Sequence[tuple[Array, ...]]
"""A tuple of arrays per block, defined by the family; the first axis is the batch."""

_LAYER = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)\.")


class ModelConfig(Protocol):
    """Sizes and constants of one model; frozen, picklable, checked when it is made."""

    @property
    def model_type(self) -> str:
        """The family, a key of `FAMILIES`."""

    @property
    def vocab_size(self) -> int:
        """V, rows of the embedding."""

    @property
    def hidden_size(self) -> int:
        """d, width of the residual stream."""

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks."""

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the head is the embedding."""

    @property
    def output_logit_soft_cap(self) -> float | None:
        """Bound of the logits; None if they have none."""

    @property
    def reset_at_document_boundaries(self) -> bool:
        """Whether the memory is reset at every `bos_token_id`."""

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a document."""

    def to_dict(self) -> dict[str, Any]:
        """The fields of a config.json."""


class Model(Protocol):
    """The module with a family's forward pass, over the arrays of any framework."""

    def init_state(self, cfg: Any, B: int, xp: Arrays[Array]) -> State:
        """Return the state before the first token of B sequences."""

    def blocks(
        self, cfg: Any, params: Params, x: Array, state: Any, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Compute from the embedded tokens (B, S, d) to the final norm; return the new state too.

        A state of None is the start.
        """


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        model: module of its forward pass.
        title: its name for people.
        from_dict: reads a config.json, or with `strict=True` a YAML file.
        param_spec: name -> spec of every parameter, in the order of use.
        param_count: number of their elements.
        embedding: name of the embedding.
        head: name of the matrix from x to logits, if it is not the embedding.
        dropout_sites: name -> (width, rate) of every place with dropout in training.
        head_bias: name of the bias of the logits, if there is one.
    """

    model: Model
    title: str
    from_dict: Callable[..., ModelConfig]
    param_spec: Callable[[Any], dict[str, ParamSpec]]
    param_count: Callable[[Any], int]
    embedding: str
    head: str
    dropout_sites: Callable[[Any], dict[str, tuple[int, float]]]
    head_bias: str | None = None


FAMILIES = {
    "xlstm": Family(
        model=xlstm_large.model,
        title="xLSTM Large",
        from_dict=xlstm_large.XLSTMLargeConfig.from_dict,
        param_spec=xlstm_large.param_spec,
        param_count=xlstm_large.param_count,
        embedding=xlstm_large.EMBEDDING,
        head=f"{xlstm_large.LM_HEAD}.weight",
        dropout_sites=lambda cfg: {},
    ),
    "xlstm_v1": Family(
        model=xlstm_v1.model,
        title="xLSTM of the first paper",
        from_dict=xlstm_v1.XLSTMV1Config.from_dict,
        param_spec=xlstm_v1.param_spec,
        param_count=xlstm_v1.param_count,
        embedding=xlstm_v1.EMBEDDING,
        head=f"{xlstm_v1.LM_HEAD}.weight",
        dropout_sites=xlstm_v1.dropout_sites,
    ),
    "mad": Family(
        model=mad.model,
        title="MAD candidate",
        from_dict=mad.read,
        param_spec=mad.param_spec,
        param_count=mad.param_count,
        embedding=mad.EMBEDDING,
        head=mad.HEAD,
        dropout_sites=lambda cfg: {},
        head_bias=mad.HEAD_BIAS,
    ),
}


def of(cfg: ModelConfig) -> Family:
    """Return the family of a model."""
    return FAMILIES[cfg.model_type]


def read(data: Mapping[str, Any], *, strict: bool = False) -> ModelConfig:
    """Read a model's config; `model_type` chooses the family.

    Without `model_type`, the family is "mad" if the config has a `model` of layers, "xlstm_v1" if
    it has a block of that family, else "xlstm".

    Args:
        data: field -> value, from a config.json or from YAML.
        strict: refuse unknown fields (YAML written by hand) instead of keeping them.

    Raises:
        ConfigError: an unknown family, or fields that the family refuses.
    """
    check_names("the architecture", data)
    if "space" in data:
        raise ConfigError(
            "this is a space of architectures, not an architecture; give it to "
            "mlxhog mad search --space"
        )
    layers, blocks = {"model", "version"}, {"mlstm_block", "slstm_block"}
    default = "mad" if layers & data.keys() else "xlstm_v1" if blocks & data.keys() else "xlstm"
    name = data.get("model_type", default)
    if not isinstance(name, str) or name not in FAMILIES:
        near = nearest(name, FAMILIES)
        hint = f"did you mean {near!r}?" if near else f"known are {', '.join(FAMILIES)}"
        raise ConfigError(f"model_type is {name!r}, which is not a family of this package; {hint}")
    return FAMILIES[name].from_dict(data, strict=strict)


def param_spec(cfg: ModelConfig) -> dict[str, ParamSpec]:
    """Declare every parameter of a model, in the order in which the model uses them."""
    return of(cfg).param_spec(cfg)


def table_spec(cfg: ModelConfig) -> dict[str, ParamSpec]:
    """Declare the model's tables of n-grams, which are no parameters of `param_spec`."""
    tables = ngrams.of(cfg)
    return {} if tables is None else tables.specs


def param_count(cfg: ModelConfig) -> int:
    """Number of elements of all parameters, without tables of n-grams."""
    return of(cfg).param_count(cfg)


def init_params(cfg: ModelConfig, seed: int) -> dict[str, NDArray[np.float32]]:
    """Draw fresh initial values of every parameter; the same seed gives the same bits."""
    return {name: initial_value(spec, seed) for name, spec in param_spec(cfg).items()}


def embedding(cfg: ModelConfig) -> str:
    """Name of the embedding."""
    return of(cfg).embedding


def head(cfg: ModelConfig) -> str:
    """Name of the matrix (V, d) from x to logits; that of the embedding if they are tied."""
    return of(cfg).embedding if cfg.tie_word_embeddings else of(cfg).head


def head_bias(cfg: ModelConfig) -> str | None:
    """Name of the bias (V,) of the logits; None if there is none."""
    return of(cfg).head_bias


def products(cfg: ModelConfig) -> frozenset[str]:
    """Return the names of the matrices that only multiply activations, a tied head included."""
    spec = param_spec(cfg)
    return frozenset(name for name, parameter in spec.items() if parameter.product) | {head(cfg)}


def narrowable(cfg: ModelConfig) -> frozenset[str]:
    """Return the names of the parameters that may have fewer bits: `products`, and the embedding.

    Gates, norms, convolutions, biases and the sLSTM's own parameters stay float32.
    """
    return products(cfg) | {embedding(cfg)}


def hidden_matrices(cfg: ModelConfig) -> frozenset[str]:
    """Return the names of the matrices inside the blocks with two long sides.

    They only multiply activations, and no side is shorter than half the model's width. Embedding,
    head, gates, norms, convolutions and block-diagonal maps are not among them.
    """
    outside = {embedding(cfg), head(cfg)}
    return frozenset(
        name
        for name, parameter in param_spec(cfg).items()
        if parameter.product
        and name not in outside
        and len(parameter.shape) == 2
        and 2 * min(parameter.shape) >= cfg.hidden_size
    )


def rate_groups(cfg: ModelConfig) -> dict[str, frozenset[str]]:
    """Return the names of the parameters beside the hidden matrices, by group.

    They are the embedding, the head, which is empty if it is tied, and "scalar": gates, biases,
    norms and all others.
    """
    first, last = {embedding(cfg)}, {head(cfg)}
    others = param_spec(cfg).keys() - hidden_matrices(cfg) - first - last
    return {
        "embedding": frozenset(first),
        "head": frozenset(last - first),
        "scalar": frozenset(others),
    }


def for_tokens(cfg: ModelConfig, *, bos: int, vocab_size: int) -> ModelConfig:
    """Return the model for texts whose documents begin with `bos`, with `vocab_size` ids.

    Ids of a config.json that are not in the vocabulary, such as `pad_token_id`, are dropped.
    """
    changes: dict[str, Any] = {"bos_token_id": bos, "vocab_size": vocab_size}
    if vocab_size < cfg.vocab_size and hasattr(cfg, "extra"):
        changes["extra"] = {
            name: None if name.endswith("_token_id") and not _is_id(value, vocab_size) else value
            for name, value in cfg.extra.items()
        }
    model: ModelConfig = dataclasses.replace(cfg, **changes)  # type: ignore[type-var]
    return model


def _is_id(value: object, vocab_size: int) -> bool:
    return isinstance(value, int) and 0 <= value < vocab_size


def with_vocabulary(cfg: ModelConfig, rows: int) -> ModelConfig:
    """Return the model with `rows` rows of embedding and head."""
    model: ModelConfig = dataclasses.replace(cfg, vocab_size=rows)  # type: ignore[type-var]
    return model


def reset_token(cfg: ModelConfig) -> int | None:
    """Return the token at which the memory is reset; None for a model that does not reset."""
    return cfg.bos_token_id if cfg.reset_at_document_boundaries else None


def is_language_model(cfg: ModelConfig) -> bool:
    """Whether the model predicts each token from the tokens before it."""
    return not (isinstance(cfg, mad.MADConfig) and cfg.backbone == "autoencoder")


def check_language_model(cfg: ModelConfig) -> None:
    """Refuse a model that does not predict the next token.

    Raises:
        ConfigError: it is an auto-encoder, which reads the whole sequence before its first output.
    """
    if not is_language_model(cfg):
        raise ConfigError(
            "the model's backbone is autoencoder: it reconstructs a whole sequence and cannot "
            "write text; set backbone to language-model, or train it on compression with "
            "mlxhog mad train"
        )


def longest(cfg: ModelConfig) -> int | None:
    """Return the number of positions of the model; None if it is not limited."""
    if isinstance(cfg, mad.MADConfig) and cfg.position != "none":
        return cfg.max_length
    return None


def check_length(cfg: ModelConfig, length: int) -> None:
    """Refuse sequences that are longer than the model's table of positions.

    Raises:
        ConfigError: they are.
    """
    most = longest(cfg)
    if most is not None and length > most:
        raise ConfigError(
            f"sequences have {length} tokens, but the model has {most} positions (max_length); "
            "use fewer tokens, or train a model with a larger max_length or without positions"
        )


def dropout_sites(cfg: ModelConfig) -> dict[str, tuple[int, float]]:
    """Name -> (width, rate) of every place of the model with dropout in training."""
    return of(cfg).dropout_sites(cfg)


@dataclass(frozen=True)
class ParameterBlock:
    """Parameters that belong together: the embedding, a layer, or the final norm with the head.

    Attributes:
        name: "embedding", "layer 0" and so on, or "head".
        cell: "mlstm" or "slstm" for a layer with that cell. A layer without a cell, such as a
            feed-forward layer of a MAD model, has the cell of the layers before it. Else None.
        params: names of the parameters, in the order of use.
        size: number of their elements.
    """

    name: str
    cell: str | None
    params: tuple[str, ...]
    size: int

    @property
    def is_layer(self) -> bool:
        """Whether it is neither the embedding nor the head."""
        return self.name.startswith("layer")


def parameter_blocks(cfg: ModelConfig) -> list[ParameterBlock]:
    """Every parameter of a model, each in one block; a tied head is the embedding's block."""
    spec = param_spec(cfg)
    names_of: dict[str, list[str]] = {}
    for name in spec:
        match = _LAYER.search(name)
        outside = "embedding" if name in (embedding(cfg), ngrams.WEIGHT) else "head"
        names_of.setdefault(f"layer {match[1]}" if match else outside, []).append(name)
    cells = _cells(cfg)
    return [
        ParameterBlock(
            name=block,
            cell=cells[int(block.split()[1])] if block.startswith("layer") else None,
            params=tuple(names),
            size=sum(spec[name].size for name in names),
        )
        for block, names in names_of.items()
    ]


def _cells(cfg: ModelConfig) -> list[str | None]:
    """The cell of each layer."""
    if isinstance(cfg, xlstm_v1.XLSTMV1Config):
        layers = range(cfg.num_hidden_layers)
        return ["slstm" if layer in cfg.slstm_at else "mlstm" for layer in layers]
    if not isinstance(cfg, mad.MADConfig):
        return ["mlstm"] * cfg.num_hidden_layers
    cells: list[str | None] = []
    for layer in cfg.layers:
        own = next((cell for cell in ("mlstm", "slstm") if layer.name.startswith(cell)), None)
        before = cells[-1] if cells and layer.kind == "channel" else None
        cells.append(own or before)
    return cells
