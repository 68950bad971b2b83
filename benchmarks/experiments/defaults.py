"""Why the defaults of `mlxhog train` are what they are: equal arms, a row each.

    python benchmarks/experiments/defaults.py minute                the default beside that of 0.2
    python benchmarks/experiments/defaults.py widths --full         one step size for every width
    python benchmarks/experiments/defaults.py ngram_tables          staleness of sparse parameters
    python benchmarks/experiments/defaults.py lock_free_schedules   back-off beside other schedules
    python benchmarks/experiments/defaults.py lock_free_schedules --tune

Tokens and gradients are counted, not seconds, so a busy machine changes no loss.
"""

import sys
from dataclasses import replace
from itertools import product
from statistics import fmean, median

from backoff import (
    BACKOFF,
    CONSTANT,
    COSINE,
    FALLING,
    INVERSE,
    STABLE,
    Rule,
    best_settings,
    search_rule,
)
from experiment.figures import intervals, new_panel, new_panels
from experiment.language import Bench, Setup, setup, workers
from experiment.record import Compared, Experiment, Outcome, Scale, other_seed, run, say
from experiment.runs import Runs
from experiment.searches import is_recorded, recorded, write_recorded
from harness.claims import Claim, Sample, Twin
from harness.estimates import Mean, Ratio
from harness.interleaved import on_cores, take_turns, with_twin
from training.recording import end_bits, model_file

from mlxhog import TrainConfig
from mlxhog.config import optimizers


def counted(name, estimate, relation, limit, **more):
    """A claim that no load spoils."""
    return Claim.of(name, estimate, relation, limit, timing=False, **more)


def draw(outcome):
    """The loss of every arm, all seeds, with its interval; a panel for each group of arms."""
    bits = outcome.results["bits_per_byte"]
    groups = bits if all(isinstance(one, dict) for one in bits.values()) else {"": bits}
    figure, panels = new_panels(*(("held-out bits per byte", "", name) for name in groups))
    for axes, own in zip(panels, groups.values(), strict=True):
        intervals(axes, own)
    return figure


def bits_of(job):
    """Held-out bits per byte of a training: held-out tokens, and options."""
    held_out, options = job
    return end_bits(held_out, **options)


# -- minute ---------------------------------------------------------------------------------------

MINUTE = Experiment(
    name="minute",
    script="defaults.py",
    title="Today's default beside that of 0.2, with a quarter of a minute's text",
    source="the defaults of mlxhog train",
    about=(
        "The default of version 0.2 (bytes, four blocks of width 128), and the tokenizer of the "
        "text, depth and step sizes of today's default, one after another. All arms have the same "
        "budget in compute: tokens, divided by the relative cost of one."
    ),
    packages=("torch",),
    full_seeds=3,
)
MINUTE_TOKENS = 971_000  # bytes that two cores train in a minute of `tiny`
HELD_OUT = 863_914  # bytes
EQUAL = {"embedding_lr": 1, "head_lr": 1, "scalar_lr": 1}
PIECES = {"tokenizer": "sotu"}
BEFORE, NOW = "bytes, 4 blocks (the default of 0.2)", "4,096 pieces, 2 blocks, rates by group"
MINUTE_ARMS = {
    BEFORE: ({"model": "tiny", "tokenizer": "bytes", "lr": 0.0042}, 1.0, 1.0),
    "4,096 pieces, 4 blocks": ({"model": "tiny", "lr": 0.0042, **PIECES, **EQUAL}, 1.5, 4.34),
    "4,096 pieces, 4 blocks, rates by group": ({"model": "tiny", **PIECES}, 1.5, 4.34),
    "4,096 pieces, 2 blocks": ({"model": "minute", **PIECES, **EQUAL}, 1.0, 4.34),
    NOW: ({"model": "minute", **PIECES}, 1.0, 4.34),
}
"""Options, cost of a token in tokens of the first arm, bytes of a token of held-out text."""


