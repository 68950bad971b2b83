"""Does `--strategy auto` come near the best of the strategies that stay, whatever disturbs it?

    python benchmarks/auto.py                            three seeds, forty seconds each
    python benchmarks/auto.py --quick                    one seed, thirty
    python benchmarks/auto.py --condition "random sleeps" --seeds 5
    python benchmarks/auto.py --drop 4                   also without gradients later than 4

Every arm trains what `mlxhog train` trains, the same seconds, with an MLX and a PyTorch worker of
one thread each, at the numbers that its strategy has by default; so `auto` has those of the
strategy in use. Its pair in each seed is the best of the others, in bits per byte of the same
held-out text after training.
"""

from harness.claims import Claim, Sample
from harness.estimates import Ratio
from harness.frame import flags, measured, say
from harness.machine import smallest
from training.disturbances import DISTURBANCES, Disturber
from training.race import Race
from training.recording import BYTES, record

WITHIN = 1.03
"""Largest ratio of bits per byte, `auto` over the best of the others."""
AUTO = "auto"
ARMS = {
    "sync": {"strategy": "sync"},
    "sync by speed": {"strategy": "sync", "sync_shares": "speed"},
    "hogwild": {"strategy": "hogwild"},
    AUTO: {"strategy": "auto"},
}
OPTIONS = {
    "model": "minute", "tokenizer": "auto", "workers": "mlx:cpu,torch:cpu", "threads": 1,
    "eval_every": "1h",
}  # fmt: skip


def arms(drops):
    """The arms, and lock-free training without gradients that are later than each of `drops`."""
    free = ARMS["hogwild"]
    return {**ARMS, **{f"drop:{n}": {**free, "staleness_lr": f"drop:{n}"} for n in drops}}


def trained(arm, disturbance, seed, seconds):
    """Bits per byte after a training, and the changes of its strategy in words."""
    seconds = smallest(1.0, seconds)
    disturber = Disturber(disturbance.disturb, seconds)
    options = {**OPTIONS, **smallest(BYTES, {}), **arm, "time": seconds, "seed": seed}
    run = record(disturb=disturber, slow=disturbance.option(seconds, 2), **options)
    return run.result.val_bits_per_byte, run.changes


def claim(name, bits):
    """The claim that `auto` is near the best of the arms that stay, seed by seed."""
    others = zip(*(bits[arm] for arm in ARMS if arm != AUTO), strict=True)
    ratio = Ratio.of(bits[AUTO], list(map(min, others)))
    return Claim.of(f"{name}: auto / best of the others", ratio, "<=", WITHIN)


def measure(findings, chosen):
    """Run all arms under some disturbances, seed by seed, and `sync` twice."""
    taken = arms(chosen.drop)
    names = chosen.condition or smallest(list(DISTURBANCES)[-1:], list(DISTURBANCES))
    seeds = range(1, 1 + (chosen.seeds or (1 if chosen.quick else 3)))
    seconds = chosen.seconds or (30.0 if chosen.quick else 40.0)
    findings.seeds = tuple(seeds)

    def run(name, arm, seed):
        value, changed = trained(taken[arm], DISTURBANCES[name], seed, seconds)
        say(f"  {name}, seed {seed}  {arm:14} {value:.3f}  {changed}")
        return value

    race = Race(list(taken), dict.fromkeys(names, list(taken)), seeds, run)
    table, again = race.run(twin="sync")
    for name, bits in table.items():
        findings.same(f"{name}, sync, bits per byte", bits["sync"], again[name])
        findings.claims.append(claim(name, bits))
    findings.table(
        {"condition": name, "arm": arm, "bits per byte": Sample.of(values).spelt(".3f")}
        for name, bits in table.items()
        for arm, values in bits.items()
    )
    findings.results["bits_per_byte"] = table


def main():
    """Measure what the flags ask for."""
    parser = flags(__doc__, quick="one seed, thirty seconds")
    parser.add_argument("--seeds", type=int, help="number of seeds")
    parser.add_argument("--seconds", type=float, help="of each training")
    parser.add_argument("--drop", type=int, nargs="+", default=(), metavar="R")
    parser.add_argument("--condition", choices=list(DISTURBANCES), action="append")
    return measured("auto", parser.parse_args(), measure, packages=("torch", "mlx"), quiet=True)


if __name__ == "__main__":
    raise SystemExit(main())
