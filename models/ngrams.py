"""N-gram embedding tables: a row for the last n ids, added to the embedding of the last id.

For every order n, with a table T_n of R_n rows of k floats, and W_n (d, k):

    x_t = E[id_t] + sum over n of W_n T_n[h_n(id_(t-n+1), ..., id_t)]

h_n enumerates all sequences of n ids if the table has a row for each. Else it hashes them, by
multiply-shift with odd 64-bit a_j:

    h_n = (sum over j < n of a_j (id_(t-j) + 1) mod 2^64) >> (64 - log2 R_n)

Ids before the sequence, or before the document if the state is reset, are -1.

T is zero at the start, and W_n normal with std k^-1/2. A batch touches few rows, so T is a
parameter of kind "table": it is read and written row by row (`mlxhog/optim/tables.py`), and a
framework gets only the rows of a batch, r (B, S, orders * k). The W_n are columns of one matrix, so
that the sum is one matmul with r.

Source: hashed n-grams: Joulin et al. 2016, arXiv:1607.01759; multiply-shift: Dietzfelbinger et al.
1997, doi:10.1006/jagm.1997.0873, for sequences Dietzfelbinger 1996, doi:10.1007/3-540-60922-9_46.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ConfigError, shown
from mlxhog.models.spec import ParamSpec

WEIGHT = "ngrams.weight"
"""Name of W, (d, orders * k)."""
TABLE = "ngrams.table_"
"""Prefix of a table's name; its order follows."""
ROWS = "ngrams.rows"
"""Name of r among the arrays of a gradient."""
FIELDS = ("ngram_orders", "ngram_dim", "ngram_rows")
"""Fields of a model's config."""

MIN_ORDER, MAX_ORDER = 2, 16
MAX_ROWS = 1 << 24
MAX_DIM = 1 << 12
ABSENT = -1

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class NgramTables:
    """The n-gram tables of one model."""

    orders: tuple[int, ...]  # n of each table, ascending
    dim: int  # k, floats of a row
    max_rows: int  # rows of a table that hashes
    vocab_size: int  # V
    reset_token: int | None  # the id at which the state is reset

    @cached_property
    def specs(self) -> dict[str, ParamSpec]:
        """Name -> spec of every table, ascending in n."""
        rows = {f"{TABLE}{n}": min(self._numbers(n), self.max_rows) for n in self.orders}
        return {name: ParamSpec(name, (R, self.dim), "zeros", "table") for name, R in rows.items()}

    @property
    def floats(self) -> int:
        """Number of elements of all tables."""
        return sum(spec.size for spec in self.specs.values())

    @property
    def context(self) -> int:
        """Number of earlier ids that a token's rows depend on."""
        return self.orders[-1] - 1

    @property
    def width(self) -> int:
        """Width of r: floats that one position reads."""
        return len(self.orders) * self.dim

    def ids(self, tokens: Any, before: Any, xp: Any = np) -> Any:
        """Return tokens (B, S) with the `context` ids before them in front, int32 arrays of `xp`.

        These ids are the first part of the state of a model with tables; None is `ABSENT`.
        """
        if before is None:
            before = xp.full((len(tokens), self.context), ABSENT, "int32", like=tokens)
        return xp.concatenate([before, xp.int32(tokens)], 1)

    def rows_of(self, tokens: Int32, before: Int32 | None = None) -> dict[str, Int32]:
        """Return the row of every position of tokens (B, S) in each table by its name.

        `before` are the ids before them; None at the start of sequences.
        """
        (B, S), context = tokens.shape, self.context
        ids = self.ids(tokens, before).astype(np.int64)
        place = np.arange(ids.shape[1])
        document_start = np.zeros_like(ids)  # position of the document's first id
        if self.reset_token is not None:
            starts = np.where(ids == self.reset_token, place, 0)
            document_start = np.maximum.accumulate(starts, axis=1)
        number, key = np.zeros((B, S), np.int64), np.zeros((B, S), np.uint64)
        shift = np.uint64(64 - (self.max_rows.bit_length() - 1))
        rows: dict[str, Int32] = {}
        for j in range(context + 1):
            at = slice(context - j, context - j + S)
            symbol = np.where(place[at] >= document_start[:, context:], ids[:, at], ABSENT) + 1
            key += _MULTIPLIERS[j] * symbol.astype(np.uint64)
            if (counted := self._numbers(j)) <= self.max_rows:
                number += symbol - 1 if j == 0 else counted * symbol
            if j + 1 in self.orders:
                row = number if self._numbers(j + 1) <= self.max_rows else key >> shift
                rows[f"{TABLE}{j + 1}"] = row.astype(np.int32)
        return rows

    def gather(self, tables: Mapping[str, Any], rows: Mapping[str, Int32]) -> Float32:
        """Gather the rows of a batch from the tables: r, (B, S, width).

        Concurrency: other processes may write the tables meanwhile; elements are never torn, those
        of a row may have different staleness.
        """
        own = [tables[name][index] for name, index in rows.items()]
        return np.concatenate(own, axis=-1).astype(np.float32, copy=False)  # or a file has 16 bits

    def look_up(self, params: Mapping[str, Any], tokens: Any, before: Any, xp: Any) -> Any:
        """Return the rows of the tokens' n-grams, r (B, S, width), differentiable in the tables.

        All are arrays of the framework of `xp`; `before` is as of `ids`.
        """
        tokens, before = (None if x is None else xp.numpy(x) for x in (tokens, before))
        rows = self.rows_of(tokens, before).items()
        parts = (xp.embedding(params[n], xp.from_numpy(row, like=params[n])) for n, row in rows)
        return xp.concatenate(list(parts), -1)

    def parts(
        self, rows: Mapping[str, Int32], grad: NDArray[Any]
    ) -> Iterator[tuple[str, Int32, NDArray[Any]]]:
        """Yield (table, rows (B * S,), their gradients (B * S, k)) of the gradient of r."""
        columns = np.split(grad.reshape(-1, self.width), len(self.orders), axis=1)
        for (name, index), values in zip(rows.items(), columns, strict=True):
            yield name, index.reshape(-1), np.ascontiguousarray(values)

    def _numbers(self, n: int) -> int:
        """Count the sequences of n ids, of which the last is never absent."""
        return self.vocab_size * (self.vocab_size + 1) ** (n - 1) if n else 0


