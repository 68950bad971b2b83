"""Do two machines on a slow cable train like one, and what do faults cost?

    python benchmarks/across_machines.py                      three seeds; says its hours
    python benchmarks/across_machines.py --keep across.jsonl  likewise; again it continues
    python benchmarks/across_machines.py --only loss bytes --inner muon
    python benchmarks/across_machines.py --quick              one seed, half a minute each
    python benchmarks/across_machines.py --only predicted     seconds, trains nothing

Machines are network namespaces, joined by a cable of 100 Mbit/s and 50 ms (`cluster/cable.py`).
Rounds are every 3 s in bfloat16. Arms are compared by the time to a held-out loss and by the loss
at the end. Trainings take ten minutes for `loss` and three for the other parts; with --quick half a
minute, with rounds every 2 s, to a higher loss. With Muon and with AdamW as the inner optimizer:

`loss`: two arenas with a worker each, beside one arena with both workers.
`stopped`: two arenas whose workers stop for each round, beside two whose workers train on.
`bytes`: what two machines send until the loss, over what synchronous steps send: an all-reduce of
Gloo in float32 on the same cable for each step that `--strategy sync` needs on one machine. The
time of sync over the cable is computed: its time on one machine, and these all-reduces.
`faults`: two arenas of which one is eight times slower, or is unplugged, killed and started again,
or stopped for a minute, from before the loss is reached, beside two without a fault. No machine but
the killed one may end with an error, and a pulled plug may cost one round of one machine.
`rounds`: two arenas with the outer momentum of DiLoCo, .9, or with rounds every 10 s, beside two
without.
`outer`: one arena with outer steps (SNOO, arXiv:2510.15830: one replica) beside one without.
`predicted`: 2 to 8 Macs by the simulator: predictions, not measurements; no Mac was there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.races import FAULTS, LINK, Fault, Outcome, all_reduce, train
from harness.claims import flags, measured
from harness.estimates import Mean, Ratio
from harness.machine import smallest
from training.race import BATCH_SIZES, Target

from mlxhog import TrainConfig
from mlxhog.theory.simulator import simulate
from mlxhog.theory.simulator.links import FLOAT_BYTES, ClusterRounds, Link, sent_bytes
from mlxhog.theory.simulator.schemes import Sync
from mlxhog.theory.simulator.times import times_of
from mlxhog.theory.simulator.workers import Worker

MOST_RATIO, LEAST_BYTES = 1.25, 50.0
"""Limits of issue 34."""
WIRE = {"round_dtype": "bfloat16"}
"""Options of the cluster in every race."""
OVERHEAD_S = 60.0
"""Of a training: its start, and the evaluation of its records."""


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        seeds: of the trainings.
        seconds: of each for `loss`.
        target: held-out loss.
        optimizers: inner ones.
        short_s: likewise for the other parts.
        sound_s: seconds of a training, and of its start, before the fault.
        down_s: how long a machine is unplugged or stopped.
        round_every: seconds between two rounds; several fit before the loss.
    """

    seeds: tuple[int, ...]
    seconds: float
    target: Target
    optimizers: tuple[str, ...]
    short_s: float
    sound_s: float
    down_s: float
    round_every: float


QUICK = Scale((1,), 30.0, Target(2.1, {}, 16_384, like="2.1"), ("muon",), 30.0, 10.0, 5.0, 2.0)
FULL = Scale((1, 2, 3), 600.0, Target(1.8, {}), ("muon", "adamw"), 180.0, 30.0, 60.0, 3.0)
TINY = replace(QUICK, seconds=2.0, short_s=2.0, sound_s=1.0, down_s=1.0, round_every=1.0)


@dataclass(frozen=True)
class Arm:
    """What trains.

    Attributes:
        machines: one with both workers, or two with one each.
        fault: of machine 1.
        tuned_as: the arm whose searched settings it has.
        options: further ones of `TrainConfig`.
        rounds: further options of the cluster.
    """

    machines: int = 1
    fault: Fault | None = None
    tuned_as: str = "hogwild"
    options: Mapping[str, Any] = field(default_factory=dict)
    rounds: Mapping[str, Any] = field(default_factory=dict)


class Kept:
    """Outcomes in a file with a line for each, so that a measurement can continue; or in none."""

    def __init__(self, path):
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self.outcomes = {one.pop("key"): Outcome(**one) for one in map(json.loads, lines)}

    def add(self, key, outcome):
        """Append one; infinity is written as Python reads it."""
        self.outcomes[key] = outcome
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"key": key, **asdict(outcome)}) + "\n")


