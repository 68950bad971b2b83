"""A cluster under faults: what hangs, what is left behind, and what gets lost.

    python benchmarks/cluster_chaos.py --quick        6 faults, minutes
    python benchmarks/cluster_chaos.py --faults 100   the record

Two to four machines, network namespaces on a cable (`cluster/cable.py`), train one small model. One
fault after the other: a machine is killed and started again, stopped, or unplugged; its link is
killed; the lighthouse is killed and started again; a machine joins late, or leaves. After each, all
machines have to commit a round together. The seed repeats the faults, not the moments at which they
meet a round.

What has to hold: no machine waits for ever (`hangs`), no process outlives its run (`orphans`), all
members have the same theta_s after each round (`unequal`), and the tokens of a round are those of
its members; the tokens that a run trained are committed, declared lost, or wait (`unbalanced`).
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from cluster.cable import Cable
from harness.frame import run
from harness.machine import smallest

from mlxhog.theory.simulator.links import Link
from tests.cluster.rounds import Audit, is_balanced, part_of, rounds_in
from tests.processes import alive
from tests.training.small import small_config

LINK = Link.parse("1Gbit:1ms")
FOREVER, INTERRUPTED = 10**8, 130
PORT, MOST, LEAST = 8600, 4, 2
QUICK_FAULTS, FAULTS = 6, 100
HANG_S = 240.0  # without a round of all machines
ORPHAN_S = 30.0  # after the death of its run
DOWN_S = 2.0, 15.0  # of a machine that is stopped or unplugged: some outlast the limit of a call
TRAINING = (
    "--round-every=1s", "--cluster-timeout-s=8s", "--slow=0=4", "--json",
)  # fmt: skip


@dataclass
class Member:
    """A run on one of the machines."""

    place: int
    root: Path
    process: subprocess.Popen[str]

    @property
    def lines(self):
        """Its rounds."""
        return rounds_in(self.root)

    def processes(self):
        """The run's processes: all of its session that are alive."""
        words = ["ps", "-A", "-o", "pid=,sess="]
        table = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        pairs = (map(int, line.split()) for line in table.splitlines())
        return [pid for pid, session in pairs if session == self.process.pid and alive(pid)]

    def link(self):
        """The process whose output is the link's log; None while there is none."""
        for pid in self.processes():
            try:
                if os.readlink(f"/proc/{pid}/fd/1").endswith("link.log"):
                    return pid
            except OSError:
                continue
        return None