def minute(scale):
    """Train every arm with every seed, and today's default with others (A/A)."""
    tokens = scale.pick(tiny=4096, quick=MINUTE_TOKENS / 32, full=MINUTE_TOKENS / 4)
    held_out = scale.pick(tiny=4096, quick=HELD_OUT / 32, full=HELD_OUT / 8)

    def job(name, seed):
        options, cost, n_bytes = MINUTE_ARMS[name]
        sizes = TrainConfig(**options, steps=1)
        steps = round(tokens / cost / (sizes.batch_size * sizes.seq_len))
        return round(held_out / n_bytes), {**options, "seed": seed, "steps": steps}

    jobs = [*product(MINUTE_ARMS, scale.seeds), *((NOW, other_seed(s)) for s in scale.seeds)]
    ends = dict(zip(jobs, on_cores(bits_of, [job(*one) for one in jobs]), strict=True))
    bits = {name: [ends[name, seed] for seed in scale.seeds] for name in MINUTE_ARMS}
    again = [ends[NOW, other_seed(seed)] for seed in scale.seeds]
    arms = {name: options for name, (options, _, _) in MINUTE_ARMS.items()}
    return minute_outcome(bits, again, {"tokens": round(tokens), "arms": arms})


def minute_outcome(bits, again, settings):
    """Compare today's default with the others."""
    ratios = {name: Ratio.of(bits[NOW], own) for name, own in bits.items() if name != NOW}
    claims = {
        name: counted(f"bits per byte, today's default / {name}", ratio, "<=", 1.0)
        for name, ratio in ratios.items()
    }
    before = replace(claims[BEFORE], name="bits per byte of today's default over 0.2's")
    return Outcome(
        compared=[Compared.of("today's default is the best of these arms", *claims.values())],
        table=[
            {
                "arm": name,
                "bits per byte": Mean.of(own).spelt(".3f"),
                "today's default / this": ratios[name].spelt(".3f") if name in ratios else "1",
                "cost of a token": MINUTE_ARMS[name][1],
            }
            for name, own in bits.items()
        ],
        claims=[before],
        settings=settings,
        results={"bits_per_byte": bits},
        twins=[Twin.of(NOW, bits[NOW], again)],
    )


# -- widths ---------------------------------------------------------------------------------------

WIDTHS = Experiment(
    name="widths",
    script="defaults.py",
    title="One step size for every width",
    source="Yang et al. 2022 (mu-P), arXiv:2203.03466",
    about=(
        "xLSTMs of 4 heads on bytes, at three widths, each trained for equally many "
        "gradients, at the step size that --lr auto takes for its width, at half of "
        "it and at twice as much. A step size that moves with the width as mu-P asks should be "
        "near the best one at each. Counting gradients, a busy machine changes nothing."
    ),
    packages=("torch",),
)
FACTORS = (0.5, 1.0, 2.0)
NEAR = 0.02
"""Bits per byte above the best of a bracket that count as near it: about what seeds differ by."""


def widths(scale):
    """Train at every width, and compare each bracket's middle with its best."""
    tiny, seeds = scale.mode == "tiny", scale.pick(tiny=(1,), quick=(1, 2, 3), full=(1, 2, 3))
    wide = scale.pick(tiny=(32,), quick=(64, 128), full=(64, 128, 256))
    rules = scale.pick(tiny=("muon",), quick=("muon",), full=("muon", "adamw"))
    blocks, seq_len, gradients, held_out = (1, 32, 4, 1024) if tiny else (2, 128, 200, 16_384)

    def job(rule, width, factor, seed):
        options = {
            "model": model_file(hidden_size=width, num_hidden_layers=blocks), "optimizer": rule,
            "lr": factor * optimizers.by_name(rule).default_lr(width), "batch_size": 2,
            "seq_len": seq_len, "steps": gradients, "seed": seed,
        }  # fmt: skip
        return held_out, options

    again = [("muon", wide[0], 1.0, other_seed(seed)) for seed in seeds]
    jobs = [*product(rules, wide, FACTORS, seeds), *again]
    ends = dict(zip(jobs, on_cores(bits_of, [job(*one) for one in jobs]), strict=True))
    settings = {
        "blocks": blocks, "batch_size": 2, "seq_len": seq_len, "gradients": gradients,
        "held_out_tokens": held_out, "schedule": "that of mlxhog train",
    }  # fmt: skip
    return widths_outcome(ends, [ends[one] for one in again], settings, seeds)


