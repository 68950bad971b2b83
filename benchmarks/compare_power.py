"""What `mlxhog compare` promises: few false wins, and power for a gain of .01 bits per byte.

    python benchmarks/compare_power.py           24 pairs of each kind, `tiny`, 1M tokens: hours
    python benchmarks/compare_power.py --quick   12 pairs, width 64, 100k tokens: minutes
    python benchmarks/compare_power.py --table   the levels in mlxhog/experiments/paired_test.py

real       pairs of runs of the same settings, as `mlxhog compare` runs and scores them, that are
           not equal: one worker with our native kernels and with plain MLX, whose sums are rounded
           differently; and two lock-free workers, whose steps meet as the machine has it. Their
           budget is in tokens. From these, 1,000 tests of up to six pairs each are resampled, every
           pair in a random order of its sides: each win found is a false one. Then 1,000 tests in
           which side A has been made better by .01. Intervals are of the tests, not of other pairs.
simulated  the same test on differences that a generator draws, normal ones and with the longer
           tails of Student's t with 3 degrees of freedom: false wins, and the spread up to which a
           gain of .01 is found in nine tests of ten
"""

import math
import tempfile
from pathlib import Path
from statistics import stdev

import numpy as np
from harness.estimates import Share
from harness.frame import each, run, say
from harness.machine import smallest
from scipy import stats
from training.recording import model_file

from mlxhog import TrainConfig
from mlxhog.experiments import CompareConfig
from mlxhog.experiments.paired_test import ERROR, MIN_PAIRS, SHAPE, boundary, decide
from mlxhog.experiments.pairs import Comparison, Side

PLANNED = 6
GAIN = 0.01
TESTS = 1000
SIMULATED, FALSE_SEEDS = 200_000, 20
TABLE_SEQUENCES, CHUNK = 2_000_000, 100_000
MAX_PAIRS = 20
ALONE = {"workers": "mlx:cpu", "threads": 1, "strategy": "serial"}
LOCK_FREE = {"workers": "mlx:cpu*2", "threads": 1, "strategy": "hogwild"}
KINDS = {
    "one worker, rounded differently": [{**ALONE, "kernels": k} for k in ("native", "eager")],
    "two lock-free workers": [LOCK_FREE, LOCK_FREE],
}
"""Options of two sides that are equal but for chance."""


def real(findings, chosen):
    """False wins and power in tests that are drawn from pairs of real runs."""
    pairs = chosen.pairs or smallest(2, 12 if chosen.quick else 24)
    tokens, tests = smallest(4_000, 100_000 if chosen.quick else 1_000_000), smallest(20, TESTS)
    model = model_file(hidden_size=64, num_hidden_layers=2) if chosen.quick else "tiny"
    terms = CompareConfig(pairs=pairs, tokens=tokens, seed=1, val_subset_tokens=65_536)
    findings.results |= {"tokens": tokens, "pairs": pairs, "kinds": {}}
    with tempfile.TemporaryDirectory(prefix="mlxhog-compare-") as temporary:
        for number, (kind, sides) in enumerate(list(KINDS.items())[-smallest(1, 2) :]):
            folder = (chosen.folder or Path(temporary)) / str(number)
            differences = real_differences(folder, model, sides, terms)
            false_wins = Share.of(told(differences, tests=tests, gain=0.0), tests)
            power = Share.of(told(differences, tests=tests, gain=GAIN), tests)
            findings.at_most(f"false wins, {kind}", false_wins, ERROR, timing=False)
            findings.at_least(f"power for a gain of .01, {kind}", power, 0.9, timing=False)
            own = {"spread": stdev(differences), "differences": differences}
            findings.results["kinds"][kind] = own


def real_differences(folder, model, settings, terms):
    """Bits per byte of B less those of A."""
    a, b = (TrainConfig(model=model, tokenizer="bytes", **options) for options in settings)
    record = Comparison(Side("a", a), Side("b", b), terms, folder)
    with record.open():
        while len(record.pairs) < terms.pairs:
            pair = record.run_next(lambda part, step: None)
            bits = f"{pair.a.bits_per_byte:.4f} {pair.b.bits_per_byte:.4f}"
            say(f"  pair {len(record.pairs)}: {bits}")
        return [pair.difference for pair in record.pairs]


