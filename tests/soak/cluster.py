"""A cluster under faults: what hangs, what is left behind, and what gets lost.

Two to four machines train one small model. One fault after the other: a machine is killed and
started again, stopped, or unplugged; its sidecar is killed; the lighthouse is killed and started
again; a machine joins late, or leaves. After each, all machines have to commit a round together.
The seed repeats the faults, not the moments at which they meet a round.

What has to hold: no machine waits for ever, no process outlives its run, all members have the same
outer parameters after each round, and the tokens of a round are those of its members; the tokens
that a run trained are committed, declared lost, or wait.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.cluster.rounds import Audit, is_balanced, part_of, rounds_in
from tests.processes import alive, left_of
from tests.soak import Counts
from tests.training.small import flags, small_config

FOREVER, INTERRUPTED = 10**8, 130
PORT, MOST, LEAST = 8600, 4, 2
HANG_S = 240.0  # without a round of all machines
ORPHAN_S = 120.0  # after the death of its run
DOWN_S = 2.0, 15.0  # of a machine that is stopped or unplugged: some outlast the limit of a call
OPTIONS = {"steps": FOREVER, "round_every": 1.0, "cluster_timeout": 8.0, "inject_stragglers": "0=4"}


class Loopback:
    """Machines that are all this one, whose network needs no rights, and has no cable to pull."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]

    def address(self, machine):
        return "127.0.0.1"

    def popen(self, machine, command, **more):
        """Start a command on a machine, in a session of its own."""
        return subprocess.Popen(command, start_new_session=True, text=True, **more)


def cluster(n, say, network=None, seed=0):
    """A cluster under 2 n faults: machines, sidecars and the lighthouse are killed, others join."""
    random = Random(seed)
    with tempfile.TemporaryDirectory(prefix="mlxhog-soak-") as name:
        fleet = Fleet(network or Loopback(), Path(name), random)
        try:
            fleet.lead()
            for _ in range(LEAST):
                fleet.start()
            fleet.settle()
            kinds = list(fleet.faults())
            for k in range(2 * n):
                kinds = kinds or random.sample(list(fleet.faults()), len(fleet.faults()))
                kind = kinds.pop()
                fleet.faults()[kind](random.choice(fleet.live))
                took_s = fleet.settle()
                say(f"{k + 1}: {kind}; {len(fleet.live)} machines, {took_s:.1f} s")
            for one in list(fleet.live):
                fleet.leave(one)
        finally:
            fleet.end()
    audit, counts, runs = Audit.of(fleet.rounds), Counts(), len(fleet.rounds)
    unbalanced = fleet.unbalanced + audit.unbalanced
    counts.never("hangs", len(fleet.hangs), runs)
    counts.never("orphans", fleet.orphans, runs)
    counts.never("rounds with unequal outer parameters", audit.unequal, audit.rounds)
    counts.never("runs and rounds out of balance", unbalanced, runs + audit.rounds)
    counts.facts |= {"hangs": fleet.hangs, "rounds_without_a_line": audit.partial}
    return counts


@dataclass
class Member:
    """A run on one of the machines."""

    place: int
    root: Path
    process: subprocess.Popen

    @property
    def lines(self):
        return rounds_in(self.root)

    def processes(self):
        """The run's processes: all of its session that are alive."""
        words = ["ps", "-A", "-o", "pid=,sess="]
        table = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        pairs = (map(int, line.split()) for line in table.splitlines())
        return [pid for pid, session in pairs if session == self.process.pid and alive(pid)]

    def sidecar(self):
        """The process whose output is the sidecar's log; None while there is none."""
        for pid in self.processes():
            try:
                if os.readlink(f"/proc/{pid}/fd/1").endswith("sidecar.log"):
                    return pid
            except OSError:
                continue
        return None


