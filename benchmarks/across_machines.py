"""Do two machines on a slow cable train like one, and what do faults cost?

    python benchmarks/across_machines.py            three seeds, ten minutes a training: hours
    python benchmarks/across_machines.py --quick    one seed, a minute a training, a higher loss
    python benchmarks/across_machines.py --only predicted     seconds, trains nothing

Machines are network namespaces, joined by a cable of 100 Mbit/s and 50 ms (`cluster/cable.py`).

`loss`: time to a held-out loss of two arenas with a worker each, over that of one arena with both
workers. With AdamW and with Muon as the inner optimizer.
`bytes`: what two machines send until then, over what synchronous steps send: an all-reduce of Gloo
on the same cable for each step that `--strategy sync` needs to the loss on one machine.
`faults`: the same race while machine 1 is unplugged, killed and started again, stopped, or eight
times slower. Nothing of the first machine may end with an error.
`outer`: one arena with outer steps (SNOO, arXiv:2510.15830: one replica) beside one without.
`predicted`: 2 to 8 Macs by the simulator: predictions, not measurements; no Mac was there.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.cable import Cable
from harness.claims import Findings, flags, measured
from harness.estimates import Ratio
from training.time_to_loss import BATCH_SIZES, Target

from mlxhog import TrainConfig
from mlxhog.theory.simulator import simulate
from mlxhog.theory.simulator.links import FLOAT_BYTES, ClusterRounds, Link, sent_bytes
from mlxhog.theory.simulator.schemes import Sync
from mlxhog.theory.simulator.times import LogNormal
from mlxhog.theory.simulator.workers import Worker

PARTS = ("loss", "bytes", "faults", "outer", "predicted")
LINK = Link.parse("100Mbit:50ms")
PORT = 8600
MOST_RATIO, LEAST_BYTES = 1.25, 50.0
"""Limits of issue 34."""
LATE_S = 120.0
"""Seconds that a member may take beyond its training: start, and evaluation of its records."""
CHECKED = 20
"""All-reduces on the cable."""


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        seeds: of the trainings.
        seconds: of each.
        target: held-out loss.
        optimizers: inner ones.
        down_s: how long a machine is unplugged or stopped.
    """

    seeds: tuple[int, ...]
    seconds: float
    target: Target
    optimizers: tuple[str, ...]
    down_s: float


QUICK = Scale((1,), 60.0, Target(2.1, {}, 16_384), ("muon",), 15.0)
FULL = Scale((1, 2, 3), 600.0, Target(1.8, {}), ("muon", "adamw"), 60.0)


@dataclass(frozen=True)
class Fault:
    """What happens to machine 1 after a third of the training.

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
        sent: bytes of all machines.
        trained_s: seconds of the whole training.
    """

    seconds: float
    tokens: float
    sent: int
    trained_s: float

    @property
    def sent_until(self) -> float:
        """Bytes of all machines until the loss, at an even rate."""
        return self.sent * self.seconds / self.trained_s


def member_options(
    target: Target, optimizer: str, arm: str, seed: int, seconds: float
) -> dict[str, Any]:
    """Options of `TrainConfig` that all machines of an arm share."""
    searched = target.settings(optimizer, arm)
    return {
        "optimizer": optimizer, "batch_size": BATCH_SIZES[optimizer], "schedule": "cosine",
        "threads": 1, "seed": seed, "time": seconds,
        **{name: value for name, value in searched.items() if name != "tokens"},
    }  # fmt: skip


class Members:
    """The members of one training, in a folder that is removed with them."""

    def __init__(self, cable: Cable, target: Target, folder: Path) -> None:
        self._cable, self._target, self._folder = cable, target, folder
        self._running: list[subprocess.Popen[str]] = []

    def start(self, machine: int, words: Sequence[str]) -> subprocess.Popen[str]:
        """Start a program on a machine; its temporary files are in the folder."""
        here = str(Path(__file__).resolve().parent)
        process = self._cable.popen(
            machine,
            words,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "TMPDIR": str(self._folder),
                "PYTHONPATH": here,
                "MLXHOG_CLUSTER_TOKEN": "across-machines",
            },
        )
        self._running.append(process)
        return process

    def lead(self, address: str) -> None:
        """Start the authority on machine 0, and wait until it is ready.

        Raises:
            SystemExit: it ended.
        """
        words = ["-m", "mlxhog", "cluster", "start", "--address", address, "--json"]
        process = self.start(0, [sys.executable, *words])
        assert process.stdout is not None, "start gives a pipe"
        if not process.stdout.readline():
            raise SystemExit(f"mlxhog cluster start ended with exit code {process.wait()}")

    def train(self, machine: int, options: Mapping[str, Any]) -> subprocess.Popen[str]:
        """Start a training that tells when it reached the target."""
        asked = {
            "bits": self._target.bits, "eval_tokens": self._target.eval_tokens, "options": options,
        }  # fmt: skip
        return self.start(machine, [sys.executable, "-m", "cluster.member", json.dumps(asked)])

    def answer(self, process: subprocess.Popen[str], limit_s: float) -> dict[str, Any]:
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
        answer: dict[str, Any] = json.loads(text.splitlines()[-1])
        return answer

    def end(self) -> None:
        """Kill those that still run."""
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()  # which closes the pipe, too


