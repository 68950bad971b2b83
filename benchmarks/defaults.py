"""Why the defaults of `mlxhog train` are what they are: equal arms, a row each.

    python benchmarks/defaults.py --full --only minute     the default beside that of 0.2
    python benchmarks/defaults.py --full --only widths     one learning rate for every width
    python benchmarks/defaults.py --only ngram_tables      staleness of sparse parameters

minute        the default of version 0.2 (bytes, four blocks of width 128), and the tokenizer of the
              text, depth and learning rates of today's default, one after another, with a quarter
              of a minute's text; arms have the same budget in compute
widths        xLSTMs at three widths, each at the learning rate that `--lr auto` takes for it, at
              half of it and at twice as much (Yang et al. 2022, mu-P, arXiv:2203.03466)
ngram_tables  `tiny` with tables of n-grams and without, by one worker and by lock-free ones, on as
              much text: tables are read and written row by row
Tokens and gradients are counted, not seconds, so a busy machine changes no loss.
"""

from itertools import product
from statistics import fmean, median

from harness.claims import counted
from harness.estimates import Mean, Ratio
from harness.frame import other_seed, run
from harness.interleaved import on_cores, with_control
from training.recording import end_bits, model_file, workers

from mlxhog import TrainConfig, optim


def bits_of(validation, options):
    """Validation bits per byte of a training: validation tokens, and options."""
    return end_bits(validation, **options)


# -- minute ---------------------------------------------------------------------------------------

MINUTE_TOKENS = 971_000  # bytes that two cores train in a minute of `tiny`
VALIDATION = 863_914  # bytes
PIECES = {"tokenizer": "sotu"}
RANDOM = {"embedding_init": "random", "embedding_lr": 12, "head_lr": 2.4, "scalar_lr": 1.5}
BEFORE = "bytes, 4 blocks (the default of 0.2)"
FOUR, TWO = "8,192 tokens, 4 blocks", "8,192 tokens, 2 blocks"
NOW = f"{TWO}, bigram initialization"
MINUTE_ARMS = {
    BEFORE: ({"model": "tiny", "tokenizer": "bytes", "lr": 0.0042}, 1.0, 1.0),
    f"{FOUR}, random initialization": ({"model": "tiny", **PIECES, **RANDOM}, 1.5, 4.81),
    f"{FOUR}, bigram initialization": ({"model": "tiny", **PIECES}, 1.5, 4.81),
    f"{TWO}, random initialization": ({"model": "minute", **PIECES, **RANDOM}, 1.0, 4.81),
    NOW: ({"model": "minute", **PIECES}, 1.0, 4.81),
}
"""Options, cost of a token in tokens of the first arm, bytes of a token of validation text."""


def minute(findings, chosen):
    """Train every arm with every seed, and today's default with others (A/A)."""
    seeds = chosen.seeds
    tokens = chosen.pick(tiny=4096, quick=MINUTE_TOKENS / 32, full=MINUTE_TOKENS / 4)
    validation = chosen.pick(tiny=4096, quick=VALIDATION / 32, full=VALIDATION / 8)

    def job(name, seed):
        options, cost, n_bytes = MINUTE_ARMS[name]
        sizes = TrainConfig(**options, steps=1)
        steps = round(tokens / cost / (sizes.batch_size * sizes.seq_len))
        return round(validation / n_bytes), {**options, "seed": seed, "steps": steps}

    arms = chosen.pick(tiny=(BEFORE, NOW), quick=MINUTE_ARMS, full=MINUTE_ARMS)
    jobs = [*product(arms, seeds), *((NOW, other_seed(seed)) for seed in seeds)]
    ends = dict(zip(jobs, on_cores(bits_of, [job(*one) for one in jobs]), strict=True))
    bits = {name: [ends[name, seed] for seed in seeds] for name in arms}
    findings.same(NOW, bits[NOW], [ends[NOW, other_seed(seed)] for seed in seeds])
    ratios = {name: Ratio.of(bits[NOW], own) for name, own in bits.items() if name != NOW}
    findings.table(
        {"arm": name, "bits per byte": Mean.of(own).spelt(".3f"),
         "today's default / this": ratios[name].spelt(".3f") if name in ratios else "1"}
        for name, own in bits.items()
    )  # fmt: skip
    findings.document(*(
        counted(f"bits per byte, today's default / {name}", ratio, "<=", 1.0)
        for name, ratio in ratios.items()
    ))  # fmt: skip
    name = "bits per byte of today's default over 0.2's"
    findings.at_most(name, ratios[BEFORE], 1.0, timing=False)
    findings.results |= {"bits_per_byte": bits, "tokens": round(tokens)}


# -- widths ---------------------------------------------------------------------------------------

FACTORS, NEAR = (0.5, 1.0, 2.0), 0.02
"""NEAR: bits per byte above the best of a bracket that count as near it, as seeds differ."""


