"""Training under faults, seen from outside: what is lost, what hangs, what is left behind.

Every strategy trains the same model on real text, run after run, under a seeded schedule of
faults, one every few seconds: workers killed, one or all; stopped, one or the whole group; a full
disk; a closed pipe; the supervisor killed, and its run resumed. Workers and supervisors are also
killed while they start. No run may hang, no process outlive it, and every ticket is accounted for.
The seed repeats the kinds of faults and their distances, not the moments at which they meet a run.
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
from collections import Counter
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path
from random import Random

import numpy as np

from mlxhog import _native
from mlxhog.arena import Arena
from mlxhog.arena.ledger import TicketState
from mlxhog.arena.process import process_start_time
from mlxhog.arena.requests import socket_path
from mlxhog.arena.workers import WorkerState
from mlxhog.errors import ArenaError
from tests.processes import below, left_of
from tests.small_disk import filled, small_disk
from tests.soak import Counts

WORKERS = ("mlx:cpu", "torch:cpu")
SLOTS = range(1, len(WORKERS) + 1)
STRATEGIES = {
    "hogwild": ("--strategy=hogwild",),  # auto may go on in another arena than the one that is read
    "sync": ("--strategy=sync",),
    "collect": ("--strategy=collect", "--batch-size=1", "--grad-accumulation=2"),  # many claims
    # So often that a replaced worker, for whom the others wait, has caught up soon.
    "local_sgd": ("--strategy=local_sgd", "--average-every=10"),
    "hogwild, racy": ("--write=racy",),
    "hogwild, disjoint blocks": ("--blocks=disjoint", "--predict=none"),
    "hogwild after sync": ("--async-after=0.3",),
    "round_robin": ("--strategy=round_robin",),
    "async_ps": ("--strategy=async_ps",),
    "ssp": ("--strategy=ssp", "--slack=1"),
    "locked": ("--strategy=locked",),
    "aig": ("--strategy=aig",),
}
ORDERED = "sync", "round_robin"
"""Strategies in which a successor ends the round, or the turn, in which a worker died."""
KINDS = {
    "kill one": 6, "kill all": 1, "stop one": 6, "stop one for long": 1, "stop the group": 2,
    "full disk": 2, "closed pipe": 1, "kill the supervisor": 1,
}  # fmt: skip
"""Kinds of faults, and how many there are of each among twenty; the first eight are one of each."""
FAULTS_S, TOKENS, EVAL_TOKENS = 20.0, 150_000, 16_384
"""Of a strategy: how long runs begin under faults, and the size of a run."""
START_S = 240.0
GAPS_S = 0.5, 4.0  # between the beginnings of two faults
SETTLE_S = 0.5  # after a fault, before silence counts
HEARTBEAT_S = 6.0
MAX_FAULTS = 20  # of a run and those that resume it; else a busy machine might never end one
HANG_S = 240.0  # without progress and without faults
LEAVE_S = 120.0  # for workers whose supervisor has ended, on a busy machine
DEATHS_AT_SPAWN = 2  # of workers, and of supervisors
SPAWN_S = 1.5  # at a moment of which a worker that is being spawned is killed
DISK_BYTES = 512 << 20
POLL_S = 0.02
SIGNS_OF_LIFE = "tokens", "eval_next", "eval_taken", "sample_taken"


def kills(n, say):
    """Runs under faults: workers killed and stopped, full disks, killed supervisors."""
    counts = Counts()
    for seed, strategy in enumerate(islice(cycle(STRATEGIES), n)):
        under_faults(counts, strategy, seed, say)
    return counts


def under_faults(counts, strategy, seed, say, *, seconds=FAULTS_S, tokens=TOKENS):
    """Train by a strategy under the faults of a seed, and count."""
    soak = _Soak(counts, strategy, seed, tokens)
    with (
        tempfile.TemporaryDirectory(prefix="mlxhog-soak-") as name,
        small_disk(out := Path(name), DISK_BYTES) as disk,
    ):
        soak.while_starting(out)
        soak.disturbed(out, seconds, disk=disk)
    say(f"{soak.record}")


class _Soak:
    """The runs of one strategy, and the record of them."""

    def __init__(self, counts, strategy, seed, tokens):
        self._counts, self._random, self._runs = counts, Random(seed), 0
        self.record = {
            "strategy": strategy, "seed": seed, "chaos_s": 0.0, "torn": 0, "unsaved": 0,
            "faults": Counter(), "failures": [],
        }  # fmt: skip
        counts.facts.setdefault("records", []).append(self.record)
        self._flags = [
            f"--workers={','.join(WORKERS)}", "--threads=1", f"--tokens={tokens}",
            "--save-every=5s", "--keep-last=2", "--eval-every=20s", "--sample-every=15s",
            f"--val-subset-tokens={EVAL_TOKENS}", "--restarts=100000",
            f"--heartbeat-timeout={HEARTBEAT_S}", *STRATEGIES[strategy],
        ]  # fmt: skip

    def _words(self):
        self._runs += 1
        return [*self._flags, f"--seed={100 * self.record['seed'] + self._runs}"]

    def disturbed(self, out, seconds, *, disk):
        """Train run after run, until the time is over and the run in hand has ended."""
        faults = Faults(self._random, self.record["faults"], disk=disk)
        resume, last_begin_s = None, time.monotonic() + seconds
        while resume is not None or time.monotonic() < last_begin_s:
            words = self._words() if resume is None else [f"--resume={resume}"]
            with closing(Observed(out, words, resume)) as run:
                faults.begin(run, resumes=resume is not None)
                resume, began_s = None, time.monotonic()
                while not run.ended() and run.still_s() < HANG_S:
                    faults.step()
                    run.look()
                    time.sleep(POLL_S)
                faults.end()
                self.record["chaos_s"] += time.monotonic() - began_s
                if run.process.returncode != -signal.SIGKILL:
                    self._take_in(run, full_disk=faults.filled_disk)
                else:
                    self._outlived(run.orphans())
                    if (run.directory / "checkpoints" / "latest").exists():
                        resume = run.directory  # its tickets live on in this checkpoint

    def while_starting(self, out):
        """Kill workers before they are up, in a run that ends well; then supervisors that start.

        A worker that is being spawned holds nothing, and leaves at once when its supervisor died.
        """
        killed = set()
        with closing(Observed(out, self._words())) as run:
            while not run.ended() and run.still_s() < HANG_S:
                run.look()
                for slot in SLOTS:
                    entry = run.entry(slot)
                    one = slot, entry.incarnation
                    starts = entry.state == WorkerState.STARTING and entry.pid and one not in killed
                    if starts and len(killed) < DEATHS_AT_SPAWN:
                        time.sleep(self._random.uniform(0.0, SPAWN_S))
                        run.send([slot], signal.SIGKILL)
                        run.quiet_since = time.monotonic() + SETTLE_S
                        killed.add(one)
                time.sleep(POLL_S)
            self._take_in(run, full_disk=False)
        for _ in range(DEATHS_AT_SPAWN):
            command = [*TRAIN, f"--runs-dir={out}", *self._words()]
            null = subprocess.DEVNULL
            with subprocess.Popen(command, stdout=null, stderr=null) as process:
                try:
                    while not (pids := below(process.pid)) and process.poll() is None:
                        time.sleep(POLL_S)
                    time.sleep(self._random.uniform(0.0, SPAWN_S))
                    pids += below(process.pid)
                finally:
                    process.kill()
            self._outlived(left_of(set(pids), LEAVE_S))
        self.record["faults"]["kill at spawn"] = len(killed)
        self.record["faults"]["kill the supervisor at spawn"] = DEATHS_AT_SPAWN

    def _outlived(self, pids):
        self._counts.never("workers that outlive their run", len(pids))

    def _take_in(self, run, *, full_disk):
        """Note how a run has ended, and account for its tickets; a hang is killed."""
        hangs, failure = not run.ended(), ""
        if hangs:
            failure = f"hang: {run.words()}"
            run.abandon()
        else:
            self._outlived(run.orphans())
            code, status = run.process.returncode, run.result().get("status")
            if full_disk and (code, status) == (3, "unsaved"):  # what it promises on a full disk
                self.record["unsaved"] += 1
            elif (code, status) != (0, "done") or "Traceback" in run.words():
                failure = f"exit code {code}, {status}: {run.words()}"
            in_turn = any(name in self.record["strategy"] for name in ORDERED)
            self.record["torn"] += run.account(
                self._counts, in_turn=in_turn, claimed=self.record["strategy"] == "collect"
            )
        self._counts.never("runs that hang", hangs)
        self._counts.never("runs that end otherwise than done", bool(failure))
        if failure:
            self.record["failures"].append(failure)


TRAIN = [sys.executable, "-m", "mlxhog", "train", "--json", "--quiet"]


class Observed:
    """A training run in a process of its own.

    Its arena is mapped read-only, so every worker and every ticket is seen, and the ledger's last
    state after the run has ended. The run is touched by signals, by its disk and by its pipe only.
    """

    def __init__(self, out, flags, directory=None):
        """Start it in a folder of runs; RuntimeError with what it wrote if it does not start."""
        self.out, self.directory, before = out, directory, set(out.iterdir())
        self._stdout = tempfile.TemporaryFile("w+")  # not on the disk that faults fill
        self.process = subprocess.Popen(
            [*TRAIN, f"--runs-dir={out}", *flags], stdout=self._stdout, stderr=subprocess.PIPE
        )
        self._said, self._stop_reading = bytearray(), threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._seen = {}  # pid -> start time of every worker ever seen
        self._kills = 0
        self.held = set()  # slots of workers that a fault has stopped
        self.quiet_since = time.monotonic()
        self.arena = self._connect(before)
        self._before = self._ledger()[1:]
        self._moved = (time.monotonic(), ())

    def _read(self):
        descriptor = self.process.stderr.fileno()
        while not self._stop_reading.is_set() and (block := os.read(descriptor, 1 << 16)):
            self._said += block

    def _connect(self, before):
        """The run's arena, as soon as the run serves it."""
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            new = [path for path in self.out.iterdir() if path not in before and path.is_dir()]
            self.directory = self.directory or (new[0] if new else None)
            if self.directory is not None:
                with contextlib.suppress(ArenaError):
                    return Arena.connect(socket_path(self.directory))
            time.sleep(0.05)
        self.process.kill()
        self.process.wait()
        raise RuntimeError(f"the run did not start: {self.words()}")

    def words(self):
        """What the run wrote to stderr."""
        return self._said.decode(errors="replace")

    def result(self):
        """The JSON line that the run printed; empty if it printed none."""
        self._stdout.seek(0)
        lines = self._stdout.read().splitlines()
        return json.loads(lines[-1]) if lines else {}

    # -- what is seen ----------------------------------------------------------------------------

    def entry(self, slot):
        """A worker's entry in the worker table."""
        return self.arena.workers.entry(slot)

    def look(self):
        """Note who lives and whether anything moved since the last look; call it often."""
        now = time.monotonic()
        self._seen |= {one.pid: one.start_time for one in map(self.entry, SLOTS) if one.pid}
        signs = tuple(map(self.arena.counters.load, SIGNS_OF_LIFE))
        if signs != self._moved[1] or self.held or now < self.quiet_since:
            self._moved = now, signs

    def still_s(self):
        """For how long no step, no evaluation and no sample has begun without a fault."""
        return time.monotonic() - self._moved[0]

    def ended(self):
        return self.process.poll() is not None

    def orphans(self):
        """Workers that still live some time after their supervisor has ended."""
        seen = (pid for pid, born in self._seen.items() if born == process_start_time(pid))
        return left_of(seen, LEAVE_S)

    # -- faults ----------------------------------------------------------------------------------

    def send(self, slots, number):
        """Send a signal to workers; one that has just died gets none."""
        for pid, born in [(one.pid, one.start_time) for one in map(self.entry, slots)]:
            if pid and process_start_time(pid) == born:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                    self._kills += number == signal.SIGKILL

    def close_pipe(self):
        """Close the reading end of the run's stderr: every line written from now on fails."""
        self._stop_reading.set()
        self._reader.join(timeout=10.0)
        self.process.stderr.close()

    # -- the end ---------------------------------------------------------------------------------

    def account(self, counts, *, in_turn, claimed):
        """Count every ticket of a run that has ended; returns those torn.

        `in_turn` says that workers take steps together or in turn, at least at first; `claimed`
        that they compute parts of a step's tickets, and the run counts its steps.
        """
        ledger, next_, done, torn = self._ledger()
        first, done_before, torn_before = self._before  # a checkpoint keeps those before it
        states = map(ledger.state, range(ledger.watermark(), next_))
        returned = sum(state == TicketState.RETURNED for state in states)
        tickets, lost = next_ - first, next_ - done - returned
        done, torn = done - done_before, torn - torn_before
        steps = sum(self.entry(slot).steps for slot in SLOTS)  # gradients that workers say they
        # wrote, but for torn ones, whose worker died while it wrote. A successor that ends the
        # round or the turn of the dead says it wrote that step, too, but adds nothing of it.
        if claimed:
            steps = self.arena.counters.load("steps") * len(WORKERS)
        twice = steps + (0 if in_turn or claimed else torn) - done
        # One may die between a ticket and its count; the run itself kills those that are silent.
        deaths = max(self._kills, sum(self.entry(slot).restarts for slot in SLOTS))
        uncounted = done - steps - torn - deaths
        counts.never("tickets lost", lost, tickets)
        counts.never("tickets computed twice", max(0, twice), tickets)
        counts.never("tickets nobody counted, beyond one a kill", max(0, uncounted), tickets)
        return torn

    def _ledger(self):
        """The ledger of a copy of its memory; tickets handed out, done and torn."""
        words, tickets = (aligned(self.arena.segment(name)) for name in ("ledger", "tickets"))
        ledger = _native.TicketLedger(words, tickets)
        watermark, done, torn = ledger.position()
        return ledger, _native.load_u64(words, 0), watermark + len(done), torn

    def abandon(self):
        """Kill whatever is left of it."""
        self.send(SLOTS, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def close(self):
        """Let go of the arena and the pipes; kill it if it still runs."""
        if not self.ended():
            self.abandon()
        self.close_pipe()
        self._stdout.close()
        self.arena.close()


def aligned(values):
    """A copy that begins where a native ledger may."""
    room = np.empty(values.nbytes + 128, np.uint8)
    begin = -room.ctypes.data % 128
    copy = room[begin : begin + values.nbytes].view(values.dtype)
    copy[...] = values
    return copy


class Faults:
    """Draws faults, and plants them in one run after the other."""

    def __init__(self, random, planted, *, disk):
        """`planted` counts each kind; the folder of runs is filled where it is a `disk`."""
        self._random, self._planted = random, planted
        self._kinds = {kind: n for kind, n in KINDS.items() if disk or kind != "full disk"}
        self._deck = random.sample(list(self._kinds), len(self._kinds))

    def begin(self, run, *, resumes):
        """Plant faults in this run from now on; as many as are left of the run that it resumes."""
        self._left = self._left if resumes else MAX_FAULTS
        self._run, self._due, self._piped, self._full = run, [], True, contextlib.ExitStack()
        self.filled_disk = False
        self._next_s = time.monotonic() + self._random.uniform(0.0, GAPS_S[1])

    def end(self):
        """Undo what is still planted."""
        self._full.close()
        for _, act in self._due:
            act()

    def step(self):
        """End faults whose time is over, and begin the next one if it is due."""
        now = time.monotonic()
        over = [one for one in self._due if one[0] <= now]
        self._due = [one for one in self._due if one[0] > now]
        for _, act in over:
            act()
        if self._left and now >= self._next_s:
            self._left -= 1
            if not self._deck:
                self._deck = self._random.sample(
                    list(self._kinds), sum(self._kinds.values()), counts=self._kinds.values()
                )
            self._next_s = now + self._random.uniform(*GAPS_S)
            kind, slot, share = self._deck.pop(), self._random.choice(SLOTS), self._random.random()
            self._planted[kind] += self._plant(kind, slot, share)

    def _plant(self, kind, slot, share):
        """Begin one fault; False where it cannot be now."""
        run = self._run
        if kind == "kill one":
            run.send([slot], signal.SIGKILL)
        elif kind == "kill all":
            run.send(SLOTS, signal.SIGKILL)
        elif kind in ("stop one", "stop one for long"):
            if run.held:
                return False
            run.held.add(slot)
            run.send([slot], signal.SIGSTOP)
            for_s = 2.0 * HEARTBEAT_S if kind.endswith("long") else 0.1 + 3.0 * share
            self._later(for_s, lambda: self._go_on([slot]))
        elif kind == "stop the group":
            run.process.send_signal(signal.SIGSTOP)
            run.send(SLOTS, signal.SIGSTOP)
            run.held |= {*SLOTS}
            self._later(1.5 * HEARTBEAT_S * share, lambda: self._go_on(SLOTS))
            self._next_s += 1.5 * HEARTBEAT_S * share  # nothing runs that a fault could meet
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

    def _go_on(self, slots):
        """Let stopped workers continue, and the supervisor if it was stopped with all."""
        if slots == SLOTS:
            self._run.process.send_signal(signal.SIGCONT)
        self._run.send(slots, signal.SIGCONT)
        self._run.held -= {*slots}
