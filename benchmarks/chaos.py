"""Training under faults: what is lost, what hangs, what is left behind.

    python benchmarks/chaos.py --quick             one strategy after the other, a few minutes
    python benchmarks/chaos.py --seed 3            30 minutes of faults, over every strategy
    python benchmarks/chaos.py --seed 0 1 2        the same for each seed, one after the other

The runs and their faults are those of `tests/soak/kills.py`: workers killed and stopped, a full
disk, a closed pipe, the supervisor killed, and its run resumed. No run may hang, no process outlive
it, and every ticket is accounted for. Fed examples, damaged files, replays and clusters are in
`soak.py`.
"""

import signal
import sys

from harness.frame import run, say
from soak import claim

from tests.soak import Counts
from tests.soak.kills import FAULTS_S, STRATEGIES, TOKENS, under_faults


def measure(findings, options):
    """Train every strategy under faults, and count."""
    strategies = options.strategy[: options.pick(tiny=1, quick=None, full=None)]
    full_s = 60 * options.minutes / len(strategies)
    seconds = options.pick(tiny=1.0, quick=FAULTS_S, full=full_s)
    tokens = options.pick(tiny=2_000, quick=TOKENS, full=options.tokens)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # so that nothing stays behind
    counts = Counts()
    for seed in options.seed:
        for number, strategy in enumerate(strategies):
            own = 1000 * seed + number
            under_faults(counts, strategy, own, say, seconds=seconds, tokens=tokens)
    claim(findings, counts)
    records = counts.facts["records"]
    faults = sum(sum(record["faults"].values()) for record in records)
    pause = sum(record["chaos_s"] for record in records) / max(faults, 1)
    findings.at_most("seconds per fault", pause, 5.0, timing=False)


if __name__ == "__main__":
    run(
        __doc__, measure, modes={"quick": f"{FAULTS_S:g} s of faults per strategy"},
        options={
            "--seed": {"type": int, "nargs": "+", "default": [0]},
            "--minutes": {"type": float, "default": 30.0, "help": "of faults, per seed"},
            "--tokens": {"type": int, "default": 1_000_000, "help": "of one run"},
            "--strategy": {
                "nargs": "+", "choices": tuple(STRATEGIES), "metavar": "NAME",
                "default": list(STRATEGIES), "help": ", ".join(STRATEGIES),
            },
        },
        packages=("mlx", "torch"),
    )  # fmt: skip
