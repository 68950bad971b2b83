"""One `mlxhog train` under observation from outside, and the faults that are planted in it.

The observer maps the run's arena read-only, so it sees every worker and every ticket, and goes on
seeing the ledger's last state after the run has ended. It touches the run by signals, by its disk
and by its pipe only. A fault begins at a moment of the run and may end at a later one; the seed
repeats the kinds and their distances, not the moments at which they meet the run.
"""

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
from random import Random

import numpy as np

from mlxhog import _native
from mlxhog.arena import Arena
from mlxhog.arena.ledger import TicketState
from mlxhog.arena.process import process_start_time
from mlxhog.arena.requests import socket_path
from mlxhog.arena.workers import State
from mlxhog.errors import ArenaError
from tests.processes import alive

START_S = 120.0
SIGNS_OF_LIFE = "tokens", "eval_next", "eval_taken", "sample_taken"
SETTLE_S = 0.5  # after a fault, before silence counts
GAPS_S = 0.5, 4.0  # between the beginnings of two faults
TAIL_LINES = 30


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
        self.tail = deque(maxlen=TAIL_LINES)
        self._stop_reading = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.seen = {}  # pid -> start time of every worker ever seen
        self.kills = 0
        self.held = set()  # slots of workers that a fault has stopped
        self.all_held = False  # and the supervisor
        self.quiet_since = time.monotonic()
        self.arena = self._connect(before)
        self._before = self._ledger()[1:]
        self._moved = (time.monotonic(), ())

    def _read(self):
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
        """Note who lives and whether anything moved since the last look; call it often."""
        now = time.monotonic()
        for entry in map(self.entry, self._slots):
            if entry.pid:
                self.seen[entry.pid] = entry.start_time
        signs = tuple(map(self.arena.counters.load, SIGNS_OF_LIFE))
        if signs != self._moved[1] or self.held or self.all_held or now < self.quiet_since:
            self._moved = now, signs

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
            known = [pid for pid, born in self.seen.items() if born == process_start_time(pid)]
            left = list(filter(alive, known))
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.05)

    def audit(self, *, ordered=False):
        """Account for every ticket; only after the run has ended.

        Args:
            ordered: whether workers take steps together or in turn (sync, round_robin), at least
                at first.
        """
        ledger, next_, done, torn = self._ledger()
        first, done_before, torn_before = self._before  # a checkpoint keeps those before it
        above = range(ledger.watermark(), next_)
        returned = sum(ledger.state(ticket) == TicketState.RETURNED for ticket in above)
        torn -= torn_before
        return Audit(
            handed_out=next_ - first,
            done=done - done_before,
            returned=returned,
            lost=next_ - done - returned,  # of all, also of those that a checkpoint had returned
            steps=sum(self.entry(slot).steps for slot in self._slots),
            torn=torn,
            recounted=torn if ordered else 0,
            kills=self.kills,
        )

    def _ledger(self):
        """The ledger of a copy of its memory; tickets handed out, done and torn."""
        words, tickets = (aligned(self.arena.segment(name)) for name in ("ledger", "tickets"))
        ledger = _native.TicketLedger(words, tickets)
        watermark, done, torn = ledger.position()
        return ledger, _native.load_u64(words, 0), watermark + len(done), torn

    def abandon(self):
        """Kill whatever is left of it."""
        self.send(self.living(), signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def close(self):
        """Let go of the arena and the pipes; kill it if it still runs."""
        if not self.ended():
            self.abandon()
        self._stop_reading.set()
        self._stdout.close()
        self.arena.close()


def aligned(values):
    """A copy that begins where a native ledger may."""
    room = np.empty(values.nbytes + 128, np.uint8)
    begin = -room.ctypes.data % 128
    copy = room[begin : begin + values.nbytes].view(values.dtype)
    copy[...] = values
    return copy


class FaultSchedule:
    """Draws faults from a seed and plants them in one run after the other."""

    KINDS = (
        ("kill one", 6), ("kill all", 1), ("stop one", 6), ("stop one for long", 1),
        ("stop the group", 2), ("full disk", 2), ("closed pipe", 1), ("kill the supervisor", 1),
    )  # fmt: skip

    def __init__(self, seed, counts, workers, heartbeat_s, *, disk):
        """Prepare a schedule.

        Args:
            seed: draws the faults.
            counts: how many of each kind were planted; this adds to them.
            workers: of a run.
            heartbeat_s: how long a stopped worker passes for a living one.
            disk: whether the folder of runs may be filled.
        """
        self.random = Random(seed)
        self._counts, self._workers, self._heartbeat_s = counts, workers, heartbeat_s
        self._kinds = [kind for kind in self.KINDS if disk or kind[0] != "full disk"]

    def begin(self, run):
        """Plant faults in this run from now on."""
        self._run, self._due, self._piped, self._full = run, [], True, contextlib.ExitStack()
        self.filled_disk = False
        self._next_s = time.monotonic() + self.random.uniform(0.0, GAPS_S[1])

    def end(self):
        """Undo what is still planted."""
        self._full.close()
        for _, act in self._due:
            act()

    def step(self, *, calm):
        """End faults whose time is over, and begin the next one if it is due.

        Where calm, none begins: workers that start again may need longer than faults leave them.
        """
        now = time.monotonic()
        over = [one for one in self._due if one[0] <= now]
        self._due = [one for one in self._due if one[0] > now]
        for _, act in over:
            act()
        if calm or now < self._next_s:
            return
        names, weights = zip(*self._kinds, strict=True)
        (kind,) = self.random.choices(names, weights)
        rank, share = self.random.randrange(self._workers), self.random.random()
        self._next_s = now + self.random.uniform(*GAPS_S)
        if self._plant(kind, rank + 1, share):
            self._counts[kind] = self._counts.get(kind, 0) + 1

    def _plant(self, kind, slot, share):
        """Begin one fault; False where it cannot be now."""
        run = self._run
        if kind == "kill one":
            run.send([slot], signal.SIGKILL)
        elif kind == "kill all":
            run.send(run.living(), signal.SIGKILL)
        elif kind in ("stop one", "stop one for long"):
            if run.held:
                return False
            for_s = 2.0 * self._heartbeat_s if kind.endswith("long") else 0.1 + 3.0 * share
            run.held.add(slot)
            run.send([slot], signal.SIGSTOP)
            self._later(for_s, lambda: self._go_on(slot))
        elif kind == "stop the group":
            run.send_all(signal.SIGSTOP)
            run.all_held = True
            self._later(1.5 * self._heartbeat_s * share, self._wake_all)
            self._next_s += 1.5 * self._heartbeat_s * share  # nothing runs that a fault could meet
        elif kind == "full disk":
            self._full.enter_context(filled(run.out))
            self.filled_disk = True
            self._later(0.5 + 3.0 * share, self._full.close)
        elif kind == "closed pipe":
            if not self._piped:
                return False
            run.close_pipe()
            self._piped = False
        else:
            run.process.kill()
        run.quiet_since = time.monotonic() + SETTLE_S
        return True

    def _later(self, for_s, act):
        def settled():
            act()
            self._run.quiet_since = time.monotonic() + SETTLE_S

        self._due.append((time.monotonic() + for_s, settled))

    def _wake_all(self):
        self._run.send_all(signal.SIGCONT)
        self._run.all_held = False

    def _go_on(self, slot):
        self._run.send([slot], signal.SIGCONT)
        self._run.held.discard(slot)


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