def widths_outcome(ends, again, settings, seeds):
    """Compare: (rule, width, factor, seed) -> bits per byte."""
    arms = dict.fromkeys((rule, width) for rule, width, _, seed in ends if seed in seeds)

    def bits(rule, width, factor):
        return [ends[rule, width, factor, seed] for seed in seeds]

    def above(width):
        """That lr auto is near the better of half and twice as much."""
        means = {factor: fmean(bits("muon", width, factor)) for factor in FACTORS[::2]}
        other = min(means, key=means.get)
        name = f"muon, d {width}: bits per byte at lr auto above those at {other:g} times it"
        more = Mean.of_differences(bits("muon", width, 1.0), bits("muon", width, other))
        return counted(name, more, "<=", NEAR)

    table = []
    for rule, width in arms:
        means = [fmean(bits(rule, width, factor)) for factor in FACTORS]
        table.append({
            "optimizer": rule,
            "width": width,
            "lr auto": float(f"{optimizers.by_name(rule).default_lr(width):.3g}"),
            "at half of it": means[0], "at lr auto": means[1], "at twice as much": means[2],
            "above the best": round(means[1] - min(means), 4),
        })  # fmt: skip
    claims = [above(width) for rule, width in arms if rule == "muon"]
    words = "the best step size of a narrow model is, scaled, that of a wide one"
    narrow = next(iter(arms))[1]
    rates = {
        (rule, width, factor): factor * optimizers.by_name(rule).default_lr(width)
        for rule, width in arms
        for factor in FACTORS
    }
    rows = [
        [rule, width, rates[rule, width, factor], seed, value]
        for (rule, width, factor, seed), value in ends.items()
        if seed in seeds
    ]
    return Outcome(
        compared=[Compared.of(words, *claims)],
        table=table,
        claims=claims,
        settings=settings,
        results={"bits_per_byte": rows},
        seeds=seeds,
        twins=[Twin.of(f"muon, d {narrow}, bits per byte", bits("muon", narrow, 1.0), again)],
    )


def draw_widths(outcome):
    """Loss against the step size, a curve for each width."""
    figure, axes = new_panel(x="lr", y="held-out bits per byte", heading=WIDTHS.title)
    for row in outcome.table:
        bits = [row["at half of it"], row["at lr auto"], row["at twice as much"]]
        label = f"{row['optimizer']}, d {row['width']}"
        axes.plot([factor * row["lr auto"] for factor in FACTORS], bits, "o-", label=label)
    axes.set_xscale("log")
    axes.legend(fontsize=7)
    return figure


# -- tables of n-grams ----------------------------------------------------------------------------

NGRAM_TABLES = Experiment(
    name="ngram_tables",
    script="defaults.py",
    title="Staleness of sparse parameters",
    source="documents 002 and 004, sparse updates",
    about=(
        "`tiny` on bytes, with tables of n-grams and without, trained by one worker and by "
        "lock-free workers, all on as much text. The cost of staleness is the held-out loss above "
        "that of one worker, in bits per byte. Tables are read and written row by row, and two "
        "batches in succession share few rows of high orders."
    ),
    packages=("torch",),
)
LEVEL = 0.02  # bits per byte within which two ways are level
DENSE, TABLES = "without tables", "with tables"
SERIAL, LOCK_FREE = "serial", "hogwild"


