"""The settings of an mLSTM block and of an sLSTM block, under the names of the xlstm package.

A block's width, bias and dropout are those of the model. The package repeats them inside each
block; here those values are only compared with the model's.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mlxhog.errors import ConfigError
from mlxhog.models.fields import (
    MOST,
    check_most,
    check_names,
    check_positive,
    doc,
    read,
    unknown,
)

CHOICES = {
    "bias_init": ("powerlaw_blockdependent", "small_init", "standard", "zeros"),
    "recurrent_weight_init": ("zeros", "standard"),
    "act_fn": ("gelu", "relu", "relu^2", "sigmoid", "swish", "selu"),
}
"""Fields with a fixed set of values."""

ONLY = {
    "function": "slstm",
    "num_states": 4,
    "num_gates": 4,
    "initial_val": 0.0,
    "gradient_recurrent_cut": False,
    "gradient_recurrent_clipval": None,
    "forward_clipval": None,
    "ff_type": "ffn_gated",
}
"""Fields of the package that change the mathematics, and the one value that is supported."""

NO_EFFECT = frozenset(
    "backend batch_size input_shape internal_input_shape output_shape constants dtype dtype_b "
    "dtype_r dtype_w dtype_g dtype_s dtype_a enable_automatic_mixed_precision".split()
)
"""Fields of the package that choose kernels or their types, never the mathematics."""

REPEATED = {"hidden_size": "embedding_dim"} | {
    name: name for name in ("embedding_dim", "bias", "dropout", "context_length")
}
"""Fields of the model that the package repeats inside a block: name there -> name in the model."""


@dataclass(frozen=True, kw_only=True)
class MLSTMLayerConfig:
    """Of the mLSTM layer; `proj_factor` widens the model's width to that of the cell."""

    num_heads: int = field(default=4, metadata=doc("heads; they divide the cell's width"))
    conv1d_kernel_size: int = field(default=4, metadata=doc("taps of the convolution before it"))
    qkv_proj_blocksize: int = field(
        default=4, metadata=doc("units of a group that q, k and v mix within")
    )
    proj_factor: float = field(default=2.0, metadata=doc("width of the cell / embedding_dim"))
    round_proj_up_dim_up: bool = field(default=True, metadata=doc("round that width up, not down"))
    round_proj_up_to_multiple_of: int = field(default=64, metadata=doc("to a multiple of it"))


@dataclass(frozen=True, kw_only=True)
class SLSTMLayerConfig:
    """Of the sLSTM layer; a kernel of size 0 is no convolution."""

    num_heads: int = field(default=4, metadata=doc("heads; they divide embedding_dim"))
    conv1d_kernel_size: int = field(
        default=4, metadata=doc("taps of the convolution before it; 0 is none")
    )
    bias_init: str = field(
        default="powerlaw_blockdependent",
        metadata=doc("forget gates: or small_init, standard, zeros"),
    )
    recurrent_weight_init: str = field(default="zeros", metadata=doc("or standard"))
    group_norm_weight: bool = field(default=True, metadata=doc("the norm of its heads has weights"))


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig:
    """Of the gated feed-forward layer of an sLSTM block; its bias and dropout are its own."""

    proj_factor: float = field(default=1.3, metadata=doc("its width / embedding_dim"))
    round_proj_up_dim_up: bool = field(default=True, metadata=doc("round that width up, not down"))
    round_proj_up_to_multiple_of: int = field(default=64, metadata=doc("to a multiple of it"))
    act_fn: str = field(
        default="gelu", metadata=doc("of its gate: or relu, relu^2, sigmoid, swish, selu")
    )
    dropout: float = field(default=0.0, metadata=doc("share of its units dropped while it trains"))
    bias: bool = field(default=False, metadata=doc("biases in its matrices"))


@dataclass(frozen=True, kw_only=True)
class MLSTMBlockConfig:
    """An mLSTM block: norm, mLSTM layer."""

    mlstm: MLSTMLayerConfig = field(
        default_factory=MLSTMLayerConfig, metadata=doc("the mLSTM layer")
    )


@dataclass(frozen=True, kw_only=True)
class SLSTMBlockConfig:
    """An sLSTM block: norm, sLSTM layer and, unless it is None, norm, feed-forward layer."""

    slstm: SLSTMLayerConfig = field(
        default_factory=SLSTMLayerConfig, metadata=doc("the sLSTM layer")
    )
    feedforward: FeedForwardConfig | None = field(
        default_factory=FeedForwardConfig, metadata=doc("the gated layer after it, or null")
    )


Part = TypeVar("Part", MLSTMLayerConfig, SLSTMLayerConfig, FeedForwardConfig)


def rounded_width(d: int, part: MLSTMLayerConfig | FeedForwardConfig) -> int:
    """Width d times the projection factor, rounded to a whole multiple as the package does."""
    multiple = part.round_proj_up_to_multiple_of
    rounding = math.ceil if part.round_proj_up_dim_up else math.floor
    return rounding(part.proj_factor * d / multiple) * multiple