def widths(findings, chosen):
    """Train at every width, and compare each bracket's middle with its best."""
    seeds = chosen.seeds
    wide = chosen.pick(tiny=(32,), quick=(64, 128), full=(64, 128, 256))
    rules = ("muon",) if chosen.quick else ("muon", "adamw")
    blocks, length, steps, validation = (1, 32, 4, 1024) if chosen.tiny else (2, 128, 200, 16_384)

    def job(rule, width, factor, seed):
        lr = factor * optim.by_name(rule).default_lr(width)
        model = model_file(hidden_size=width, num_hidden_layers=blocks)
        common = {"optimizer": rule, "batch_size": 2, "seq_len": length, "steps": steps}
        return validation, {**common, "model": model, "lr": lr, "seed": seed}

    again = [("muon", wide[0], 1.0, other_seed(seed)) for seed in seeds]
    jobs = [*product(rules, wide, FACTORS, seeds), *again]
    ends = dict(zip(jobs, on_cores(bits_of, [job(*one) for one in jobs]), strict=True))

    def bits(*arm):
        return [ends[*arm, seed] for seed in seeds]

    rows = []
    for rule, width in product(rules, wide):
        means = {factor: fmean(bits(rule, width, factor)) for factor in FACTORS}
        rows.append({"optimizer": rule, "width": width,
                     **{f"at {factor:g} times lr auto": mean for factor, mean in means.items()},
                     "above the best": round(means[1.0] - min(means.values()), 4)})  # fmt: skip
        if rule == "muon":
            other = min(FACTORS[::2], key=means.get)
            name = f"muon, d {width}: bits per byte at lr auto above those at {other:g} times it"
            more = Mean.of_differences(bits(rule, width, 1.0), bits(rule, width, other))
            findings.at_most(name, more, NEAR, timing=False)
    findings.table(rows)
    name = f"muon, d {wide[0]}, bits per byte"
    findings.same(name, bits("muon", wide[0], 1.0), [ends[one] for one in again])
    findings.results["bits_per_byte"] = [[*arm, value] for arm, value in ends.items()]


# -- tables of n-grams ----------------------------------------------------------------------------

LEVEL = 0.02  # bits per byte within which two ways are level
DENSE, TABLES = "without tables", "with tables"
SERIAL, LOCK_FREE = "serial", "hogwild"


def ngram_tables(findings, chosen):
    """Train with and without tables, by one worker and by each number of lock-free ones."""
    seeds = chosen.seeds
    orders = chosen.pick(tiny="2-3", quick="2-4", full="2-8")
    tokens = chosen.pick(tiny=4_000, quick=40_000, full=150_000)
    counts = chosen.pick(tiny=(2,), quick=(2,), full=(2, 4))
    validation = chosen.pick(tiny=1024, quick=16_384, full=65_536)
    ways = [(SERIAL, 1), *((LOCK_FREE, count) for count in counts)]
    tables = {DENSE: {}, TABLES: {"set": f"ngram_orders={orders}"}}

    def end(arm, seed):
        model, strategy, count = arm
        options = {"strategy": strategy, "workers": workers(count), "tokens": tokens}
        return end_bits(validation, **tables[model], **options, model="tiny", seed=seed)

    arms, control = [(model, *way) for model in tables for way in ways], (DENSE, LOCK_FREE, 2)
    bits, again = with_control(seeds, arms, end, control=control)
    findings.same(f"bits per byte of {', '.join(map(str, control))}", bits[control], again)
    costs = {
        arm: [a - b for a, b in zip(own, bits[arm[0], SERIAL, 1], strict=True)]
        for arm, own in bits.items()
    }
    findings.table(
        {"model": arm[0], "strategy": arm[1], "workers": arm[2],
         "bits per byte": Mean.of(own).spelt(".3f"),
         "above one worker": round(median(costs[arm]), 3)}
        for arm, own in bits.items()
    )  # fmt: skip
    with_tables = {n: costs[TABLES, LOCK_FREE, n] for n in counts}
    findings.document(*(
        counted(f"with tables, {n} lock-free workers less one, bits per byte", Mean.of(own),
                "within", LEVEL, least=-LEVEL)
        for n, own in with_tables.items()
    ))  # fmt: skip
    most = Mean.of(with_tables[counts[-1]])
    lost = f"bits per byte that {counts[-1]} lock-free workers cost, with tables"
    findings.at_most(lost, most, 0.05, timing=False)
    findings.results["bits_per_byte"] = {", ".join(map(str, arm)): own for arm, own in bits.items()}


PARTS = {one.__name__: one for one in (minute, widths, ngram_tables)}


if __name__ == "__main__":
    run(__doc__, PARTS, packages=("torch",), seeds=(3, 5))
