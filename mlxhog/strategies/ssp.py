"""Stale synchronous parallel (Ho et al. 2013): a parameter server whose workers keep together.

Every worker has a clock: its number of pushed gradients. It begins the next one only when it is at
most s steps ahead of the slowest, s being `--slack`. So clocks differ by s + 1 at most at any time,
and a gradient is at most (P - 1)(2 s + 1) updates late. The gate is where a worker pulls. (A gate
at the push, on versions, only makes gradients older: versions never fall, so a worker that is too
late waits forever.)

s bounds clocks, not times: in the long run all are as fast as the slowest. It absorbs workers that
are sometimes slow; for one that is always slow, take `sync --sync-shares speed` or `hogwild`.

No worker waits for one that is dead, has ended or has nothing to do: that one takes part again at
its next pull, from the clock of the slowest. Clocks change and workers come back only under the
server's lock, so all clocks are exact there.

    segment    dtype   meaning
    step.lock  uint32  the server's lock (`async_ps.py`)
    ssp.words  uint8   of each rank: its clock; its incarnation while it takes part, else 0; since
                       when it waits, in monotonic nanoseconds, or 0
"""

from __future__ import annotations

from mlxhog.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.words import Table, Words
from mlxhog.arena.workers import State
from mlxhog.strategies.async_ps import AsyncPS, AsyncPSWorker
from mlxhog.strategies.context import Context, Idle, Lease

WORDS = "clock owner waits_since"
NOTICE_S = 30.0  # the slowest worker is named when others have waited this long
_GONE = (State.FREE, State.DEAD, State.FINISHED)


class SSP(AsyncPS):
    """A parameter server with a gate."""

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The segments of the table above."""
        return {
            **super().segments(n_params),
            "ssp.words": ("uint8", Table(rank=(self.slots, WORDS)).n_bytes),
        }

    def worker(self, context: Context) -> SSPWorker:
        """Prepare one worker."""
        return SSPWorker(context)

    def held_up(self, arena: Arena) -> str | None:
        """Name the worker that others have waited for longer than `NOTICE_S`."""
        words, limit_ns = words_of(arena), 1e9 * NOTICE_S
        since = [words["waits_since", rank] for rank in range(self.slots)]
        now_ns = monotonic_ns()
        waiting = [k + 1 for k, at_ns in enumerate(since) if at_ns and now_ns - at_ns > limit_ns]
        clocks = clocks_of(arena)
        if not waiting or not clocks:
            return None
        slot = min(clocks, key=lambda one: (clocks[one], one))
        return (
            f"worker {slot} is slow: after {clocks[slot]} of its gradients others have waited more "
            f"than {NOTICE_S:g} s for it, as slack lets them go no further ahead; "
            "raise --slack, or take --strategy hogwild"
        )


def clocks_of(arena: Arena) -> dict[int, int]:
    """The clocks of the workers that take part, by slot; exact under the server's lock."""
    words = words_of(arena)
    return {
        entry.slot: words["clock", entry.slot - 1]
        for entry in arena.workers
        if entry.state not in _GONE and words["owner", entry.slot - 1] == entry.incarnation
    }


def words_of(arena: Arena) -> Words:
    """The words of the table above."""
    return Table(rank=(arena.layout.max_workers, WORDS)).open(arena.segment("ssp.words"))


class SSPWorker(AsyncPSWorker):
    """Pull at the gate, compute, push."""

    def __init__(self, context: Context) -> None:
        """Prepare one worker, which takes part from its first claim on."""
        super().__init__(context)
        self._words = words_of(context.arena)
        self._slack: int = context.choice.slack

    def claim(self) -> Lease | Idle:
        """Take any free ticket, at most `slack` steps ahead of the slowest."""
        if self._words["owner", self.context.rank] != self.context.owner:
            self._enter()
        idle = self._wait_at_gate()
        lease = super().claim() if idle is None else idle
        if lease is Idle.DONE:
            self._words["owner", self.context.rank] = 0
        return lease

    def _enter(self) -> None:
        """Take part, not behind the slowest nor over `slack` behind any, so that none waits."""
        words, rank = self._words, self.context.rank
        self._server.acquire(0)
        slowest = min(clocks_of(self.context.arena).values(), default=0)
        fastest = max(words["clock", k] for k in range(self.context.strategy.slots))
        words["clock", rank] = max(words["clock", rank], slowest, fastest - self._slack)
        words["waits_since", rank] = 0
        words["owner", rank] = self.context.owner
        self._server.release(0)

    def _may_begin(self) -> bool:
        """Whether this worker is not too far ahead of the slowest."""
        clocks = clocks_of(self.context.arena)
        return self._words["clock", self.context.rank] - min(clocks.values()) <= self._slack

    def _wait_at_gate(self) -> Idle | None:
        """Wait until no longer too far ahead; returns the reason if the wait ends otherwise."""
        context, words = self.context, self._words
        if self._may_begin():
            return None
        words["waits_since", context.rank] = monotonic_ns()
        context.wait_until(lambda: self._may_begin() or self._is_over() or context.paused())
        words["waits_since", context.rank] = 0
        if self._may_begin():
            return None
        return Idle.DONE if self._is_over() else Idle.WAIT

    def _is_over(self) -> bool:
        return self.context.stopping() or self.context.used_up()

    def _landed(self) -> None:
        """Advance its clock, under the server's lock."""
        self._words["clock", self.context.rank] += 1