def read_mlstm_block(
    data: object, model: Mapping[str, Any], *, strict: bool
) -> tuple[MLSTMBlockConfig | None, dict[str, Any]]:
    """Read `mlstm_block`; None is a model without such blocks.

    Args:
        data: the value of that field.
        model: the model's own fields, which those repeated here have to equal.
        strict: refuse unknown fields instead of returning them.

    Returns:
        The block, and the fields without effect.

    Raises:
        ConfigError: a field is unknown, of the wrong type, or contradicts the model.
    """
    if data is None:
        return None, {}
    sections = _sections("mlstm_block", data, ("mlstm",))
    layer, extra = _read(MLSTMLayerConfig, "mlstm_block.mlstm", sections["mlstm"], model, strict)
    return MLSTMBlockConfig(mlstm=layer), {"mlstm": extra} if extra else {}


def read_slstm_block(
    data: object, model: Mapping[str, Any], *, strict: bool
) -> tuple[SLSTMBlockConfig | None, dict[str, Any]]:
    """Read `slstm_block`, as `read_mlstm_block` does; its feedforward may be None."""
    if data is None:
        return None, {}
    sections = _sections("slstm_block", data, ("slstm", "feedforward"))
    layer, extra = _read(SLSTMLayerConfig, "slstm_block.slstm", sections["slstm"], model, strict)
    unread = {"slstm": extra} if extra else {}
    ffn = None
    if sections["feedforward"] is not None:
        # Bias and dropout of this layer are its own; only its width is the model's.
        model = {"embedding_dim": model.get("embedding_dim")}
        where = "slstm_block.feedforward"
        ffn, extra = _read(FeedForwardConfig, where, sections["feedforward"], model, strict)
        unread |= {"feedforward": extra} if extra else {}
    return SLSTMBlockConfig(slstm=layer, feedforward=ffn), unread


def _sections(where: str, data: object, names: tuple[str, ...]) -> dict[str, Any]:
    """Split a block into its sections; one that is absent has the package's defaults."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {data!r}; give it fields such as {names[0]}, or null")
    check_names(where, data)
    for key in data:
        if key not in names and not key.startswith("_"):
            raise ConfigError(unknown(f"{where}.{key}", [f"{where}.{name}" for name in names]))
    sections = {name: data.get(name, {}) for name in names}
    if sections[names[0]] is None:
        raise ConfigError(
            f"{where}.{names[0]} is null; leave {where} out where no block is of that kind"
        )
    return sections


def _read(
    kind: type[Part], where: str, data: object, model: Mapping[str, Any], strict: bool
) -> tuple[Part, dict[str, Any]]:
    """Read one section into its config; return also the fields without effect."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {data!r}; give it fields, or {{}} for the defaults")
    own = {}
    for key, value in data.items():
        name = f"{where}.{key}"
        if str(key).startswith("_"):
            continue  # the package's own intermediate results
        if key in REPEATED and REPEATED[key] in model and key not in kind.__dataclass_fields__:
            _check_repeated(name, value, REPEATED[key], model)
        elif key in ONLY:
            if value != ONLY[key]:
                raise ConfigError(
                    f"{name} is {value!r}, and only {ONLY[key]!r} is supported; remove it"
                )
        else:
            own[key] = value
    values, extra = read(kind, own, strict=strict, where=f"{where}.", no_effect=NO_EFFECT)
    return kind(**values), extra


def _check_repeated(name: str, value: object, of_model: str, model: Mapping[str, Any]) -> None:
    if value not in (None, -1, model[of_model]):
        raise ConfigError(
            f"{name} is {value!r} and {of_model} of the model {model[of_model]!r}; "
            f"remove {name}, which has to be the same"
        )


def check(where: str, part: Part) -> None:
    """Refuse numbers out of range and names that are not among the choices."""
    for key, value in dataclasses.asdict(part).items():
        name = f"{where}.{key}"
        if key in CHOICES:
            if value not in CHOICES[key]:
                raise ConfigError(
                    f"{name} is {value!r}; choose one of {', '.join(sorted(CHOICES[key]))}"
                )
        elif key == "conv1d_kernel_size":
            _check_kernel(name, value, optional=isinstance(part, SLSTMLayerConfig))
        elif key == "dropout":
            check_dropout(name, value)
        elif not isinstance(value, bool):
            check_positive(name, value)
            check_most(name, value, MOST)


def check_dropout(name: str, rate: float) -> None:
    """Refuse a rate that is no probability, or that would drop everything."""
    if not 0.0 <= rate < 1.0:
        raise ConfigError(f"{name} is {rate}; set it to 0 for none, or to a number below 1")


def _check_kernel(name: str, size: int, *, optional: bool) -> None:
    """Refuse a convolution of fewer than two taps, but for 0 where it may be absent."""
    if size < 2 and not (optional and size == 0):
        raise ConfigError(
            f"{name} is {size}; set it to 2 or more" + (", or to 0 for none" if optional else "")
        )