@dataclass
class Fleet:
    """The machines of a cluster, and what was found about them.

    Attributes:
        hangs: descriptions of what did not happen in time, or ended with an error.
        orphans: processes that outlived their run.
        unbalanced: runs whose tokens do not add up.
    """

    cable: Cable
    folder: Path
    random: Random
    live: list[Member] = field(default_factory=list)
    ended: list[Member] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    orphans: int = 0
    unbalanced: int = 0
    starts: int = 0

    # -- programs --------------------------------------------------------------------------------

    def lead(self):
        """Start the lighthouse on machine 0."""
        words = ["cluster", "start", "--address", f"{self.cable.address(0)}:{PORT}", "--json"]
        self.lighthouse = self._popen(0, words, self.folder, stdout=subprocess.PIPE)
        if not self.lighthouse.stdout.readline():
            raise SystemExit("the lighthouse has ended; see above")

    def start(self):
        """Start a run on a machine that has none."""
        used = {one.place for one in self.live}
        place = next(k for k in range(1, MOST + 1) if k not in used)
        self.starts += 1
        root = self.folder / f"run-{self.starts}"
        root.mkdir()
        config = root / "config.yaml"
        config.write_text(
            small_config(self.folder, steps=FOREVER, out=str(root / "runs")).to_yaml()
        )
        words = ["train", "-c", str(config), *TRAINING]
        words.append(f"--cluster={self.cable.address(0)}:{PORT}")
        log = (root / "output.txt").open("w")
        with log:
            process = self._popen(place, words, root, stdout=log, stderr=log)
        self.live.append(Member(place, root, process))

    def _popen(self, place, words, folder, **files):
        environment = {
            **os.environ, "XDG_CACHE_HOME": str(self.folder), "MLXHOG_CLUSTER_TOKEN": "chaos",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        program = [sys.executable, "-m", "mlxhog", *words]
        return self.cable.popen(place, program, cwd=folder, env=environment, **files)

    # -- faults ----------------------------------------------------------------------------------

    def faults(self):
        """What can happen to the cluster."""
        return {
            "a machine is killed and started again": self._kill,
            "a link is killed": self._kill_link,
            "a machine is stopped": self._stop,
            "a machine is unplugged": self._unplug,
            "a machine joins or leaves": self._join_or_leave,
            "the lighthouse is killed": self._kill_lighthouse,
        }

    def _pick(self):
        return self.random.choice(self.live)

    def _kill(self):
        one = self._pick()
        pids = one.processes()
        self.live.remove(one)
        one.process.kill()
        self._forget(one, pids)
        self.start()

    def _kill_link(self):
        one = self._pick()
        if self._until(lambda: one.link() is not None, "a link") and (link := one.link()):
            os.kill(link, signal.SIGKILL)

    def _stop(self):
        one = self._pick()
        os.killpg(one.process.pid, signal.SIGSTOP)
        time.sleep(self.random.uniform(*DOWN_S))
        os.killpg(one.process.pid, signal.SIGCONT)

    def _unplug(self):
        one = self._pick()
        self.cable.unplug(one.place)
        time.sleep(self.random.uniform(*DOWN_S))
        self.cable.plug(one.place)

    def _join_or_leave(self):
        if len(self.live) == LEAST or (len(self.live) < MOST and self.random.random() < 0.5):
            self.start()
        else:
            self.leave(self._pick())

    def _kill_lighthouse(self):
        self.lighthouse.kill()
        self.lighthouse.wait()
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
        elif not is_balanced(part := part_of(one.root)):
            print(f"out of balance: {part}", flush=True)
            self.unbalanced += 1

    def _forget(self, one, pids):
        one.process.wait()
        until_s = time.monotonic() + ORPHAN_S
        while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < until_s:
            time.sleep(0.1)
        self.orphans += len(left)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self.ended.append(one)

    def _until(self, condition, what):
        until_s = time.monotonic() + HANG_S
        while not condition():
            dead = [one for one in self.live if one.process.poll() is not None]
            if dead or time.monotonic() > until_s:
                outputs = [(one.root / "output.txt").read_text()[-1500:] for one in dead]
                self.hangs.append(" ".join([f"no {what}", *outputs]))
                print(self.hangs[-1], flush=True)
                return False
            time.sleep(0.1)
        return True

    def end(self):
        """Kill what still runs."""
        for one in self.live:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()
        self.lighthouse.kill()
        self.lighthouse.wait()


def measure(findings, chosen):
    """Plant the faults, then compare the runs."""
    random = Random(chosen.seed)
    n = smallest(1, QUICK_FAULTS if chosen.quick else chosen.faults)
    with (
        tempfile.TemporaryDirectory(prefix="mlxhog-chaos-") as name,
        Cable(LINK, 1 + MOST) as cable,
    ):
        fleet = Fleet(cable, Path(name), random)
        try:
            fleet.lead()
            for _ in range(LEAST):
                fleet.start()
            fleet.settle()
            kinds = []
            for k in range(n):
                kinds = kinds or random.sample(list(fleet.faults()), len(fleet.faults()))
                kind = kinds.pop()
                fleet.faults()[kind]()
                took_s = fleet.settle()
                print(f"{k + 1}: {kind}; {len(fleet.live)} machines, {took_s:.1f} s", flush=True)
            for one in list(fleet.live):
                fleet.leave(one)
            audit = Audit.of([one.lines for one in fleet.ended])
        finally:
            fleet.end()
    findings.exact("hangs", len(fleet.hangs), 0)
    findings.exact("orphans", fleet.orphans, 0)
    findings.exact("rounds with unequal theta_s", audit.unequal, 0)
    findings.exact("runs and rounds out of balance", fleet.unbalanced + audit.unbalanced, 0)
    findings.results |= {
        "seed": chosen.seed, "faults": n, "runs": len(fleet.ended), "rounds": audit.rounds,
        "rounds_without_a_line": audit.partial, "hangs": fleet.hangs,
    }  # fmt: skip


if __name__ == "__main__":
    run(
        __doc__, measure, modes={"quick": f"{QUICK_FAULTS} faults"},
        options={
            "--faults": {"type": int, "default": FAULTS, "help": "how many"},
            "--seed": {"type": int, "default": 0, "help": "of the faults"},
        },
        packages=("torch", "torchft"),
    )  # fmt: skip
