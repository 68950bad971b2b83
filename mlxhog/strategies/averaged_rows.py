"""Gradients of tables in rounds: the rows that each worker's batch touched, and their mean.

    segment                dtype    meaning
    tables.index.1 .. .P   int32    per table: the number of rows, then these rows, ascending
    tables.grads.1 .. .P   float32  per table: the gradients of these rows, from the first place on

They are written and read in the stages of `sync.py`, as the gradients of the parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mlxhog.optim.gradients import Float32, GradientSum, Int32, Rows

if TYPE_CHECKING:
    from mlxhog.arena import Arena
    from mlxhog.models.ngrams import NgramTables


def segments(workers: int, tables: NgramTables | None, tokens: int) -> dict[str, tuple[str, int]]:
    """Arena segments of the table above.

    Args:
        workers: of the run.
        tables: of the model.
        tokens: most that one worker computes in a round.
    """
    if tables is None:
        return {}
    n = len(tables.orders)
    most = min(tokens, max(spec.shape[0] for spec in tables.specs.values()))
    return {
        **{f"tables.index.{rank + 1}": ("int32", n * (1 + most)) for rank in range(workers)},
        **{
            f"tables.grads.{rank + 1}": ("float32", n * most * tables.dim)
            for rank in range(workers)
        },
    }


class AveragedRows:
    """The segments of one arena."""

    def __init__(self, arena: Arena, workers: int) -> None:
        self.names = list(arena.layout.tables)
        n, dim = len(self.names), arena.layout.tables[self.names[0]].shape[1]
        parts = [f"{rank + 1}" for rank in range(workers)]
        self._index: list[Int32] = [
            arena.segment(f"tables.index.{part}").reshape(n, -1) for part in parts
        ]
        self._values: list[Float32] = [
            arena.segment(f"tables.grads.{part}").reshape(n, -1, dim) for part in parts
        ]

    def put(self, rank: int, rows: Mapping[str, Rows]) -> None:
        """Write a worker's gradients, each row once."""
        for k, name in enumerate(self.names):
            index, count = self._index[rank][k], len(rows[name].index)
            index[0], index[1 : 1 + count] = count, rows[name].index
            self._values[rank][k, :count] = rows[name].values

    def mean(self, k: int, shares: Iterable[tuple[int, float]]) -> Rows:
        """The sum of (rank, share of its gradient) for the k-th table, in this order."""
        total, name = GradientSum(), self.names[k]
        for rank, share in shares:
            index = self._index[rank][k]
            count = int(index[0])
            rows = Rows(index[1 : 1 + count], self._values[rank][k, :count])
            total.add({name: rows}, share)
        mean = total.grads()[name]
        assert isinstance(mean, Rows)
        return mean