def _multipliers() -> Iterator[np.uint64]:
    """Yield the first values of SplitMix64 from 0, made odd.

    Source: Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195.
    """
    mask = (1 << 64) - 1
    for j in range(1, MAX_ORDER + 1):
        z = j * 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        yield np.uint64((z ^ z >> 31) | 1)


_MULTIPLIERS = tuple(_multipliers())


def param_spec(cfg: Any) -> tuple[ParamSpec, ...]:
    """Declare W and the tables of a model; nothing for a model without tables."""
    if (tables := of(cfg)) is None:
        return ()
    init = f"normal:{tables.dim**-0.5!r}"
    W = ParamSpec(WEIGHT, (cfg.hidden_size, tables.width), init, decay=True)
    return (W, *tables.specs.values())


def of(cfg: Any) -> NgramTables | None:
    """Return the tables of a model; None if it has none."""
    if not (orders := getattr(cfg, "ngram_orders", ())):
        return None
    reset = cfg.bos_token_id if cfg.reset_at_document_boundaries else None
    sizes = {"dim": cfg.ngram_dim, "max_rows": cfg.ngram_rows, "vocab_size": cfg.vocab_size}
    return NgramTables(orders=orders, reset_token=reset, **sizes)


def read_orders(value: object) -> tuple[int, ...]:
    """Read orders: a number, a range such as "2-8", or a list.

    Raises:
        ConfigError: it cannot be parsed, or an order is out of range.
    """
    parts = value.split(",") if isinstance(value, str) else value
    orders: set[int] = set()
    try:
        for part in parts if isinstance(parts, list | tuple) else [parts]:
            if isinstance(part, bool | float):
                raise ValueError
            first, dash, last = str(part).strip().partition("-")
            low, high = int(first), int(last if dash else first)
            if not MIN_ORDER <= low <= high <= MAX_ORDER:
                raise ValueError
            orders |= set(range(low, high + 1))
    except ValueError:
        raise ConfigError(
            f"ngram_orders is {shown(value)}; give orders from {MIN_ORDER} to {MAX_ORDER}, such "
            "as 2-8 or [2, 3, 5]; [] is a model without tables"
        ) from None
    return tuple(sorted(orders))
