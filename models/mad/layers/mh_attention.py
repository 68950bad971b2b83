"""Attention of several heads to the positions up to each, with rotary positions.

    q, k, v = W u + b                            each cut into heads of dh = d / heads
    q, k = rope(q), rope(k)                      pair i turned by t * base^(-2 i / dh)
    y = W_out softmax(q k^T / sqrt(dh)) v + b

With `kv_heads`, heads / kv_heads neighbours share one head of keys and values; with `qk_norm`
every query and key is RMSNorm'd over its head before it is turned. Both are LFM2's.

Sources: Vaswani et al. 2017, arXiv:1706.03762; Su et al. 2021, RoFormer, arXiv:2104.09864; Ainslie
et al. 2023, grouped queries, arXiv:2305.13245; mad-lab.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layers.checks import check_heads
from mlxhog.models.mad.layers.linear_spec import bias, linear
from mlxhog.models.spec import ParamSpec


@dataclass(frozen=True, kw_only=True)
class MHAttention:
    """Numbers of the layer.

    Attributes:
        heads: heads of queries.
        kv_heads: heads of keys and values, None as many.
        rope: turn queries and keys by their positions.
        base: of the wavelengths of rope.
        qk_norm: norm queries and keys.
        bias: add one to every linear map.
    """

    name: ClassVar[str] = "mh-attention"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    heads: int = 16
    kv_heads: int | None = None
    rope: bool = True
    base: float = 10_000.0
    qk_norm: bool = False
    bias: bool = True

    @property
    def shared(self) -> int:
        """Heads of queries to each head of keys and values."""
        return 1 if self.kv_heads is None else self.heads // self.kv_heads

    def check(self, d: int) -> None:
        """See `Layer.check`."""
        check_heads(self.heads, d)
        if self.rope and d // self.heads % 2:
            raise ConfigError(
                f"heads is {self.heads}, so each is {d // self.heads} wide, and rope turns pairs; "
                "choose heads of an even width, or rope=false"
            )
        kv = self.heads if self.kv_heads is None else self.kv_heads
        if kv < 1 or self.heads % kv:
            raise ConfigError(
                f"kv_heads is {kv}, which does not divide the {self.heads} heads; leave it out, or "
                "set it to a divisor"
            )
        if not self.base > 1:
            raise ConfigError(f"base is {self.base}; wavelengths need one above 1, such as 10000")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """See `Layer.param_spec`; linear maps begin as torch.nn.Linear's do."""
        kv = d // self.shared
        for name, out in (("q_proj", d), ("k_proj", kv), ("v_proj", kv)):
            yield linear(f"{name}.weight", out, d)
            if self.bias:
                yield bias(f"{name}.bias", out, d)
        if self.qk_norm:
            yield ParamSpec("q_norm.weight", (d // self.heads,), "ones")
            yield ParamSpec("k_norm.weight", (d // self.heads,), "ones")
        yield linear("out_proj.weight", d, d)
        if self.bias:
            yield bias("out_proj.bias", d, d)

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """See `Layer.state`: the keys and values of every position."""
        return {"cache": 2 * (d // self.shared) * length}