def told(differences, *, tests, gain):
    """Tests, drawn from the pairs, in which a side is called better: A, where it has a gain."""
    rng, signs, planned = np.random.default_rng(0), [], min(PLANNED, len(differences))
    for _ in range(tests):
        drawn = rng.choice(differences, planned, replace=False) * rng.choice((-1, 1), planned)
        signs.append(decide((drawn + gain).tolist(), planned).sign)
    return sum(sign > 0 if gain else sign != 0 for sign in signs)


def simulated(findings, chosen):
    """False wins in simulated tests, and the spread up to which a gain is found."""
    seeds = smallest(1, FALSE_SEEDS)
    for name, tails in (("normal", "normal"), ("long tails", "long")):
        rates = [simulated_rate(tails, 0.0, seed) for seed in range(1, 1 + seeds)]
        wins = Share.of(round(SIMULATED * sum(rates)), SIMULATED * seeds)
        findings.at_most(f"simulated false wins, {name}", wins, ERROR, timing=False)
    low, high = 1.0, 6.0  # gains at a spread of one
    for _ in range(smallest(1, 12)):
        middle = (low + high) / 2
        low, high = (low, middle) if simulated_rate("normal", middle) >= 0.9 else (middle, high)
    findings.results["spread_told"] = GAIN / high


def students(differences):
    """Student's t of each sequence after its second pair, its third, ...: one column less."""
    counts = np.arange(1, differences.shape[1] + 1)
    sums = differences.cumsum(1)
    squares = (differences**2).cumsum(1) - sums**2 / counts
    counts, sums, squares = counts[1:], sums[:, 1:], squares[:, 1:]
    return sums / counts / np.sqrt(squares / (counts - 1) / counts)


def simulated_rate(tails, gain, seed=1):
    """How often A is found to be better (or either, without a gain), at a spread of one."""
    rng, shape = np.random.default_rng(seed), (SIMULATED, PLANNED)
    drawn = rng.standard_normal(shape) if tails == "normal" else rng.standard_t(3, shape)
    limits = np.array([boundary(k, PLANNED) for k in range(2, PLANNED + 1)])
    crossed = students(drawn + gain)
    if not gain:
        return float((np.abs(crossed) >= limits).any(1).mean())
    first = (np.abs(crossed) >= limits).argmax(1)
    return float((np.take_along_axis(crossed, first[:, None], 1)[:, 0] >= limits[first]).mean())


def levels():
    """By planned pairs: the level of the last look at which `ERROR` is kept over all looks."""
    rng, lowest_n = np.random.default_rng(0), int(2 * ERROR * CHUNK)
    least = {planned: np.empty(0) for planned in range(2, MAX_PAIRS + 1)}
    for _ in range(TABLE_SEQUENCES // CHUNK):
        statistics = np.abs(students(rng.standard_normal((CHUNK, MAX_PAIRS))))
        pairs = np.arange(2, MAX_PAIRS + 1)
        ratios = 2 * stats.t.sf(statistics, pairs - 1) / pairs**SHAPE
        for planned, values in least.items():
            first = min(MIN_PAIRS, planned) - 2
            min_ratio = ratios[:, first : planned - 1].min(1) * planned**SHAPE
            lowest = np.partition(min_ratio, lowest_n)[:lowest_n]
            least[planned] = np.concatenate([values, lowest])
    # Two standard errors of this simulation, so that the error is no more than it should be.
    chance = math.sqrt(ERROR * (1 - ERROR) / TABLE_SEQUENCES)
    at = int((ERROR - 2 * chance) * TABLE_SEQUENCES)
    return {planned: float(np.sort(values)[at]) for planned, values in least.items()}


PARTS = {"real": real, "simulated": simulated}


def table(_):
    """Print the levels of `mlxhog/experiments/paired_test.py`."""
    for planned, level in levels().items():
        print(f"    {planned}: {level:.6f},")


if __name__ == "__main__":
    run(
        __doc__, each(PARTS), only=PARTS, modes={"quick": "12 pairs of 100k tokens, width 64"},
        actions={"table": table},
        options={
            "--pairs": {"type": int, "help": "pairs of real runs"},
            "--folder": {"type": Path, "help": "keep the runs here, or go on with them"},
        },
        packages=("mlx", "scipy"),
    )  # fmt: skip
