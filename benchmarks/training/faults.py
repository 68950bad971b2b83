"""One `mlxhog train` under observation from outside, and the faults that can be planted in it.

The observer maps the run's arena read-only, so it sees every worker and every ticket, and goes on
seeing the ledger's last state after the run has ended. It touches the run by signals, by its disk
and by its pipe only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.ledger import TicketState
from mlxhog.arena.process import process_start_time
from mlxhog.arena.requests import socket_path
from mlxhog.arena.workers import Phase, State
from mlxhog.errors import ArenaError

START_S = 120.0
LAPS = (1 << 37) - 1
SIGNS_OF_LIFE = "tokens", "eval_next", "eval_taken", "sample_taken"
TRAINING = frozenset((Phase.DATA, Phase.READ, Phase.COMPUTE, Phase.APPLY, Phase.WAITING))
SETTLE_S = 0.5  # after a fault and after a worker's first step, before throughput counts
TAIL_LINES = 30


@dataclass
class Rates:
    """Work done while nothing was wrong, and by the others while one worker stood still.

    Nothing is wrong while every worker trains and none has been hurt or started a moment ago. What
    workers do beside training (checkpoints, evaluation, samples) comes by the clock, so it takes
    another share of a run under faults; its time counts nowhere.
    """

    clear_s: float = 0.0
    clear_tokens: int = 0
    others_s: float = 0.0
    others_tokens: int = 0
    beside_s: float = 0.0

    def add(self, other):
        """Add what another run did."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Audit:
    """Where the tickets of a run's ledger stood after it had ended.

    Attributes:
        handed_out: tickets that were given to a worker since this process chain began.
        done: those that are done.
        returned: those that wait to be given out again, as the budget was used up first.
        lost: neither done nor returned: nobody will ever compute them.
        steps: gradients that workers say they wrote.
        torn: tickets done whose worker died while it wrote.
        recounted: torn ones that a successor may say it wrote: it ends the round or the turn of
            the dead, and computes its gradient again, but adds nothing of it.
        kills: workers killed; each may have died between a ticket's end and its own count.
    """

    handed_out: int
    done: int
    returned: int
    lost: int
    steps: int
    torn: int
    recounted: int
    kills: int

    @property
    def doubled(self):
        """Gradients written for tickets that were done already."""
        return max(0, self.steps + self.torn - self.recounted - self.done)

    @property
    def uncounted(self):
        """Tickets done that no worker lived to count, beyond one for each kill."""
        return max(0, self.done - self.steps - self.torn - self.kills)


