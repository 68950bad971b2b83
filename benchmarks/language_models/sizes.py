"""Sizes of models and cells at which ours and the peers are compared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Size:
    """A batch of B sequences of S positions."""

    batch: int
    seq: int

    @property
    def tokens(self):
        """Positions in one step."""
        return self.batch * self.seq


@dataclass(frozen=True, kw_only=True)
class LargeSize(Size):
    """An xLSTM Large model and its batch: d, blocks, heads, V, B and S."""

    d: int
    blocks: int
    vocab: int
    heads: int = 4
    seq: int = 256
    chunk: int = 64

    @property
    def name(self):
        """As the tables call it."""
        return f"d {self.d} x {self.blocks}, B {self.batch}, S {self.seq}, V {self.vocab:,}"


SMALL = LargeSize(d=128, blocks=4, vocab=256, batch=8)
WIDE = LargeSize(d=512, blocks=6, vocab=256, batch=2)
LARGE_VOCABULARY = LargeSize(d=512, blocks=6, vocab=50_304, batch=2)
LONG = LargeSize(d=128, blocks=4, vocab=256, batch=4, seq=2048)


@dataclass(frozen=True, kw_only=True)
class V1Size(Size):
    """A stack of the original blocks, sLSTM at `slstm_at`, and its batch."""

    d: int = 128
    blocks: int = 8
    slstm_at: tuple[int, ...] = (1,)
    heads: int = 4
    vocab: int = 256
    batch: int = 8
    seq: int = 256

    @property
    def name(self):
        """As the tables call it."""
        stack = f"{self.blocks} blocks, sLSTM at {', '.join(map(str, self.slstm_at))}"
        return f"v1, {stack}, d {self.d}, B {self.batch}, S {self.seq}, V {self.vocab}"


SEVEN_TO_ONE = V1Size()


@dataclass(frozen=True, kw_only=True)
class MLSTMSize(Size):
    """An mLSTM cell: B, NH, S, DK, DV."""

    batch: int = 4
    heads: int = 4
    seq: int = 512
    key: int = 64
    value: int = 128
    chunk: int = 64

    @property
    def name(self):
        """As the tables call it."""
        heads = f"NH {self.heads}, DK {self.key}, DV {self.value}"
        return f"B {self.batch}, S {self.seq}, {heads}"


@dataclass(frozen=True, kw_only=True)
class SLSTMSize(Size):
    """An sLSTM cell: B, S, d, NH."""

    batch: int = 8
    seq: int = 256
    d: int = 256
    heads: int = 4

    @property
    def name(self):
        """As the tables call it."""
        return f"B {self.batch}, S {self.seq}, d {self.d}, NH {self.heads}"
