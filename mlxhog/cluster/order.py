"""A machine's part of the cluster's order: no sequence is twice in an epoch, whoever leaves.

The link calls `refill` now and then: it claims blocks of the cluster ahead of the workers and
reports what is done. If the authority cannot be reached, workers use up the blocks that are mapped
and then train on own ones (`mlxhog/arena/blocks.py`), which count as repeats.

A machine that leaves, or is killed, has claimed blocks that it has not done. They are lost, and
counted (`authority.py`). A machine that resumes the last checkpoint of a run that ended keeps the
blocks in it. After a kill it begins with new ones: the cluster's parameters may have been trained
on blocks that the checkpoint calls free.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass, replace
from typing import Final

from mlxhog.arena import blocks
from mlxhog.arena.arena import Arena
from mlxhog.arena.blocks import Blocks, BlocksPosition
from mlxhog.arena.ledger import Ledger
from mlxhog.cluster.authority import Authority
from mlxhog.config.budget import Budget

LEAST_AHEAD: Final = 4
"""Blocks that a link keeps ahead of its workers at least."""
MARGIN: Final = 3
"""A link keeps this many times the tickets ahead that workers took since its last visit."""


@dataclass(frozen=True)
class SchedulePosition:
    """How far a cluster has come when a machine joins it.

    Attributes:
        tokens: computed by all machines.
        seconds: of training since the cluster began.
    """

    tokens: int
    seconds: float

    def of(self, budget: Budget) -> Budget:
        """The budget of a joiner: its schedule continues where the cluster stands.

        A limit in tokens is the whole cluster's, so its rest is what the cluster has left. A limit
        in seconds is this machine's, behind the seconds of the cluster. A limit in steps is this
        machine's, too, and has no part before it.
        """
        tokens = None if budget.tokens is None else max(0, budget.tokens - self.tokens)
        return replace(
            budget, tokens=tokens, tokens_before=self.tokens, seconds_before=self.seconds
        )


def begin(arena: Arena, ledger: Ledger, position: BlocksPosition | None, *, keep: bool) -> None:
    """Prepare the table of a run, after the ledger has its position and before workers start.

    Args:
        arena: of the run; its id and the name of this machine choose the own order.
        ledger: of the run.
        position: in the checkpoint of the ledger; None for a new run.
        keep: whether to keep the blocks of the position: nothing was trained after it. Otherwise
            they are lost, and the ledger skips the rest of its present block.

    Raises:
        CheckpointError: the position is invalid.
    """
    table = Blocks(arena, ledger)
    if not keep or position is None:
        blocks.at_block_start(ledger)
    name = f"{platform.node()}/{arena.run_id}".encode()
    salt = int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "little")
    table.begin(salt, position if keep else None)
    if position is not None:
        table.raise_cursor(position["cursor"])


class Order:
    """The claims of one link.

    Concurrency: one link per arena. It may be killed at any moment; its successor continues from
    the arena, and blocks that it had claimed and not mapped are lost.
    """

    def __init__(self, arena: Arena, ledger: Ledger, authority: Authority) -> None:
        """Open the table of a run, and let the store begin behind all blocks that it knows of.

        Args:
            arena: of the run.
            ledger: of the run.
            authority: of the cluster; for another store, another link.

        Raises:
            ConnectionError: the store is not prepared.
            Exception: the authority cannot be reached.
        """
        self.table, self._ledger, self._authority = Blocks(arena, ledger), ledger, authority
        self._claimed = list[int]()
        self._handed_out = ledger.handed_out
        if not (store := authority.number):
            raise ConnectionError(
                "the store of the lighthouse has no number yet, so its reserve of blocks is not "
                "prepared; ask again, or restart the lighthouse"
            )
        authority.skip_to(self.table.cursor)
        self._base = self.table.meet(store)

    def refill(self) -> int:
        """Claim as many blocks as workers may need until the next call, and report.

        Returns:
            Tickets that are ahead of the workers.

        Raises:
            Exception: the authority cannot be reached; workers are not concerned.
        """
        table, handed_out = self.table, self._ledger.handed_out
        used, self._handed_out = handed_out - self._handed_out, handed_out
        target = max(MARGIN * used, LEAST_AHEAD * table.length)
        lacking = -(-(target - table.ahead) // table.length)
        if (count := min(lacking, table.room) - len(self._claimed)) > 0:
            claimed = self._authority.claim(count)
            table.raise_cursor(claimed.stop)
            self._claimed += claimed
        while self._claimed and table.append(self._claimed[0]) is not None:
            del self._claimed[0]
        self.report()
        return table.ahead

    def report(self) -> None:
        """Report this machine's blocks to the cluster."""
        counts = self.table.counts
        self._authority.report(
            claimed=counts.mapped - self._base + len(self._claimed),
            done=max(0, counts.done - self._base),  # the blocks of other stores are done first
            repeats=counts.own_done,
        )