def member_options(target, optimizer, arm, seed, seconds):
    """Options of `TrainConfig` that all machines of an arm share."""
    searched = target.settings(optimizer, arm)
    return {
        "optimizer": optimizer, "batch_size": BATCH_SIZES[optimizer], "schedule": "cosine",
        "threads": 1, "seed": seed, "time": seconds,
        **{name: value for name, value in searched.items() if name != "tokens"},
    }  # fmt: skip


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


def predicted(machines, link):
    """Predict speed and traffic of rounds by the clock, and of synchronous steps."""
    worker = Worker(name="Mac (assumed)", compute=times_of("lognormal", STEP_S, 0.2))
    once = FLOAT_BYTES * PREDICTED_PARAMS
    every_s = max(10.0, link.round_every_s(once, machines))
    scheme = ClusterRounds(
        machines=machines, link=link, n_params=PREDICTED_PARAMS, round_every_s=every_s
    )
    updates = math.ceil(smallest(1, ROUNDS) * every_s / STEP_S) * machines
    ours = simulate([worker] * machines, scheme, updates=updates, warm_up=0)
    sync = Sync(round_s=link.all_reduce_s(once, machines))
    theirs = simulate([worker] * machines, sync, updates=smallest(10, 300))
    return {
        "machines": machines,
        "round_every_s": every_s,
        "gradients_per_s": ours.gradients_per_s,
        "sync_gradients_per_s": theirs.gradients_per_s,
        "sent_mb_per_s": scheme.use(ours.seconds)["bytes_per_s"] / 1e6,
        "sync_sent_mb_per_s": theirs.updates_per_s * sent_bytes(once, machines) / 1e6,
    }


# -- the script ------------------------------------------------------------------------------------


ARMS = {
    "one arena": Arm(),
    "outer steps": Arm(options={"strategy": "diloco(replicas=1)"}),
    "two arenas": Arm(2),
    "workers stopped": Arm(2, options={"stop_workers": True}),
    "momentum .9": Arm(2, rounds={"outer_momentum": 0.9}),
    "rounds of 10 s": Arm(2, rounds={"round_every": 10.0}),
    "sync": Arm(tuned_as="sync", options={"strategy": "sync"}),
    **{name: Arm(2, fault) for name, fault in FAULTS.items()},
}
PAIRS = {
    "loss": (("two arenas", "one arena"),),
    "stopped": (("workers stopped", "two arenas"),),
    "bytes": (("two arenas", "sync"),),
    "faults": tuple((name, "two arenas") for name in FAULTS),
    "rounds": (("momentum .9", "two arenas"), ("rounds of 10 s", "two arenas")),
    "outer": (("outer steps", "one arena"),),
}
"""Arms that are compared, by part."""
PARTS = (*PAIRS, "predicted")
TINY_PARTS = ("bytes", "predicted")
"""Of `--tiny`; the faults are those of `cluster_chaos.py`, the others differ in options."""


def arms_of(parts):
    """The arms that some parts need, in the order in which they run."""
    needed = {name for part in parts for pair in PAIRS[part] for name in pair}
    return {name: arm for name, arm in ARMS.items() if name in needed}


def measure(findings, chosen):
    """Measure the chosen parts."""
    parts, scale = (
        chosen.only or smallest(TINY_PARTS, PARTS),
        smallest(TINY, QUICK if chosen.quick else FULL),
    )
    findings.seeds = scale.seeds
    if "predicted" in parts:
        findings.results["predicted, not measured"] = {
            name: [predicted(machines, link) for machines in smallest(MACS[:1], MACS)]
            for name, link in CABLES.items()
        }
        show_predictions(findings.results["predicted, not measured"])
    inner = [one for one in scale.optimizers if chosen.inner in (None, one)]
    plan = [(part, scale) for part in parts if part == "loss"]
    short = replace(scale, seconds=scale.short_s)
    plan += [(part, short) for part in parts if part in PAIRS and part != "loss"]
    if not plan:
        return
    kept = Kept(chosen.keep)
    times = {one.seconds: arms_of([part for part, at in plan if at == one]) for _, one in plan}
    runs_s = sum(len(arms) * (length + OVERHEAD_S) for length, arms in times.items())
    hours = runs_s * len(scale.seeds) * len(inner) / 3600
    print(f"trainings of about {hours:.1f} hours; {len(kept.outcomes)} are kept", flush=True)
    first = dict[str, list[float]]()
    for optimizer in inner:
        for part, one in plan:
            raced = race(arms_of([part]), one, optimizer, kept)
            compare(findings, part, one, optimizer, raced)
            if part == "loss":
                first[optimizer] = seconds(raced["two arenas"])
    if len(first) > 1:
        ratio = Ratio.of(first["muon"], first["adamw"])
        findings.results["Muon / AdamW inside two arenas, time"] = ratio