def train(
    machines: int, target: Target, options: Mapping[str, Any], fault: Fault | None, down_s: float
) -> Outcome:
    """Train on machines that have a worker each, or on one that has two.

    Raises:
        SystemExit: the first machine ended with an error, or hangs.
    """
    seconds = options["time"]
    with (
        tempfile.TemporaryDirectory(prefix="mlxhog-across-") as folder,
        Cable(LINK, max(2, machines)) as cable,
    ):
        members = Members(cable, target, Path(folder))
        try:
            if machines == 1:
                first = members.train(0, {**options, "workers": "torch:cpu*2"})
            else:
                address = f"{cable.address(0)}:{PORT}"
                members.lead(address)
                own = {**options, "workers": "torch:cpu"}
                first = members.train(0, {**own, "cluster": joined(address, 0)})
                others = {**own, "cluster": joined(address, 1), "slow": fault and fault.slow}
                second = members.train(1, others)
                if fault is not None:
                    time.sleep(seconds / 3)
                    happen(fault, cable, second, down_s)
                    if fault.returns:
                        members.train(1, {**others, "time": seconds / 3})
            answer = members.answer(first, seconds + LATE_S)
        finally:
            members.end()
        return Outcome(
            seconds=answer["seconds"] if answer["reached"] else math.inf,
            tokens=answer["tokens"] if answer["reached"] else math.inf,
            sent=sum(cable.sent),
            trained_s=answer["trained_s"],
        )


def joined(address: str, machine: int) -> dict[str, str]:
    """The option `cluster` of a member; all have the host name of this machine."""
    return {"name": "torchft", "address": address, "machine": f"machine {machine}"}


def happen(fault: Fault, cable: Cable, process: subprocess.Popen[str], down_s: float) -> None:
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


def all_reduce(machines: int, floats: int) -> tuple[float, float]:
    """Measure an all-reduce on the cable: its seconds, and the bytes of all machines."""
    with (
        tempfile.TemporaryDirectory(prefix="mlxhog-across-") as folder,
        Cable(LINK, machines) as cable,
    ):
        members = Members(cable, QUICK.target, Path(folder))
        words = [sys.executable, "-m", "cluster.all_reduce", cable.address(0)]
        numbers = [str(machines), str(floats), str(CHECKED)]
        try:
            started = [members.start(m, [*words, str(m), *numbers]) for m in range(machines)]
            seconds = max(members.answer(one, LATE_S)["seconds"] for one in started)
        finally:
            members.end()
        return seconds, sum(cable.sent) / (CHECKED + 1)


# -- predictions -----------------------------------------------------------------------------------

CABLES = {
    "Thunderbolt 10 Gbit/s": Link.parse("10Gbit:0.3ms"),
    "Ethernet 1 Gbit/s": Link.parse("1Gbit:1ms"),
    "Wi-Fi 100 Mbit/s": Link.parse("100Mbit:5ms"),
}
MACS = (2, 3, 4, 6, 8)
PREDICTED_PARAMS = 100e6
STEP_S = 0.5
"""A guess of a Mac's step at this size; its spread is a fifth."""
ROUNDS = 20
"""Of a prediction."""


def predicted(machines: int, link: Link) -> dict[str, float]:
    """Predict speed and traffic of rounds by the clock, and of synchronous steps."""
    worker = Worker(name="Mac (assumed)", compute=LogNormal(STEP_S, 0.2))
    once = FLOAT_BYTES * PREDICTED_PARAMS
    every_s = max(10.0, link.round_every_s(once, machines))
    scheme = ClusterRounds(
        machines=machines, link=link, n_params=PREDICTED_PARAMS, round_every_s=every_s
    )
    updates = math.ceil(ROUNDS * every_s / STEP_S) * machines
    ours = simulate([worker] * machines, scheme, updates=updates, warm_up=0)
    sync = Sync(round_s=link.all_reduce_s(once, machines))
    theirs = simulate([worker] * machines, sync, updates=300)
    return {
        "machines": machines,
        "round_every_s": every_s,
        "gradients_per_s": ours.gradients_per_s,
        "sync_gradients_per_s": theirs.gradients_per_s,
        "sent_mb_per_s": scheme.use(ours.seconds).bytes_per_s / 1e6,
        "sync_sent_mb_per_s": theirs.updates_per_s * sent_bytes(once, machines) / 1e6,
    }