def ngram_tables(scale):
    """Train with and without tables, by one worker and by each number of lock-free ones."""
    orders = scale.pick(tiny="2-3", quick="2-4", full="2-8")
    tokens = scale.pick(tiny=4_000, quick=40_000, full=150_000)
    seeds = scale.pick(tiny=(1,), quick=(1, 2, 3), full=(1, 2, 3))
    counts = scale.pick(tiny=(2,), quick=(2,), full=(2, 4))
    held_out = scale.pick(tiny=1024, quick=16_384, full=65_536)
    ways = [(SERIAL, 1), *((LOCK_FREE, count) for count in counts)]
    chosen = {DENSE: {}, TABLES: {"set": f"ngram_orders={orders}"}}

    def end(arm, seed):
        model, strategy, count = arm
        options = {"strategy": strategy, "workers": workers(count), "tokens": tokens}
        bits = end_bits(held_out, **chosen[model], **options, model="tiny", seed=seed)
        say(f"  {model:15} {strategy:8} {count}  seed {seed}  {bits:.3f} bits per byte")
        return bits

    arms = [(model, *way) for model in (DENSE, TABLES) for way in ways]
    bits, again = with_twin(seeds, arms, end, twin=(DENSE, LOCK_FREE, 2))
    settings = {"model": "tiny, bytes", "ngram_orders": orders, "tokens": tokens}
    return ngram_outcome(bits, again, settings, seeds)


def ngram_outcome(bits, again, settings, seeds):
    """Compare: (model, strategy, workers) -> bits per byte of each seed."""
    costs = {
        arm: [a - b for a, b in zip(own, bits[arm[0], SERIAL, 1], strict=True)]
        for arm, own in bits.items()
    }
    counts = sorted({arm[2] for arm in costs if arm[1] == LOCK_FREE})
    most, twin = counts[-1], (DENSE, LOCK_FREE, 2)
    lost = "bits per byte that {} lock-free workers cost, with tables"
    with_tables = {count: costs[TABLES, LOCK_FREE, count] for count in counts}
    less = [
        counted(
            f"{lost.format(count)} less without",
            Mean.of_differences(own, costs[DENSE, LOCK_FREE, count]), "<=", 0.0,
        )
        for count, own in with_tables.items()
    ]  # fmt: skip
    level = [
        counted(lost.format(count), Mean.of(own), "within", LEVEL, least=-LEVEL)
        for count, own in with_tables.items()
    ]
    return Outcome(
        compared=[
            Compared.of("staleness costs less where updates are sparse", *less),
            Compared.of(
                "sparse updates make lock-free training as good as serial training", *level
            ),
        ],
        table=[
            {
                "model": arm[0], "strategy": arm[1], "workers": arm[2],
                "bits per byte": Sample.of(own).spelt(".3f"),
                "above one worker": round(median(costs[arm]), 3),
            }
            for arm, own in bits.items()
        ],
        claims=[counted(lost.format(most), Mean.of(with_tables[most]), "<=", 0.05)],
        settings=settings,
        results={"bits_per_byte": {", ".join(map(str, arm)): own for arm, own in bits.items()}},
        seeds=seeds,
        twins=[Twin.of(f"bits per byte of {', '.join(map(str, twin))}", bits[twin], again)],
    )  # fmt: skip


# -- schedules of lock-free workers ---------------------------------------------------------------