def race(arms, scale, optimizer, kept):
    """Train every arm with every seed; arms of a seed run one after the other."""
    raced = {name: [] for name in arms}
    for seed in scale.seeds:
        for name, arm in arms.items():
            key = (
                f"{scale.target.bits:g} bits, {scale.seconds:g} s, rounds of "
                f"{scale.round_every:g} s, {optimizer} {name} {seed}"
            )
            options = member_options(scale.target, optimizer, arm.tuned_as, seed, scale.seconds)
            if (outcome := kept.outcomes.get(key)) is None:
                outcome = train(
                    arm.machines, scale.target, {**options, **arm.options}, arm.fault,
                    sound_s=scale.sound_s, down_s=scale.down_s,
                    rounds={**WIRE, "round_every": scale.round_every, **arm.rounds},
                )  # fmt: skip
                kept.add(key, outcome)
                print(
                    f"  seed {seed}  {optimizer:6} {name:16} {outcome.seconds:6.1f} s  "
                    f"{outcome.last_bits:.3f} bits per byte at the end",
                    flush=True,
                )
            raced[name].append(outcome)
    return raced


def seconds(outcomes):
    """Their times to the loss."""
    return [outcome.seconds for outcome in outcomes]


def compare(findings, part, scale, optimizer, raced):
    """Add what the arms of a part and an inner optimizer differ in."""
    bits = f"{scale.target.bits:g} bits per byte, {optimizer}"
    for name, other in PAIRS[part]:
        what = f"{name} / {other}, time to {bits}"
        ratio = Ratio.of(seconds(raced[name]), seconds(raced[other]))
        if part == "loss":
            findings.at_most(what, ratio, MOST_RATIO)
        else:
            findings.results[what] = ratio
        ends = ([one.last_bits for one in raced[arm]] for arm in (name, other))
        what = f"{name} less {other}, bits per byte after {scale.seconds:g} s, {optimizer}"
        findings.results[what] = Mean.of_differences(*ends)
        if part == "faults":
            lost = Mean.of(one.lost / max(1.0, one.round_tokens) for one in raced[name])
            claim = f"{name}, {optimizer}: tokens lost, in rounds of one machine"
            findings.at_most(claim, lost, 1.0, timing=False)
    if part == "bytes":
        compare_bytes(findings, bits, optimizer, raced)


def compare_bytes(findings, bits, optimizer, raced):
    """Add what rounds and synchronous steps send."""
    reduce_s, reduce_bytes = all_reduce(2, parameters())
    batch = 2 * BATCH_SIZES[optimizer] * TrainConfig().seq_len
    steps = [outcome.tokens / batch for outcome in raced["sync"]]
    ours = [outcome.sent_until for outcome in raced["two arenas"]]
    findings.at_least(
        f"bytes of sync / two arenas, to {bits}",
        Ratio.of([n * reduce_bytes for n in steps], ours), LEAST_BYTES, timing=False,
    )  # fmt: skip
    over = [t + n * reduce_s for t, n in zip(seconds(raced["sync"]), steps, strict=True)]
    findings.results[f"sync over the cable (computed) / two arenas, time to {bits}"] = Ratio.of(
        over, seconds(raced["two arenas"])
    )
    findings.results[f"all-reduce, {optimizer}"] = {
        "seconds": reduce_s, "bytes": reduce_bytes,
        "predicted_s": LINK.all_reduce_s(FLOAT_BYTES * parameters(), 2),
    }  # fmt: skip


def parameters():
    """Parameters of the model of the races."""
    from training.recording import BYTES, count_parameters

    return smallest(10_000, count_parameters(BYTES["model"]))


def show_predictions(rows):
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


def main():
    """Measure what the flags ask for."""
    parser = flags(__doc__, parts=PARTS, quick="one seed, half a minute each, a higher loss")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="of outcomes; again it continues")
    parser.add_argument("--inner", choices=FULL.optimizers, help="one inner optimizer only")
    chosen = parser.parse_args()
    quiet = chosen.only != ["predicted"]
    return measured("across_machines", chosen, measure, packages=("torch", "torchft"), quiet=quiet)


if __name__ == "__main__":
    raise SystemExit(main())
