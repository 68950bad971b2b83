"""Training speed of small worker mixes: tokens per second, and time to the same held-out loss.

    python benchmarks/speedup.py                   an hour and a half
    python benchmarks/speedup.py --quick           throughput, steps and memory, about 9 minutes
    python benchmarks/speedup.py --tune            search the settings of the trainings to a loss
    python benchmarks/speedup.py --only loss --seeds 1 2 3
                                                   some of: throughput steps memory command loss
                                                   default-loss

Model: xLSTM d 128, 4 blocks, 4 heads, bytes of the corpus sotu, S 256. Throughput is at B 8 beside
the xlstm package (its xLSTMLarge with native kernels and AdamW): one process with one and two
threads, and two processes that share the model by `share_memory()` with plain in-place adds.
Time to a loss counts training time only; each strategy and optimizer runs at the settings that a
search found (`training/race.py`), for five seeds, and pairs of runs give intervals.
`command` and `default-loss` train what `mlxhog train` trains without options, by pieces of words.
All variants take turns; numbers are medians over turns or seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

from harness.claims import Sample, flags, measured
from harness.estimates import Mean, Ratio
from harness.interleaved import Program, once, take_turns, with_twin
from harness.machine import one_of_a_kind, smallest
from language_models import xlstm_package
from training.race import Course, Race, Target
from training.recording import count_parameters, model_file, record

from mlxhog.report.shares import in_words, shares

MINUTE = {"model": "minute", "tokenizer": "auto"}
"""What `mlxhog train` trains without options."""
TORCH, MLX, BOTH = "torch:cpu*2", "mlx:cpu*2", "mlx:cpu,torch:cpu"
SEEDS = (1, 2, 3, 4, 5)
PSS_REPEATS = 5


RACED = (
    "serial 1 thread", "serial 2 threads", "sync", "sync by speed", "hogwild",
    "sync by speed mlx+torch", "hogwild mlx+torch",
)  # fmt: skip


@dataclass(frozen=True)
class Contest:
    """Who reaches a loss sooner.

    Attributes:
        target: the loss.
        raced: optimizer and arm of every training.
        own: the one that is compared with others, by its optimizer and arm.
        rivals: how many times sooner than some others it is to be.
    """

    target: Target
    raced: tuple[tuple[str, str], ...]
    own: str
    rivals: Mapping[str, float]


BYTES_MODEL = Contest(
    target=Target(1.8, {"muon": 700_000, "adamw": 1_200_000}),
    raced=(*(("muon", arm) for arm in RACED), ("adamw", "serial 1 thread"), ("adamw", "hogwild")),
    own="muon hogwild",
    rivals={
        "muon serial 1 thread": 1 / 0.58,
        "muon serial 2 threads": 1.0,
        "muon sync by speed": 0.95,
        "adamw hogwild": 1.5,
    },
)
DEFAULT_MODEL = Contest(
    target=Target(1.6, {"muon": 400_000}, options=MINUTE),
    raced=(
        ("muon", "serial 2 threads"),
        ("muon", "sync by speed mlx+torch"),
        ("muon", "hogwild mlx+torch"),
    ),
    own="muon sync by speed mlx+torch",  # what `auto` chooses for equal workers
    rivals={"muon serial 2 threads": 1.3},
)
FREE = {"strategy": "hogwild", "optimizer": "adamw"}


def main():
    """Measure what the flags ask for."""
    parser = flags(__doc__, parts=PARTS, quick="throughput, steps and memory")
    parser.add_argument("--tune", action="store_true", help="search the settings")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="N")
    chosen = parser.parse_args()
    if chosen.tune:
        for contest in (BYTES_MODEL, DEFAULT_MODEL):
            race = Course(contest.target)
            for optimizer in contest.target.tokens:
                race.tune(optimizer, [arm for rule, arm in contest.raced if rule == optimizer])
        return 0
    packages = ("mlx", "torch", "xlstm")
    return measured("speedup", chosen, measure, packages=packages, quiet=True)


def measure(findings, chosen):
    """Measure the parts."""
    findings.seeds = tuple(chosen.seeds)
    for name in chosen.only or smallest(TINY_PARTS, QUICK_PARTS if chosen.quick else PARTS):
        PARTS[name](findings, chosen)


# -- throughput -----------------------------------------------------------------------------------


def ours(workers, threads, seconds):
    """Tokens per second of a mix, all its workers training at once."""
    strategy = "hogwild" if "," in workers or "*" in workers else "serial"
    run = record(
        optimizer="adamw", workers=workers, threads=threads, strategy=strategy, batch_size=8,
        time=seconds,
    )  # fmt: skip
    return run.result.tokens_per_s


@one_of_a_kind
def package_alone(threads, seconds):
    """Tokens per second of the package in one process."""
    program = Program("language_models.xlstm_package", "serial", {"seconds": seconds})
    return float(once(program, threads=threads))


def throughput(findings, chosen):
    """Tokens per second of every mix and of the peer, in turns."""
    seconds, turns = smallest((0.1, 1), (5.0, 2) if chosen.quick else (8.0, 3))
    arms = {
        "torch 1 thread": lambda: ours("torch:cpu", 1, seconds),
        "mlx 1 thread": lambda: ours("mlx:cpu", 1, seconds),
        "torch 2 threads": lambda: ours("torch:cpu", 2, seconds),
        "mlx 2 threads": lambda: ours("mlx:cpu", 2, seconds),
        "torch+torch": lambda: ours(TORCH, 1, seconds),
        "mlx+mlx": lambda: ours(MLX, 1, seconds),
        "mlx+torch": lambda: ours(BOTH, 1, seconds),
        "xlstm package 1 thread": lambda: package_alone(1, seconds),
        "xlstm package 2 threads": lambda: package_alone(2, seconds),
        "xlstm package shared": lambda: xlstm_package.shared(seconds),
    }
    twin = "torch 2 threads"
    rates, again = with_twin(range(turns), arms, lambda name, _: arms[name](), twin=twin)
    findings.same(f"{twin}, tokens per second", rates[twin], again)
    print("\ntokens per second (median, range)")
    for name, values in rates.items():
        print(f"  {name:26} {Sample.of(values).spelt(',.0f')}")
    findings.results["tokens_per_s"] = {name: Sample.of(values) for name, values in rates.items()}
    # Ratios within a turn, so that a slow spell of the machine hits both sides.
    one = {name: rates[f"{name} 1 thread"] for name in ("torch", "mlx")}
    for pair in ("torch+torch", "mlx+mlx", "mlx+torch"):
        a, b = pair.split("+")
        sums = [x + y for x, y in zip(one[a], one[b], strict=True)]
        share = Ratio.of(rates[pair], sums)
        findings.at_least(f"{pair} / sum of its members alone", share, 0.92)
    best = max(("torch+torch", "mlx+mlx", "mlx+torch"), key=lambda name: median(rates[name]))
    for peer, limit in (("xlstm package 2 threads", 1.3), ("xlstm package shared", 1.0)):
        ratio = Ratio.of(rates[best], rates[peer])
        findings.at_least(f"best pair ({best}) / {peer}", ratio, limit)


def step_split(findings, chosen):
    """Shares of a step (`mlxhog.report.shares`)."""
    wide = {"hidden_size": 512, "num_hidden_layers": 6}
    for name, steps, options, limit in (
        ("d 128, 4 blocks", 60, {"batch_size": 8}, 0.10),
        ("d 512, 6 blocks", 6, {"batch_size": 8, "model": model_file(**wide)}, 0.15),
    )[: smallest(1, None)]:
        seeds = smallest(SEEDS[:1], SEEDS[:3] if chosen.quick else SEEDS)
        runs = [record(workers=TORCH, threads=1, steps=steps, seed=n, **FREE, **options)
                for n in seeds]  # fmt: skip
        parts = [shares(map(vars, one.result.workers)) for one in runs]
        print(f"\nstep at {name}: {', '.join(in_words(parts[0]))}")
        findings.results[f"step split, {name}"] = parts
        spent = Mean.of(sum(own[part] for part in ("read", "optimizer", "write")) for own in parts)
        findings.at_most(f"read, optimizer and write, {name}", spent, limit)


def memory(findings, chosen):
    """Proportional set size of worker processes, and what each way of reading costs."""
    model = model_file(hidden_size=smallest(64, 512), num_hidden_layers=smallest(1, 6))
    common = {"model": model, "batch_size": 1, "seq_len": 32, "threads": 1}
    common |= {**FREE, "optimizer": "sgd"}
    parameters = 4 * count_parameters(model)
    ways = {
        "live": {"read": "live", "predict": "none"},
        "snapshot": {"predict": "none"},
        "predicted": {"predict": "own"},
    }

    def sizes(workers, **options):
        runs = range(smallest(1, PSS_REPEATS))
        return [record(workers=workers, steps=40, **common, **options).pss_bytes for _ in runs]

    pss = {f"2 workers, {way}": sizes(TORCH, **options) for way, options in ways.items()}
    for n in (1, 4) if chosen.quick else (1, 4, 8):
        pss[f"{n} workers, live"] = sizes(f"torch:cpu*{n}", **ways["live"])
    print("\nproportional set size of the workers, MB")
    for name, own in pss.items():
        print(f"  {name:20} {median(own) / 1e6:7.0f}")
    findings.results["pss_bytes"] = pss
    findings.results["parameter_bytes"] = parameters
    live = pss["2 workers, live"]
    for way, copies in (("snapshot", 1), ("predicted", 2)):
        pairs = zip(pss[f"2 workers, {way}"], live, strict=True)
        extra = Mean.of((own - least) / 2 / parameters for own, least in pairs)
        findings.at_most(f"{way}: parameter copies per worker", extra, copies + 0.3, timing=False)
    triples = zip(pss["4 workers, live"], live, pss["1 workers, live"], strict=True)
    unseen = smallest(1, 0)  # a tiny run may end before it is seen
    further = Mean.of((four - two) / 2 / max(one, unseen) for four, two, one in triples)
    name = "a further live worker / the first one's memory"
    findings.at_most(name, further, 1.0, timing=False)


def default_command(findings, chosen):
    """`mlxhog train` with no arguments beside the default of 0.2, on the whole held-out text."""
    arms = {
        "mlxhog train": MINUTE,
        "bytes, tiny (0.2)": {},
    }
    watched = {"eval_every": "10s", "sample_every": "30s"}
    seeds = chosen.seeds[:3]
    runs = take_turns(seeds, arms, lambda arm, n: record(**watched, **arms[arm], seed=n).result)
    score = smallest("val_bits_per_byte", "final_bits_per_byte")  # a tiny text is scored at once
    bits = {arm: [getattr(one, score) for one in results] for arm, results in runs.items()}
    ours, before = bits.values()
    print("\nbits per byte after a minute (median, range)")
    for arm, values in bits.items():
        print(f"  {arm:18} {Sample.of(values).spelt('.3f')}")
    findings.results["default command, bits per byte"] = bits
    findings.at_most("mlxhog train, held-out bits per byte", Mean.of(ours), 1.44)
    ratio = Ratio.of(ours, before)
    findings.at_most("mlxhog train / the default of 0.2, bits per byte", ratio, 0.835)
    parts = [shares(map(vars, one.workers)) for one in runs["mlxhog train"]]
    first_s = [one.first_step_s for one in runs["mlxhog train"]]
    findings.results["default command, shares of a step"] = parts
    print(f"a step: {', '.join(in_words(parts[0]))}")
    print(f"first step after {Sample.of(first_s).spelt('.1f')} s")
    spent = Mean.of(one["optimizer"] for one in parts)
    findings.at_most("mlxhog train, share of the optimizer", spent, 0.08)
    findings.at_most("mlxhog train, first step after, s", Mean.of(first_s), 4.0)


# -- time to a loss -------------------------------------------------------------------------------


def time_to_loss(contest, findings, chosen):
    """Seconds of training until held-out bits per byte fall to a target, for every arm."""
    contest.target.check(contest.raced)
    target, own = contest.target, contest.own
    course, name = Course(target), f"to {target.bits:g}"
    twin = next(one for one in contest.raced if "serial" in one[1])
    race = Race(
        {name: contest.raced}, chosen.seeds, lambda _, one, seed: course.seconds(*one[::-1], seed)
    )
    (runs,), (again,) = (list(table.values()) for table in race.run(twin=twin))
    times = {" ".join(one): seconds for one, seconds in runs.items()}
    findings.same(f"{' '.join(twin)}, seconds to {target.bits}", runs[twin], again)
    print(f"\nseconds to {target.bits} bits per byte (median, range)")
    for name, values in times.items():
        line = f"  {name:32} {Sample.of(values).spelt('.1f')}"
        print(line + ("" if name == own else f"   {Ratio.of(values, times[own])}"))
    print(f"  (behind each: how many times sooner {own} is)")
    findings.results[f"seconds to {target.bits}, by seed"] = times
    for rival, least in contest.rivals.items():
        sooner = Ratio.of(times[rival], times[own])
        findings.at_least(f"{rival} / {own}, to {target.bits}", sooner, least)


PARTS = {
    "throughput": throughput,
    "steps": step_split,
    "memory": memory,
    "command": default_command,
    "loss": partial(time_to_loss, BYTES_MODEL),
    "default-loss": partial(time_to_loss, DEFAULT_MODEL),
}
QUICK_PARTS = ("throughput", "steps", "memory")
TINY_PARTS = (*QUICK_PARTS, "command")  # `unequal_workers.py` races to a loss

if __name__ == "__main__":
    raise SystemExit(main())
