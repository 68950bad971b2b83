"""Trainings on machines of one cable (`cable.py`), with a fault of machine 1; `across_machines.py`
compares them."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.cable import Cable
from harness.machine import smallest

from mlxhog.research.simulator.links import Link

LINK = Link.parse("100Mbit:50ms")
PORT = 8600
LATE_S = 120.0
"""Seconds that a member may take beyond its training: start, and evaluation of its records."""
CHECKED = 20
"""All-reduces on the cable."""


@dataclass(frozen=True)
class Fault:
    """What happens to machine 1 during training.

    Attributes:
        signals: to its processes, before and after the time that it is down.
        unplugs: whether its cable is pulled meanwhile.
        returns: whether a new member takes its place afterwards.
        slow: option of `TrainConfig`.
    """

    signals: tuple[signal.Signals, ...] = ()
    unplugs: bool = False
    returns: bool = False
    slow: str | None = None


FAULTS = {
    "unplugged": Fault(unplugs=True),
    "killed": Fault((signal.SIGKILL,), returns=True),
    "stopped": Fault((signal.SIGSTOP, signal.SIGCONT)),
    "8 times slower": Fault(slow="0=8"),
}


@dataclass(frozen=True)
class Outcome:
    """One training.

    Attributes:
        seconds: until the first machine reached the loss; infinite if it did not.
        tokens: of the first machine until then.
        last_bits: validation bits per byte of the first machine's parameters at the end.
        sent: bytes of all machines.
        trained_s: seconds of the whole training.
        lost: tokens that the machines declare lost; a killed one declares nothing.
        round_tokens: of a round of the first machine, on average.
    """

    seconds: float
    tokens: float
    last_bits: float
    sent: int
    trained_s: float
    lost: int
    round_tokens: float

    @property
    def sent_until(self):
        """Bytes of all machines until the loss, at an even rate."""
        return self.sent * self.seconds / self.trained_s


class Members:
    """The members of one training, in a folder that is removed with them."""

    def __init__(self, cable, target, folder):
        self._cable, self._target, self._folder = cable, target, folder
        self._running = []

    def start(self, machine, *words):
        """Start a module on a machine; its temporary files are in the folder."""
        own = {
            "TMPDIR": str(self._folder), "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "MLXHOG_CLUSTER_TOKEN": "across-machines",
        }  # fmt: skip
        process = self._cable.popen(
            machine, [sys.executable, "-m", *words], stdout=subprocess.PIPE, env=os.environ | own
        )  # fmt: skip
        self._running.append(process)
        return process

    def lead(self, address):
        """Start the authority on machine 0, and wait until it is ready.

        Raises:
            SystemExit: it ended, or hangs.
        """
        process = self.start(0, "mlxhog", "cluster", "start", "--address", address, "--json")
        if not select.select([process.stdout], [], [], LATE_S)[0]:
            raise SystemExit(f"mlxhog cluster start is not ready after {LATE_S:.0f} s")
        if not process.stdout.readline():
            raise SystemExit(f"mlxhog cluster start ended with exit code {process.wait()}")

    def train(self, machine, options):
        """Start a training that tells when it reached the target."""
        asked = {
            "bits": self._target.bits, "val_subset_tokens": self._target.val_subset_tokens,
            "options": options,
        }  # fmt: skip
        return self.start(machine, "cluster.member", json.dumps(asked))

    def answer(self, process, limit_s):
        """Wait for a program's last line.

        Raises:
            SystemExit: it ended with an error, or hangs.
        """
        try:
            text, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"a member has not ended after {limit_s:.0f} s") from None
        if process.returncode:
            raise SystemExit(f"a member ended with exit code {process.returncode}; see above")
        return json.loads(text.splitlines()[-1])

    def end(self):
        """Kill those that still run."""
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.stdout.close()  # a process below it may hold the other end
            process.wait()


def train(machines, target, options, fault, *, sound_s, down_s, rounds):
    """Train on machines that have a worker each, or on one that has two.

    Args:
        machines: one or two.
        target: the loss to reach.
        options: of `TrainConfig`, of every machine.
        fault: of machine 1.
        sound_s: seconds from the start of the machines to the fault.
        down_s: how long it is unplugged or stopped.
        rounds: options of the cluster.

    Raises:
        SystemExit: a machine that was not killed ended with an error, or hangs.
    """
    seconds = options["time"]
    with (
        tempfile.TemporaryDirectory(prefix="mlxhog-across-") as folder,
        Cable(LINK, max(2, machines)) as cable,
    ):
        members = Members(cable, target, Path(folder))
        try:
            if machines == 1:
                alive = [members.train(0, {"workers": "torch:cpu*2", **options})]
            else:
                address = f"{cable.address(0)}:{PORT}"
                members.lead(address)
                # All have the host name of this machine.
                first, other = ({"cluster": address, "cluster_machine": f"machine {k}", **rounds}
                                for k in range(2))  # fmt: skip
                own = {**options, "workers": "torch:cpu"}
                alive = [members.train(0, {**own, **first})]
                others = {**own, **other, "inject_stragglers": fault and fault.slow}
                second = members.train(1, others)
                if fault is not None:
                    time.sleep(sound_s)
                    happen(fault, cable, second, down_s)
                if fault is not None and fault.returns:
                    second = members.train(1, {**others, "time": seconds / 3})
                alive.append(second)
            answers = [members.answer(one, seconds + LATE_S) for one in alive]
        finally:
            members.end()
        lost = sum(one["lost"] for one in answers)
        return Outcome(**{**answers[0], "lost": lost, "sent": sum(cable.sent)})


def happen(fault, cable, process, down_s):
    """Do to machine 1 what a fault is, and undo it."""
    for number in fault.signals[:1]:
        os.killpg(process.pid, number)
    if fault.unplugs:
        cable.unplug(1)
    if fault.slow is None:
        time.sleep(down_s)
    cable.plug(1)
    for number in fault.signals[1:]:
        os.killpg(process.pid, number)


def all_reduce(machines, floats):
    """Measure an all-reduce on the cable: its seconds, and the bytes of all machines."""
    times = smallest(1, CHECKED)
    with (
        tempfile.TemporaryDirectory(prefix="mlxhog-across-") as folder,
        Cable(LINK, machines) as cable,
    ):
        members = Members(cable, None, Path(folder))
        job = {"address": cable.address(0), "machines": machines, "floats": floats, "times": times}
        try:
            jobs = [json.dumps({**job, "rank": rank}) for rank in range(machines)]
            started = [members.start(m, "cluster.member", one) for m, one in enumerate(jobs)]
            seconds = max(members.answer(one, LATE_S)["seconds"] for one in started)
        finally:
            members.end()
        return seconds, sum(cable.sent) / (times + 1)
