"""Do two machines on a slow cable train like one, and what do faults cost?

    python benchmarks/across_machines.py                      three seeds: hours
    python benchmarks/across_machines.py --keep across.jsonl  likewise; again it continues
    python benchmarks/across_machines.py --only loss bytes --inner muon
    python benchmarks/across_machines.py --quick              three seeds, a minute each

Machines are network namespaces, joined by a cable of 100 Mbit/s and 50 ms (`cluster/cable.py`).
Rounds are every 3 s in bfloat16. Arms are compared by the time to a validation loss and by the loss
at the end. Trainings take ten minutes for `loss` and three for the other parts; with --quick a
minute, with rounds every 2 s, to a higher loss. With Muon and with AdamW as the inner optimizer:

loss     two arenas with a worker each, beside one arena with both workers
second   the same two, beside one arena with one worker
bytes    what two machines send until the loss, over what synchronous steps send: an all-reduce of
         Gloo in float32 on the same cable for each step that `--strategy sync` needs on one. The
         time of sync over the cable is computed: its time on one machine, and these all-reduces
faults   two arenas of which one is eight times slower, or is unplugged, killed and started again,
         or stopped for a minute, from before the loss is reached, beside two without a fault. No
         machine but the killed one may end with an error, and a pulled plug may cost one round
rounds   two arenas with the outer momentum of DiLoCo, .9, or with rounds every 10 s
outer    one arena with outer steps (SNOO, arXiv:2510.15830: one replica) beside one without

What 2 to 8 Macs would do is a prediction of `mlxhog research simulate`; no Mac was there.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from cluster.races import FAULTS, LINK, Fault, Outcome, all_reduce, train
from harness.estimates import Mean, Ratio
from harness.frame import run, say
from harness.interleaved import KEEP, remembered
from harness.machine import smallest
from training.race import BATCH_SIZES, Target
from training.recording import BYTES, count_parameters

from mlxhog import TrainConfig

MAX_RATIO, MIN_BYTES = 1.25, 50.0
FLOAT_BYTES = 4
WIRE = {"round_dtype": "bfloat16"}
"""Options of the cluster in every race."""


class Scale(NamedTuple):
    """How much is measured: seconds of a training for `loss`, and for the other parts (`short_s`),
    of which a fault comes after `sound_s` and lasts for `down_s`."""

    seeds: tuple[int, ...]
    seconds: float
    target: Target
    optimizers: tuple[str, ...]
    short_s: float
    sound_s: float
    down_s: float
    round_every: float


QUICK = Scale(
    (1, 2, 3), 60.0, Target(2.1, val_subset_tokens=16_384), ("muon",), 60.0, 15.0, 15.0, 2.0
)
FULL = Scale((1, 2, 3), 600.0, Target(1.8), ("muon", "adamw"), 180.0, 30.0, 60.0, 3.0)
TINY = QUICK._replace(
    seeds=(1,), seconds=2.0, short_s=2.0, sound_s=1.0, down_s=1.0, round_every=1.0
)


class Arm(NamedTuple):
    """What trains: one machine with both workers, or two with one each; further options of
    `TrainConfig` and of the cluster, and the arm whose searched settings it has."""

    machines: int = 1
    fault: Fault | None = None
    tuned_as: str = "hogwild"
    options: Mapping[str, Any] = {}
    rounds: Mapping[str, Any] = {}


ARMS = {
    "one arena": Arm(),
    "one arena, one worker": Arm(options={"workers": "torch:cpu"}),
    "outer steps": Arm(options={"strategy": "diloco(replicas=1)"}),
    "two arenas": Arm(2),
    "momentum .9": Arm(2, rounds={"cluster_outer_momentum": 0.9}),
    "rounds of 10 s": Arm(2, rounds={"round_every": 10.0}),
    "sync": Arm(tuned_as="sync", options={"strategy": "sync"}),
    **{name: Arm(2, fault) for name, fault in FAULTS.items()},
}
PAIRS = {
    "loss": (("two arenas", "one arena"),),
    "second": (("two arenas", "one arena, one worker"),),
    "bytes": (("two arenas", "sync"),),
    "faults": tuple((name, "two arenas") for name in FAULTS),
    "rounds": (("momentum .9", "two arenas"), ("rounds of 10 s", "two arenas")),
    "outer": (("outer steps", "one arena"),),
}
"""Arms that are compared, by part. The faults of `--tiny` are those of `tests/soak/cluster.py`."""


def trained(scale, optimizer, name, seed):
    """One training of an arm."""
    arm = ARMS[name]
    searched = scale.target.settings(optimizer, arm.tuned_as)
    searched.pop("tokens")
    options = {
        "optimizer": optimizer, "batch_size": BATCH_SIZES[optimizer], "schedule": "cosine",
        "threads": 1, "seed": seed, "time": scale.seconds, **searched, **arm.options,
    }  # fmt: skip
    outcome = train(
        arm.machines, scale.target, options, arm.fault, sound_s=scale.sound_s, down_s=scale.down_s,
        rounds={**WIRE, "round_every": scale.round_every, **arm.rounds},
    )  # fmt: skip
    say(f"  seed {seed}  {optimizer:6} {name:16} {outcome.seconds:6.1f} s  {outcome.last_bits:.3f}")
    return outcome


def measure(findings, chosen):
    """Measure the chosen parts."""
    parts = chosen.only or smallest(("bytes",), tuple(PAIRS))
    scale = smallest(TINY, QUICK if chosen.quick else FULL)
    findings.seeds = scale.seeds
    for optimizer in (one for one in scale.optimizers if chosen.inner in (None, one)):
        for part in parts:
            seconds = scale.seconds if part == "loss" else scale.short_s
            one = scale._replace(seconds=seconds)
            once = remembered(
                chosen.keep,
                lambda _, rule, name, seed, one=one: asdict(trained(one, rule, name, seed)),
                of=lambda value: Outcome(**value),
            )
            names = dict.fromkeys(name for pair in PAIRS[part] for name in pair)
            raced = {
                name: [once(seconds, optimizer, name, seed) for seed in scale.seeds]
                for name in names
            }
            compare(findings, part, one, optimizer, raced)


def seconds_of(outcomes):
    """Their times to the loss."""
    return [outcome.seconds for outcome in outcomes]


def compare(findings, part, scale, optimizer, raced):
    """Add what the arms of a part and an inner optimizer differ in."""
    bits = f"{scale.target.bits:g} bits per byte, {optimizer}"
    for name, other in PAIRS[part]:
        what = f"{name} / {other}, time to {bits}"
        ratio = Ratio.of(seconds_of(raced[name]), seconds_of(raced[other]))
        findings.at_most(what, ratio, 1.0 if other.endswith("one worker") else MAX_RATIO)
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
    parameters = smallest(10_000, count_parameters(BYTES["model"]))
    reduce_s, reduce_bytes = all_reduce(2, parameters)
    batch = 2 * BATCH_SIZES[optimizer] * TrainConfig().seq_len
    steps = [outcome.tokens / batch for outcome in raced["sync"]]
    ours = [outcome.sent_until for outcome in raced["two arenas"]]
    more = Ratio.of([n * reduce_bytes for n in steps], ours)
    findings.at_least(f"bytes of sync / two arenas, to {bits}", more, MIN_BYTES, timing=False)
    pairs = zip(seconds_of(raced["sync"]), steps, strict=True)
    over = Ratio.of([t + n * reduce_s for t, n in pairs], seconds_of(raced["two arenas"]))
    findings.results |= {
        f"sync over the cable (computed) / two arenas, time to {bits}": over,
        f"all-reduce, {optimizer}": {
            "seconds": reduce_s, "bytes": reduce_bytes,
            "predicted_s": LINK.all_reduce_s(FLOAT_BYTES * parameters, 2),
        },
    }  # fmt: skip


if __name__ == "__main__":
    run(
        __doc__, measure, only=PAIRS, modes={"quick": "three seeds, a minute each"},
        options={
            **KEEP,
            "--inner": {"choices": FULL.optimizers, "help": "one inner optimizer only"},
        },
        packages=("torch", "torchft"), quiet=True,
    )  # fmt: skip