SCHEDULES = Experiment(
    name="lock_free_schedules",
    script="defaults.py",
    title="Lock-free workers on an xLSTM: back-off beside 1/k, constant steps, cosine and wsd",
    source="document 001, Robust 1/k Rates and Stepsize Selection",
    about=(
        "Two lock-free workers train an xLSTM, with Muon and with AdamW. Back-off takes the first "
        "step size for K gradients, .37 of it for K/.37, and so on; 1/k is lr / (1 + k/K). Beside "
        "them constant steps, half a cosine, and wsd: steady, and a line down over the last fifth. "
        "None has a warm-up, as back-off has none. Each has the step size, and the K, that a "
        "search with one seed found best, with a worse one on either side; K is at most twice the "
        "gradients, where back-off is a constant step size and 1/k hardly falls. All compute "
        "equally many gradients; differences are of pairs with the same seed. Bits per byte are "
        "counted, not seconds."
    ),
    packages=("torch",),
    quick_seeds=4,
    full_seeds=8,
)
RIVALS = (INVERSE, CONSTANT, COSINE, STABLE)
AGAIN = "back-off again"
"""The A/A arm."""
FIRST = {"muon": 4e-3, "adamw": 2e-3}
"""Where the search for a step size begins; that for a constant one at half of it."""
FIRST_SHARES = {INVERSE: 1.0, BACKOFF: 0.5}
"""Where the search for K begins, as a share of the gradients: the best of `backoff`."""


class LockFree:
    """Two lock-free workers with one optimizer."""

    def __init__(self, scale, optimizer):
        tiny = scale.mode == "tiny"
        small = Setup({"hidden_size": 64, "num_hidden_layers": 3})
        self.bench = Bench(replace(setup(scale) if tiny else small, looks=2))
        self.optimizer, self.gradients = optimizer, 40 if tiny else 600

    def loss(self, rule, seed):
        """Held-out bits per byte after all gradients; no schedule has a warm-up."""
        warmup = {} if rule.schedule in FALLING else {"warmup": 0.0}
        common = self.bench.setup
        return self.bench.train(
            f"{self.optimizer}, {rule.schedule}, lr {rule.lr:.2g}, K {rule.share:g}",
            seed=seed, tokens=self.gradients * common.batch * common.seq_len,
            optimizer=self.optimizer, workers=workers(2), **warmup,
            **rule.options(self.gradients, COSINE),
        ).end  # fmt: skip


def schedule_settings(scale):
    """Optimizer -> schedule -> searched settings; arbitrary ones where numbers mean nothing.

    Raises:
        SystemExit: nothing was searched for a schedule of this mode.
    """
    rules, names = (("muon",) if scale.quick else tuple(FIRST)), (BACKOFF, *RIVALS)
    if scale.mode == "tiny":
        some = {s: {"lr": 3e-3, "share": 0.5 * (s in FALLING), "bracket": ""} for s in names}
        return dict.fromkeys(rules, some)
    searched = recorded(SCHEDULES.name)
    pairs = list(product(rules, names))
    if missing := [f"{o}, {s}" for o, s in pairs if s not in searched.get(o, {})]:
        raise SystemExit(
            f"no step size was searched for {'; '.join(missing)}; "
            "python benchmarks/experiments/defaults.py lock_free_schedules --tune"
        )
    return {o: {s: best_settings(searched[o][s]) for s in names} for o in rules}


def lock_free_schedules(scale):
    """Train under every schedule with every seed."""
    chosen, runs = schedule_settings(scale), Runs(SCHEDULES, scale)
    cells = {optimizer: LockFree(scale, optimizer) for optimizer in chosen}
    arms = [(o, s) for o in chosen for s in (BACKOFF, *RIVALS, *[AGAIN] * (o == "muon"))]

    def train(arm, seed):
        optimizer, schedule = arm[0], BACKOFF if arm[1] == AGAIN else arm[1]
        one, cell = chosen[optimizer][schedule], cells[optimizer]
        rule = Rule(schedule, one["lr"], one["share"])
        which = {"arm": arm, "seed": seed, "gradients": cell.gradients, **one}
        return runs.of(which, lambda: {"bits": cell.loss(rule, seed)})["bits"]

    bits = take_turns(scale.seeds, arms, train)
    cell = next(iter(cells.values()))
    settings = {
        **cell.bench.setup.to_json(), "schedule": "by arm", "optimizer": "by arm",
        "gradients": cell.gradients, "searched": chosen,
    }  # fmt: skip
    return replace(schedules_outcome(bits, settings), others_load=runs.others_load)