# -- the script ------------------------------------------------------------------------------------


def measure(findings: Findings, chosen: Namespace) -> None:
    """Measure the chosen parts."""
    parts, scale = chosen.only or PARTS, QUICK if chosen.quick else FULL
    findings.seeds = scale.seeds
    if "predicted" in parts:
        findings.results["predicted, not measured"] = {
            name: [predicted(machines, link) for machines in MACS] for name, link in CABLES.items()
        }
        show_predictions(findings.results["predicted, not measured"])
    for optimizer in scale.optimizers if set(parts) - {"predicted"} else ():
        measure_optimizer(findings, parts, scale, optimizer)


def measure_optimizer(
    findings: Findings, parts: Sequence[str], scale: Scale, optimizer: str
) -> None:
    """Race one arena and two to a loss, with an inner optimizer."""
    arms: dict[str, list[Outcome]] = {}

    def race(name: str, machines: int, fault: Fault | None = None, **more: str) -> None:
        arm = "sync" if more.get("strategy") == "sync" else "hogwild"
        for seed in scale.seeds:
            options = member_options(scale.target, optimizer, arm, seed, scale.seconds)
            outcome = train(machines, scale.target, {**options, **more}, fault, scale.down_s)
            arms.setdefault(name, []).append(outcome)
            print(f"  seed {seed}  {optimizer:6} {name:16} {outcome.seconds:6.1f} s", flush=True)

    def seconds(name: str) -> list[float]:
        return [outcome.seconds for outcome in arms[name]]

    race("one arena", 1)
    bits = f"{scale.target.bits:g} bits per byte, {optimizer}"
    if "outer" in parts:
        race("outer steps", 1, strategy="diloco(replicas=1)")
        ratio = Ratio.of(seconds("outer steps"), seconds("one arena"))
        findings.results[f"outer steps / none, time to {bits}"] = ratio
    if {"loss", "bytes"} & set(parts):
        race("two arenas", 2)
        ratio = Ratio.of(seconds("two arenas"), seconds("one arena"))
        findings.at_most(f"two arenas / one, time to {bits}", ratio, MOST_RATIO)
    if "bytes" in parts:
        race("sync", 1, strategy="sync")
        reduce_s, reduce_bytes = all_reduce(2, parameters())
        batch = 2 * BATCH_SIZES[optimizer] * TrainConfig().seq_len
        sync = [outcome.tokens / batch * reduce_bytes for outcome in arms["sync"]]
        ours = [outcome.sent_until for outcome in arms["two arenas"]]
        findings.at_least(
            f"bytes of sync / two arenas, to {bits}", Ratio.of(sync, ours), LEAST_BYTES,
            timing=False,
        )  # fmt: skip
        findings.results[f"all-reduce, {optimizer}"] = {
            "seconds": reduce_s, "bytes": reduce_bytes,
            "predicted_s": LINK.all_reduce_s(FLOAT_BYTES * parameters(), 2),
        }  # fmt: skip
    if "faults" in parts:
        for name, fault in FAULTS.items():
            race(name, 2, fault)
            lost = Ratio.of(seconds(name), seconds("one arena"))
            findings.results[f"{name} / one arena, {optimizer}"] = lost


def parameters() -> int:
    """Parameters of the model of the races."""
    from training.recording import BYTES, count_parameters

    return count_parameters(BYTES["model"])


def show_predictions(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Print the predictions as a table."""
    print(f"predicted, not measured: {PREDICTED_PARAMS:.0e} parameters, {STEP_S} s a step")
    print("  cable                  Macs  every     gradients/s   sync   sent MB/s   sync")
    for name, cells in rows.items():
        for one in cells:
            print(
                f"  {name:21} {one['machines']:5.0f} {one['round_every_s']:5.0f} s "
                f"{one['gradients_per_s']:15.2f} {one['sync_gradients_per_s']:6.2f} "
                f"{one['sent_mb_per_s']:11.2f} {one['sync_sent_mb_per_s']:6.1f}"
            )


def main() -> int:
    """Measure what the flags ask for."""
    parser = flags(__doc__, parts=PARTS, quick="one seed, a minute a training, a higher loss")
    chosen = parser.parse_args()
    quiet = chosen.only != ["predicted"]
    return measured("across_machines", chosen, measure, packages=("torch", "torchft"), quiet=quiet)


if __name__ == "__main__":
    raise SystemExit(main())
