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
    ssp.words  uint8   line k, of worker slot k + 1: [0] its clock, [1] its incarnation while it
                       takes part, else 0, [2] since when it waits, in monotonic nanoseconds, or 0
"""

from __future__ import annotations

import time

from mlxhog.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import State
from mlxhog.config import strategies as choices
from mlxhog.strategies.async_ps import AsyncPS, AsyncPSWorker
from mlxhog.strategies.context import Context, Idle, Lease
from mlxhog.strategies.control_words import LINE, Words

_CLOCK, _OWNER, _WAITS_SINCE = range(3)
SHORTEST_NAP_S = 5e-5
LONGEST_NAP_S = 2e-3
NOTICE_S = 30.0  # the slowest worker is named when others have waited this long
_GONE = (State.FREE, State.DEAD, State.FINISHED)


class SSP(AsyncPS):
    """A parameter server with a gate."""

    choice: choices.SSP

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The segments of the table above."""
        return {**super().segments(n_params), "ssp.words": ("uint8", LINE * self.slots)}

    def worker(self, context: Context) -> SSPWorker:
        """Prepare one worker."""
        return SSPWorker(context)

    def held_up(self, arena: Arena) -> str | None:
        """Name the worker that others have waited for longer than `NOTICE_S`."""
        words, limit_ns = Words(arena.segment("ssp.words")), 1e9 * NOTICE_S
        since = [words.load(slot - 1, _WAITS_SINCE) for slot in range(1, self.slots + 1)]
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
    words = Words(arena.segment("ssp.words"))
    return {
        entry.slot: words.load(entry.slot - 1, _CLOCK)
        for entry in arena.workers
        if entry.state not in _GONE and words.load(entry.slot - 1, _OWNER) == entry.incarnation
    }


class SSPWorker(AsyncPSWorker):
    """Pull at the gate, compute, push."""

    def __init__(self, context: Context) -> None:
        """Prepare one worker, which takes part from its first claim on."""
        super().__init__(context)
        self._words = Words(context.arena.segment("ssp.words"))
        self._line = context.slot - 1
        self._slack = context.chosen(choices.SSP).slack

    def claim(self) -> Lease | Idle:
        """Take any free ticket, at most `slack` steps ahead of the slowest."""
        if not self._takes_part():
            self._enter()
        idle = self._wait_at_gate()
        lease = super().claim() if idle is None else idle
        if lease is Idle.DONE:
            self._words.store(self._line, _OWNER, 0)
        return lease

    def _takes_part(self) -> bool:
        return self._words.load(self._line, _OWNER) == self.context.owner

    def _enter(self) -> None:
        """Take part, not behind the slowest nor over `slack` behind any, so that none waits."""
        words = self._words
        self._server.acquire()
        slowest = min(clocks_of(self.context.arena).values(), default=0)
        fastest = max(words.load(k, _CLOCK) for k in range(self.context.strategy.slots))
        own = words.load(self._line, _CLOCK)
        words.store(self._line, _CLOCK, max(own, slowest, fastest - self._slack))
        words.store(self._line, _WAITS_SINCE, 0)
        words.store(self._line, _OWNER, self.context.owner)
        self._server.release()

    def _lead(self) -> int:
        """Steps ahead of the slowest."""
        clocks = clocks_of(self.context.arena)
        return self._words.load(self._line, _CLOCK) - min(clocks.values())

    def _wait_at_gate(self) -> Idle | None:
        """Wait until no longer too far ahead; returns the reason if the wait ends otherwise."""
        context, nap_s, began_ns = self.context, SHORTEST_NAP_S, 0
        idle = None
        while self._lead() > self._slack:
            if context.stopping() or context.used_up():
                idle = Idle.DONE
                break
            if context.paused():
                idle = Idle.WAIT
                break
            if not began_ns:
                began_ns = monotonic_ns()
                self._words.store(self._line, _WAITS_SINCE, began_ns)
            context.entry.beat()
            time.sleep(nap_s)
            nap_s = min(LONGEST_NAP_S, 2 * nap_s)
        if began_ns:
            self._words.store(self._line, _WAITS_SINCE, 0)
            context.entry.wait_ns += monotonic_ns() - began_ns
        return idle

    def _landed(self) -> None:
        """Advance its clock, under the server's lock."""
        self._words.store(self._line, _CLOCK, self._words.load(self._line, _CLOCK) + 1)