class Fleet:
    """The machines of a cluster, and what was found about them.

    Attributes:
        live: machines whose run is under way.
        rounds: those of the runs that have ended.
        hangs: descriptions of what did not happen in time, or ended with an error.
        orphans: processes that outlived their run.
        unbalanced: runs whose tokens do not add up.
    """

    def __init__(self, network, folder, random):
        self._network, self._folder, self._random = network, folder, random
        self._lead = f"{network.address(0)}:{getattr(network, 'port', PORT)}"
        self.live, self.rounds, self.hangs = [], [], []
        self.orphans = self.unbalanced = self._starts = 0

    # -- programs --------------------------------------------------------------------------------

    def lead(self):
        """Start the lighthouse on machine 0."""
        words = ["cluster", "start", "--address", self._lead, "--json"]
        self.lighthouse = self._popen(0, words, self._folder, stdout=subprocess.PIPE)
        if not self.lighthouse.stdout.readline():
            raise SystemExit("the lighthouse has ended; see above")

    def start(self):
        """Start a run on a machine that has none."""
        used = {one.place for one in self.live}
        place = next(k for k in range(1, MOST + 1) if k not in used)
        self._starts += 1
        root = self._folder / f"run-{self._starts}"
        root.mkdir()
        out = str(root / "runs")
        config = small_config(self._folder, cluster=self._lead, runs_dir=out, **OPTIONS)
        with (root / "output.txt").open("w") as log:
            words = ["train", "--json", *flags(config)]
            process = self._popen(place, words, root, stdout=log, stderr=log)
        self.live.append(Member(place, root, process))

    def _popen(self, place, words, folder, **files):
        environment = {
            **os.environ, "XDG_CACHE_HOME": str(self._folder), "MLXHOG_CLUSTER_TOKEN": "soak",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        program = [sys.executable, "-m", "mlxhog", *words]
        return self._network.popen(place, program, cwd=folder, env=environment, **files)

    # -- faults ----------------------------------------------------------------------------------

    def faults(self):
        """What can happen to the cluster, or to one of its machines."""
        unplug = {"a machine is unplugged": self._unplug}
        return {
            "a machine is stopped": self._stop,
            **(unplug if hasattr(self._network, "unplug") else {}),
            "the lighthouse is killed": self._kill_lighthouse,
            "a sidecar is killed": self._kill_sidecar,
            "a machine joins or leaves": self._join_or_leave,
            "a machine is killed and started again": self._kill,
        }

    def _kill(self, one):
        pids = one.processes()
        self.live.remove(one)
        one.process.kill()
        self._forget(one, pids)
        self.start()

    def _kill_sidecar(self, one):
        if self._until(lambda: one.sidecar() is not None, "a sidecar") and (pid := one.sidecar()):
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal.SIGKILL)

    def _stop(self, one):
        os.killpg(one.process.pid, signal.SIGSTOP)
        time.sleep(self._random.uniform(*DOWN_S))
        os.killpg(one.process.pid, signal.SIGCONT)

    def _unplug(self, one):
        self._network.unplug(one.place)
        time.sleep(self._random.uniform(*DOWN_S))
        self._network.plug(one.place)

    def _join_or_leave(self, one):
        if len(self.live) == LEAST or (len(self.live) < MOST and self._random.random() < 0.5):
            self.start()
        else:
            self.leave(one)

    def _kill_lighthouse(self, _):
        with self.lighthouse:  # closes its pipe
            self.lighthouse.kill()
        self.lead()

    # -- what has to hold ------------------------------------------------------------------------

    def settle(self):
        """Wait for a round of all machines; returns the seconds."""
        began_s, before = time.monotonic(), [len(one.lines) for one in self.live]
        n = len(self.live)

        def has_come():
            fresh = [
                {line["round"] for line in one.lines[k:] if line["members"] == n}
                for one, k in zip(self.live, before, strict=True)
            ]
            return bool(set.intersection(*fresh))

        self._until(has_come, f"a round of {n} machines")
        return time.monotonic() - began_s

    def leave(self, one):
        """Interrupt a run, which has to end in order, with its tokens in balance."""
        pids = one.processes()
        self.live.remove(one)
        one.process.send_signal(signal.SIGINT)
        if not self._until(lambda: one.process.poll() is not None, "the end of a run"):
            os.killpg(one.process.pid, signal.SIGKILL)
        self._forget(one, pids)
        if one.process.returncode != INTERRUPTED:
            self.hangs.append(f"a run ended with exit code {one.process.returncode}")
        elif not is_balanced(part_of(one.root)):
            self.unbalanced += 1

    def _forget(self, one, pids):
        one.process.wait()
        left = left_of(pids, ORPHAN_S)
        self.orphans += len(left)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self.rounds.append(one.lines)

    def _until(self, condition, what):
        until_s = time.monotonic() + HANG_S
        while not condition():
            dead = [one for one in self.live if one.process.poll() is not None]
            if dead or time.monotonic() > until_s:
                outputs = [(one.root / "output.txt").read_text()[-1500:] for one in dead]
                self.hangs.append(" ".join([f"no {what}", *outputs]))
                return False
            time.sleep(0.1)
        return True

    def end(self):
        """Kill what still runs."""
        for one in self.live:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()
        with self.lighthouse:
            self.lighthouse.kill()