def schedules_outcome(bits, settings):
    """Back-off beside the others: (optimizer, schedule) -> bits per byte of each seed.

    Where the search chose K beyond the end of the training, back-off is a constant step size, and
    no rival is compared with back-off.
    """
    chosen = settings["searched"]

    def more(arm):
        return Mean.of_differences(bits[arm], bits[arm[0], BACKOFF])

    def ahead(*rivals):
        return [
            counted(f"{o}: {rival} less back-off, bits per byte", more((o, rival)), ">=", 0.0)
            for o in chosen
            for rival in rivals
            if chosen[o][BACKOFF]["share"] < 1.0
        ]

    table = []
    for arm in bits:
        optimizer, schedule = arm
        one = chosen[optimizer][BACKOFF if schedule == AGAIN else schedule]
        table.append({
            "optimizer": optimizer,
            "schedule": schedule,
            "step size": one["lr"],
            "K / gradients": one["share"] or "",
            "bits per byte": Mean.of(bits[arm]).spelt(".3f"),
            "more than back-off": "" if schedule == BACKOFF else more(arm).spelt(".3f"),
            "searched": one["bracket"],
        })  # fmt: skip
    words = "For xLSTM: use constant stepsize with exponential backoff."
    return Outcome(
        compared=[
            Compared.of("Faster in practice than 1/k (larger steps early on).", *ahead(INVERSE)),
            Compared.of(words, *ahead(CONSTANT, COSINE, STABLE)),
        ],
        table=table,
        settings=settings,
        results={
            "bits": [{"optimizer": o, "schedule": s, "bits": own} for (o, s), own in bits.items()]
        },
        twins=[Twin.of("back-off, muon", bits["muon", BACKOFF], bits["muon", AGAIN])],
    )


def draw_schedules(outcome):
    """Bits per byte of every seed, by schedule."""
    by_optimizer = {}
    for one in outcome.results["bits"]:
        by_optimizer.setdefault(one["optimizer"], {})[one["schedule"]] = one["bits"]
    return draw(replace(outcome, results={"bits_per_byte": by_optimizer}))


def tune_schedules():
    """Search step size and K of every schedule; what was searched is not searched again."""
    known = recorded(SCHEDULES.name) if is_recorded(SCHEDULES.name) else {}
    for optimizer, lr in FIRST.items():
        searched, cell = known.setdefault(optimizer, {}), LockFree(Scale("full"), optimizer)
        for schedule in (BACKOFF, *RIVALS):
            if schedule not in searched:
                first = lr / (2 if schedule == CONSTANT else 1)
                share = FIRST_SHARES.get(schedule, 0.0)
                searched[schedule] = search_rule(cell.loss, schedule, first, share, (101,))
                write_recorded(SCHEDULES.name, known)
            say(f"{optimizer}, {schedule}: {best_settings(searched[schedule])}")


EXPERIMENTS = {
    "minute": (MINUTE, minute, draw, None),
    "widths": (WIDTHS, widths, draw_widths, None),
    "ngram_tables": (NGRAM_TABLES, ngram_tables, draw, None),
    "lock_free_schedules": (
        SCHEDULES, lock_free_schedules, draw_schedules, tune_schedules,
    ),
}  # fmt: skip


def main():
    """Run the experiment that the first word names; with --tiny alone, all of them."""
    named = sys.argv[1:2] if sys.argv[1:2] and sys.argv[1] in EXPERIMENTS else []
    if not named and "--tiny" not in sys.argv:
        print(f"{__doc__}\nname one of: {', '.join(EXPERIMENTS)}", file=sys.stderr)
        return 0 if "--help" in sys.argv else 2
    arguments, codes = sys.argv[1 + len(named) :], []
    for name in named or EXPERIMENTS:
        about, result, figure, tune = EXPERIMENTS[name]
        codes.append(run(about, result, figure, tune=tune, arguments=arguments))
    return max(codes)


if __name__ == "__main__":
    raise SystemExit(main())
