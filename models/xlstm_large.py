"""xLSTM Large, the architecture of xLSTM-7B: fields, list of layers, names of its checkpoints.

Every block is an mLSTM layer and a feed-forward layer, whose equations are in `layers/xlstm.py`;
the logits are cap(RMSNorm(x) H^T, 30).

Sources: Beck et al. 2025, xLSTM 7B, arXiv:2503.13427; names and rounding of sizes as in
transformers 5.23.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

from mlxhog.config.options import option
from mlxhog.errors import ConfigError
from mlxhog.models.fields import MAX_LAYERS, MAX_WIDTH, check_max, positive
from mlxhog.models.layers.feed_forward import LargeFeedForward
from mlxhog.models.layers.xlstm import LargeMLSTM
from mlxhog.models.model import BlockStack, ResidualBlock, XLSTMConfig
from mlxhog.models.spec import ParamSpec, normal

EMBEDDING = "backbone.embeddings.weight"
OUT_NORM = "backbone.out_norm"

SPELLINGS = {"embedding_dim": "hidden_size", "num_blocks": "num_hidden_layers"}
"""The xlstm package's field names beside those of transformers; config.json may have either."""


@dataclass(frozen=True, kw_only=True)
class XLSTMLargeConfig(XLSTMConfig):
    """Sizes and constants of one model, under the field names of transformers' xLSTMConfig.

    `out_norm_bias` is a field of this package: with `use_bias`, xlstm's final norm also has a bias,
    and transformers' has none.
    """

    model_type: ClassVar[str] = "xlstm"
    title: ClassVar[str] = "xLSTM Large"
    aliases = SPELLINGS
    ignored = frozenset(  # they choose kernels or label files
        "architectures transformers_version dtype torch_dtype chunkwise_kernel sequence_kernel "
        "step_kernel mode return_last_states autocast_kernel_dtype inference_state_dtype "
        "norm_reduction_force_float32 max_inference_chunksize use_cache eos_token_id "
        "pad_token_id".split()
    )

    num_hidden_layers: int = positive("blocks: an mLSTM, then a SwiGLU", high=MAX_LAYERS)
    num_heads: int = positive("heads of every mLSTM; they divide its widths", high=MAX_WIDTH)
    use_bias: bool = option(False, "biases in the matrices, too")
    add_out_norm: bool = option(True, "a norm before the head")
    out_norm_bias: bool = option(False, "with use_bias: that norm has one")
    tie_word_embeddings: bool = option(False, "the head is the embedding")
    norm_eps: float = positive("added to the variance in norms", 1e-6)
    qk_dim_factor: float = positive(
        "width of queries and of keys / hidden_size", 0.5, high=MAX_WIDTH
    )
    v_dim_factor: float = positive("width of values / hidden_size", 1.0, high=MAX_WIDTH)
    chunk_size: int = positive("positions computed in parallel", 64)
    eps: float = positive("added to the mLSTM's denominator", 1e-6)
    ffn_proj_factor: float = positive("width of the SwiGLU / hidden_size", 2.667, high=MAX_WIDTH)
    ffn_round_up_to_multiple_of: int = positive("the SwiGLU's width is a multiple of it", 64)
    gate_soft_cap: float = positive("bound of the gates' preactivations", 15.0)
    output_logit_soft_cap: float = positive("bound of the logits", 30.0)
    zero_init_residual: bool = option(
        False, "the last matrices of mLSTM and SwiGLU begin at zero, so each block adds nothing"
    )

    def __post_init__(self) -> None:
        """Refuse a model that cannot be built."""
        super().__post_init__()
        for name in ("qk_dim", "v_dim", "ffn_dim"):
            check_max(name, getattr(self, name))
        for factor, width in (("qk_dim_factor", self.qk_dim), ("v_dim_factor", self.v_dim)):
            if width < self.num_heads or width % self.num_heads:
                raise ConfigError(
                    f"hidden_size {self.hidden_size} * {factor} {getattr(self, factor)} = {width} "
                    f"does not divide into num_heads {self.num_heads}; change one of the three"
                )
        if self.out_norm_bias and not self.add_out_norm:
            raise ConfigError(
                "out_norm_bias is true and add_out_norm is false; there is no norm to have a bias"
            )

    @cached_property
    def stack(self) -> BlockStack:
        """The model as a list of layers, without an adapter."""
        d, bias = self.hidden_size, self.use_bias
        wang = normal(2 / (self.num_hidden_layers * math.sqrt(d)))
        residual = "zeros" if self.zero_init_residual else wang
        mlstm = LargeMLSTM(
            heads=self.num_heads, qk=self.qk_dim, v=self.v_dim, bias=bias, residual=residual,
            chunk_size=self.chunk_size, eps=self.eps, gate_cap=self.gate_soft_cap,
        )  # fmt: skip
        ffn = LargeFeedForward(inner=self.ffn_dim, bias=bias, residual=residual)
        names = [f"backbone.blocks.{number}" for number in range(self.num_hidden_layers)]
        out_norm = [ParamSpec(f"{OUT_NORM}.weight", (d,), "ones")] * self.add_out_norm
        out_norm += [ParamSpec(f"{OUT_NORM}.bias", (d,), "zeros")] * self.out_norm_bias
        return BlockStack(
            **self.embedding_and_head(EMBEDDING),
            blocks=tuple(
                (
                    ResidualBlock(
                        name=f"{name}.mlstm_layer", norm=f"{name}.norm_mlstm", layer=mlstm, d=d
                    ),
                    ResidualBlock(name=f"{name}.ffn", norm=f"{name}.norm_ffn", layer=ffn, d=d),
                )
                for name in names
            ),
            norms=("rms", "ones", bias),
            out_norm=tuple(out_norm),
        )

    @property
    def hf_cache(self) -> bool:  # type: ignore[override]  # of other families it is a constant
        """Whether transformers can cache the state: it rounds widths up to a multiple of 64."""
        return all(width % 64 == 0 for width in (self.qk_dim, self.v_dim))

    @property
    def in_transformers(self) -> bool:  # type: ignore[override]  # of other families likewise
        """Whether it has a final norm, as always there, and neither n-gram tables nor resets."""
        has_more = bool(self.ngram_orders) or self.reset_at_document_boundaries
        return self.add_out_norm and not has_more

    @property
    def qk_dim(self) -> int:
        """Width of q and k over all heads."""
        return int(self.hidden_size * self.qk_dim_factor)

    @property
    def v_dim(self) -> int:
        """Width of v, o and the cell's output over all heads."""
        return int(self.hidden_size * self.v_dim_factor)

    @property
    def ffn_dim(self) -> int:
        """U, width of the feed-forward layer.

        The fractional width enters the rounding as it is, so 768 * 2.667 = 2048.256 gives 2048.
        """
        multiple = self.ffn_round_up_to_multiple_of
        return int((self.hidden_size * self.ffn_proj_factor + multiple - 1) // multiple * multiple)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, strict: bool = False) -> Self:
        """Read a config; a soft cap of null, which xlstm allows, is refused.

        `weight_mode` says how a file stores fused matrices; ours are single.
        """
        for name in ("gate_soft_cap", "output_logit_soft_cap"):
            if name in data and data[name] is None:
                raise ConfigError(f"{name} is null, no bound, which is not supported; set a number")
        data = {name: value for name, value in data.items() if name != "weight_mode"}
        return super().from_dict(data, strict=strict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for transformers' AutoConfig, with both spellings of each size."""
        names = {"architectures": ["xLSTMForCausalLM"], "model_type": "xlstm"}
        # Without this transformers would run the cell in bfloat16, unlike our training.
        kernels = {"autocast_kernel_dtype": "float32", "inference_state_dtype": "float32"}
        both = {other: getattr(self, name) for other, name in SPELLINGS.items()}
        fields = self.values()
        for ours in ("out_norm_bias", "zero_init_residual"):  # unknown to transformers
            if not fields[ours]:
                del fields[ours]
        return names | kernels | dict(self.extra) | fields | {"weight_mode": "single"} | both
