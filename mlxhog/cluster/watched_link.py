"""The link as its supervisor sees it: what starts it, replaces it after its death, and reports it.

The process itself is in `link.py`. A machine that does not fit the cluster, or lacks torchft, is
refused before it trains; that ends the run. Later errors are reported once, and the machine trains
on alone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from io import BytesIO

from mlxhog.arena import Arena
from mlxhog.arena.marks import Marks
from mlxhog.arena.process import WatchedTime, monotonic_ns
from mlxhog.arena.worker_pool import WorkerProcess, last_lines
from mlxhog.arena.workers import Phase, State
from mlxhog.cluster.anchor import Anchor
from mlxhog.cluster.lighthouse import check_torchft, parse_address
from mlxhog.cluster.link import ENDS, LinkJob, main, open_torchft
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.report.machines import Roster

START_S = 120.0  # the import of torch gives no sign of life
CALLS = 4  # of a group in a round; each has a limit
MOST_LOG_BYTES = 1 << 20
REFUSALS = {2: ConfigError, 3: EnvironmentLacks}


class Link:
    """The link of an arena, as its supervisor sees it; used by one thread of one process."""

    def __init__(self, arena: Arena, job: LinkJob) -> None:
        """Start none yet.

        Args:
            arena: created by this process, with the segments of `anchor.py`.
            job: without slot and handle.
        """
        self.arena, self._job, self._roster = arena, job, Roster(arena)
        self._anchor = Anchor(arena)
        self.slot: int | None = None
        self.messages: list[str] = []
        self._process: WorkerProcess | None = None
        self._started_ns = 0
        self._told = dict[str, str]()
        self._faulty = False
        self._rounds = 0
        self._watched = WatchedTime()
        self._beat_ns, self._beat_seen_s = 0, 0.0

    def start(self, slot: int) -> None:
        """Make theta_s the parameters, and start the first link in a free worker slot.

        Raises:
            ConfigError: the address has no machine.
            EnvironmentLacks: torchft is not installed.

        Concurrency: no worker may move yet.
        """
        if self._job.open_group is open_torchft:
            check_torchft()
            parse_address(self._job.cluster.cluster or "")
        self._anchor.begin()
        self.slot = slot
        self._spawn()

    def _spawn(self) -> None:
        assert self.slot is not None
        self._started_ns = monotonic_ns()
        job = replace(self._job, slot=self.slot, handle=self.arena.handle())
        self._process = WorkerProcess(
            main, (job,), name="mlxhog-link", threads=1, arena=self.arena, slots=(self.slot,)
        )

    @property
    def pid(self) -> int | None:
        """Id of its process; None while there is none."""
        return None if self._process is None else self._process.pid

    def poll(self) -> None:
        """Replace a dead link when a round has passed since its start; report changes.

        Raises:
            ConfigError, EnvironmentLacks: the first link was refused; the message is its own.
        """
        if self.slot is None or self._faulty:
            return
        rounds = self._anchor.number("rounds")
        if self._is_alone and rounds > self._rounds:
            self._is_alone = False
            members = self._anchor.number("members")
            self.messages.append(f"the link is back, in a round of {members} machines")
        self._rounds = rounds
        notes = self._roster.notes()
        self.messages += [text for subject, text in notes.items() if subject not in self._told]
        self._told = notes
        self._kill_stale()
        self._shorten_log()
        if self._process is not None and not self._process.is_alive():
            self._reap()
        elapsed_s = (monotonic_ns() - self._started_ns) / 1e9
        is_due = elapsed_s > self._job.cluster.round_every
        is_over = self.arena.counters.load("command") in ENDS
        if self._process is None and is_due and not is_over and not self._faulty:
            self._spawn()

    def _kill_stale(self) -> None:
        """Kill a link without a sign of life for longer than its calls may take."""
        if self._process is None or self.slot is None:
            return
        entry, now_s = self.arena.workers.entry(self.slot), self._watched.look()
        if entry.heartbeat_ns != self._beat_ns:
            self._beat_ns, self._beat_seen_s = entry.heartbeat_ns, now_s
        limit_s = CALLS * self._job.cluster.cluster_limit_s
        if entry.state == State.STARTING:
            limit_s = max(limit_s, START_S)
        if now_s - self._beat_seen_s > limit_s:
            self._beat_seen_s = now_s
            self._process.kill()

    def _shorten_log(self) -> None:
        """Keep the newer half of a long log; the link appends to it, whatever its length."""
        with suppress(OSError):
            if self._job.log.stat().st_size > MOST_LOG_BYTES:
                with self._job.log.open("r+b") as log:
                    log.seek(-MOST_LOG_BYTES // 2, os.SEEK_END)
                    newer = log.read()
                    log.seek(0)
                    log.write(newer)
                    log.truncate()

    def _reap(self) -> None:
        assert self._process is not None
        assert self.slot is not None
        state = self.arena.workers.entry(self.slot).state
        death = self._process.reap()
        self._process = None
        Marks(self.arena, self.slot).end_update()
        self.arena.counters.store("round_pause", 0)
        if state == State.FINISHED:
            return
        line = self._last_line()
        if death.code in REFUSALS and not self.arena.counters.load("start_ns"):
            raise REFUSALS[death.code](line.removeprefix("error: "))
        self._faulty = death.is_fault
        if self._faulty:
            self.messages.append(
                f"the link met an error that a restart cannot cure ({line}), so this machine "
                f"trains alone; see {self._job.log}, and please report it"
            )
        elif not self._is_alone:
            self.messages.append(
                f"the link ended ({death}; {line}); this machine trains alone until another one "
                "reaches the cluster"
            )
        self._is_alone = True

    def _last_line(self) -> str:
        log = self._job.log
        with log.open("rb") if log.exists() else BytesIO() as output:
            return last_lines(output)[-1]

    def still(self) -> bool:
        """Whether it changes no parameter while `pause` is set, or training is over."""
        if self._process is None or self.slot is None:
            return True
        return self.arena.workers.entry(self.slot).phase != Phase.APPLY

    @property
    def is_ready(self) -> bool:
        """Whether workers may start: this machine fits the others, or the first link has failed."""
        return self._is_alone or self._faulty or bool(self._anchor.number("ready"))

    def ask_for_last_round(self) -> None:
        """Let the link send what is trained, now that workers rest."""
        self._anchor.store("last", 1)

    @property
    def has_sent_all(self) -> bool:
        """Whether no token waits for a round, or there is no link that could send it."""
        return self._process is None or not self._anchor.number("last")

    @property
    def is_in_doubt(self) -> bool:
        """Whether other machines may have committed what the link does not know of yet."""
        return self._process is not None and self._anchor.has_sent()

    def end_rounds(self) -> None:
        """Kill a link that has not sent all yet, so that a checkpoint knows what it has sent."""
        if not self.has_sent_all:
            self.stop(0.0)

    def stop(self, timeout_s: float) -> None:
        """Let it leave the cluster, after the command to exit; kill it if that takes long."""
        if self._process is not None and self.slot is not None:
            self._process.reap(timeout_s)
            self._process = None
            Marks(self.arena, self.slot).end_update()
            self.arena.workers.release(self.slot)
            self.slot = None

    def report(self) -> dict[str, object]:
        """The machine's part in the cluster, see `Anchor.report`."""
        return {"alone": self._is_alone, **self._anchor.report()}

    @property
    def _is_alone(self) -> bool:
        """Whether no link reaches the cluster, as last reported."""
        return self._roster.is_alone

    @_is_alone.setter
    def _is_alone(self, value: bool) -> None:
        self._roster.is_alone = value