class Observed:
    """A training run in a process of its own.

    Args:
        out: folder of runs; may be a small disk.
        flags: of `mlxhog train`.
        workers: how many the flags ask for.
        resume: the run to go on with.

    Raises:
        RuntimeError: the run does not start; with its last lines.
    """

    def __init__(self, out, flags, workers, *, resume=None):
        self.out, self.workers, self.directory = out, workers, resume
        self._slots = range(1, workers + 1)
        before = set(out.iterdir())
        if resume is not None:
            flags = [*flags, f"--resume={resume}"]
        self._stdout = tempfile.TemporaryFile("w+")  # not on the disk that faults fill
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlxhog", "train", "--json", "--quiet", f"--out={out}", *flags],
            stdout=self._stdout,
            stderr=subprocess.PIPE,
        )
        assert self.process.stderr is not None
        self.tail = deque(maxlen=TAIL_LINES)
        self._stop_reading = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.seen = {}  # pid -> start time of every worker ever seen
        self.kills = 0
        self.held = set()  # slots of workers that a fault has stopped
        self.all_held = False  # and the supervisor
        self.quiet_since = time.monotonic()
        self.rates = Rates()
        self.arena = self._connect(before)
        self._first = int(self._word("next"))
        self._done_before, self._torn_before = self._done(), int(self._word("torn"))
        self._before = None
        self._warm_since = self.quiet_since
        self._begun = {}  # slot -> incarnation, its steps at birth
        self._moved = (time.monotonic(), ())

    def _read(self):
        assert self.process.stderr is not None
        descriptor = self.process.stderr.fileno()
        while not self._stop_reading.is_set():
            block = os.read(descriptor, 1 << 16)
            if not block:
                return
            self.tail.extend(block.splitlines())

    def _connect(self, before):
        """The run's arena, as soon as the run serves it."""
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            if self.directory is None:
                new = [path for path in self.out.iterdir() if path not in before and path.is_dir()]
                self.directory = new[0] if new else None
            if self.directory is not None:
                with contextlib.suppress(ArenaError):
                    return Arena.connect(socket_path(self.directory))
            time.sleep(0.05)
        self.process.kill()
        self.process.wait()
        raise RuntimeError(f"the run did not start: {self.words()}")

    def words(self):
        """The last lines that the run wrote to stderr."""
        return b"\n".join(self.tail).decode(errors="replace")

    # -- what is seen ----------------------------------------------------------------------------

    def entry(self, slot):
        """A worker's entry in the worker table."""
        return self.arena.workers.entry(slot)

    def living(self):
        """Slots whose worker lives, started or starting."""
        return [
            slot
            for slot in self._slots
            if self.entry(slot).state in (State.STARTING, State.RUNNING)
            and self.entry(slot).pid
            and process_start_time(self.entry(slot).pid) == self.entry(slot).start_time
        ]

    def look(self):
        """Note who lives and how much was done since the last look; call it often."""
        now = time.monotonic()
        entries = [self.entry(slot) for slot in self._slots]
        for entry in entries:
            if entry.pid:
                self.seen[entry.pid] = entry.start_time
        self._await_first_steps(entries, now)
        tokens = [entry.tokens for entry in entries]
        all_run = all(entry.state == State.RUNNING for entry in entries)
        all_train = all(e.phase in TRAINING or e.slot in self.held for e in entries)
        if self._before is not None and self.arena.counters.load("start_ns"):
            then, earlier, trained = self._before
            gains = [b - a for a, b in zip(earlier, tokens, strict=True)]
            if all_run and not self.all_held and now > max(self.quiet_since, self._warm_since):
                if not (all_train and trained):
                    self.rates.beside_s += now - then
                elif not self.held:
                    self.rates.clear_s += now - then
                    self.rates.clear_tokens += sum(gains)
                elif len(self.held) == 1:
                    self.rates.others_s += (now - then) * (self.workers - 1)
                    self.rates.others_tokens += sum(
                        gain for entry, gain in zip(entries, gains, strict=True)
                        if entry.slot not in self.held
                    )  # fmt: skip
        self._before = now, tokens, all_train
        signs = tuple(map(self.arena.counters.load, SIGNS_OF_LIFE))
        if signs != self._moved[1] or self.held or self.all_held or now < self.quiet_since:
            self._moved = now, signs

    def _await_first_steps(self, entries, now):
        """Wait for the first step of a new worker: it belongs to its start, which is not counted.

        A window that began with a step would also hold one step too few.
        """
        for entry in entries:
            incarnation, steps = self._begun.get(entry.slot, (-1, 0))
            if entry.incarnation != incarnation:
                self._begun[entry.slot] = entry.incarnation, entry.steps
            if entry.incarnation != incarnation or entry.steps == steps:
                self._warm_since = now + SETTLE_S

    def still_s(self):
        """For how long no step, no evaluation and no sample has begun without a fault."""
        return time.monotonic() - self._moved[0]

    def ended(self):
        """Whether the process has ended."""
        return self.process.poll() is not None

    # -- faults ----------------------------------------------------------------------------------

    def send(self, slots, number):
        """Send a signal to workers; one that has just died gets none."""
        for slot in slots:
            entry = self.entry(slot)
            pid, born = entry.pid, entry.start_time
            if pid and process_start_time(pid) == born:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                    self.kills += number == signal.SIGKILL

    def send_all(self, number):
        """Send a signal to the supervisor and every worker, as a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        self.send(self.living(), number)

    def close_pipe(self):
        """Close the reading end of the run's stderr: every line written from now on fails."""
        assert self.process.stderr is not None
        self._stop_reading.set()
        self._reader.join(timeout=10.0)
        self.process.stderr.close()

    # -- the end ---------------------------------------------------------------------------------

    def result(self):
        """The JSON line that the run printed; empty if it printed none."""
        self._stdout.seek(0)
        lines = self._stdout.read().splitlines()
        parsed = json.loads(lines[-1]) if lines else {}
        return parsed

    def orphans(self, patience_s=10.0):
        """Workers that still live some time after their supervisor has ended."""
        end = time.monotonic() + patience_s
        while True:
            alive = [pid for pid, born in self.seen.items() if born == process_start_time(pid)]
            alive = [pid for pid in alive if not _is_zombie(pid)]
            if not alive or time.monotonic() > end:
                return alive
            time.sleep(0.05)

    def audit(self, *, ordered=False):
        """Account for every ticket; only after the run has ended.

        Args:
            ordered: whether workers take steps together or in turn (sync, round_robin), at least
                at first.
        """
        states = dict.fromkeys(TicketState, 0)
        for ticket in range(int(self._word("watermark")), int(self._word("next"))):
            states[self._state(ticket)] += 1
        next_, done, returned = int(self._word("next")), self._done(), states[TicketState.RETURNED]
        torn = int(self._word("torn")) - self._torn_before  # a checkpoint keeps those before it
        return Audit(
            handed_out=next_ - self._first,
            done=done - self._done_before,
            returned=returned,
            lost=next_ - done - returned,  # of all, also of those that a checkpoint had returned
            steps=sum(self.entry(slot).steps for slot in self._slots),
            torn=torn,
            recounted=torn if ordered else 0,
            kills=self.kills,
        )

    def _done(self):
        """Tickets that are done, counted from the beginning of training."""
        watermark, handed_out = int(self._word("watermark")), int(self._word("next"))
        above = sum(self._state(g) == TicketState.DONE for g in range(watermark, handed_out))
        return watermark + above

    def _word(self, name):
        at = {"next": 0, "watermark": 16, "torn": 64}[name]
        return np.uint64(self.arena.segment("ledger")[: 8 * 128].view(np.uint64)[at])

    def _state(self, ticket):
        """Where a ticket stands, by the table in `mlxhog/arena/ledger.py`."""
        slots = self.arena.segment("tickets")
        lap, index = divmod(ticket, len(slots))
        slot = int(slots[index])
        return TicketState(slot & 7) if slot >> 3 & LAPS == lap & LAPS else TicketState.FREE

    def abandon(self):
        """Kill whatever is left of it."""
        self.send(self.living(), signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def close(self):
        """Let go of the arena and the pipes."""
        self._stop_reading.set()
        self._stdout.close()
        self.arena.close()


class Killer:
    """Kills workers of a run in this process now and then, as its observer."""

    def __init__(self, kills, seed, *, within_s):
        """Draw the moments and the workers from a seed."""
        self.left, self._random, self._within_s = kills, Random(seed), within_s
        self._killed = set[int]()

    def __call__(self, progress):
        """Kill one worker, if all of them run and none is one that was killed before."""
        pids = [worker.pid for worker in progress.workers if worker.state == "running"]
        fresh = [pid for pid in pids if pid not in self._killed]
        if self.left and progress.step and len(fresh) == len(progress.workers):
            time.sleep(self._within_s * self._random.random())
            pid = self._random.choice(fresh)
            os.kill(pid, signal.SIGKILL)
            self._killed.add(pid)
            self.left -= 1


def _is_zombie(pid):
    """Whether a process is dead and only waits for its parent."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


@contextlib.contextmanager
def filled(directory):
    """Fill the disk of a directory to its last byte meanwhile."""
    filler = directory / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    try:
        yield
    finally:
        filler.unlink(missing_ok=True)
