"""Training speed of small worker mixes: tokens per second, a step's parts, a minute.

    python benchmarks/speedup.py                      half an hour
    python benchmarks/speedup.py --quick              throughput and steps, minutes
    python benchmarks/speedup.py --only command       some of: throughput steps command

Model: xLSTM d 128, 4 blocks, 4 heads, bytes of the corpus sotu, S 256. Throughput is at B 8 beside
the xlstm package (its xLSTMLarge with native kernels and AdamW): one process with one and two
threads, and two processes that share the model by `share_memory()` with plain in-place adds.
`command` trains what `mlxhog train` trains without options. All variants take turns; numbers are
medians over turns or seeds. Who reaches a loss sooner is in `schemes.py`.
"""

from statistics import median

from harness.claims import Sample
from harness.estimates import Mean, Ratio
from harness.frame import flags, measured
from harness.interleaved import Program, once, with_twin
from harness.machine import one_of_a_kind, smallest
from language_models.peers import package_shared
from training.recording import model_file, record

from mlxhog.report.shares import in_words, shares

TORCH, MLX, BOTH = "torch:cpu*2", "mlx:cpu*2", "mlx:cpu,torch:cpu"
SEEDS = (1, 2, 3, 4, 5)
FREE = {"strategy": "hogwild", "optimizer": "adamw"}


def ours(workers, threads, seconds):
    """Tokens per second of a mix, all its workers training at once."""
    strategy = "hogwild" if "," in workers or "*" in workers else "serial"
    return record(
        optimizer="adamw", workers=workers, threads=threads, strategy=strategy, batch_size=8,
        time=seconds,
    ).result.tokens_per_s  # fmt: skip


@one_of_a_kind
def package_alone(threads, seconds):
    """Tokens per second of the package in one process."""
    program = Program("language_models.peers", "package_alone", {"seconds": seconds})
    return float(once(program, threads=threads))


def throughput(findings, chosen):
    """Tokens per second of every mix and of the peer, in turns."""
    seconds, turns = smallest((0.1, 1), (5.0, 2) if chosen.quick else (8.0, 3))
    mixes = {
        **{f"{one} {n} thread{'s' * (n > 1)}": (f"{one}:cpu", n)
           for one in ("torch", "mlx") for n in (1, 2)},
        "torch+torch": (TORCH, 1), "mlx+mlx": (MLX, 1), "mlx+torch": (BOTH, 1),
    }  # fmt: skip
    peers = {
        "xlstm package 1 thread": lambda: package_alone(1, seconds),
        "xlstm package 2 threads": lambda: package_alone(2, seconds),
        "xlstm package shared": lambda: package_shared(seconds),
    }

    def rate(name, _):
        return ours(*mixes[name], seconds) if name in mixes else peers[name]()

    twin, pairs = "torch 2 threads", ("torch+torch", "mlx+mlx", "mlx+torch")
    rates, again = with_twin(range(turns), [*mixes, *peers], rate, twin=twin)
    findings.same(f"{twin}, tokens per second", rates[twin], again)
    findings.table(
        {"mix": name, "tokens per second": Sample.of(values).spelt(",.0f")}
        for name, values in rates.items()
    )
    for pair in pairs:  # ratios within a turn, so that a slow spell of the machine hits both sides
        a, b = (rates[f"{one} 1 thread"] for one in pair.split("+"))
        share = Ratio.of(rates[pair], [x + y for x, y in zip(a, b, strict=True)])
        findings.at_least(f"{pair} / sum of its members alone", share, 0.92)
    best = max(pairs, key=lambda name: median(rates[name]))
    for peer, limit in (("xlstm package 2 threads", 1.3), ("xlstm package shared", 1.0)):
        ratio = Ratio.of(rates[best], rates[peer])
        findings.at_least(f"best pair ({best}) / {peer}", ratio, limit)


def steps(findings, chosen):
    """Shares of a step (`mlxhog.report.shares`)."""
    wide = model_file(hidden_size=512, num_hidden_layers=6)
    sizes = (("d 128, 4 blocks", 60, {}, 0.10), ("d 512, 6 blocks", 6, {"model": wide}, 0.15))
    for name, n, options, limit in sizes[: smallest(1, None)]:
        seeds = smallest(SEEDS[:1], SEEDS[:3] if chosen.quick else SEEDS)
        common = {"workers": TORCH, "threads": 1, "steps": n, "batch_size": 8, **FREE, **options}
        runs = [record(seed=seed, **common) for seed in seeds]
        parts = [shares(map(vars, one.result.workers)) for one in runs]
        print(f"\nstep at {name}: {', '.join(in_words(parts[0]))}")
        findings.results[f"step split, {name}"] = parts
        spent = Mean.of(sum(own[part] for part in ("read", "optimizer", "write")) for own in parts)
        findings.at_most(f"read, optimizer and write, {name}", spent, limit)


def command(findings, chosen):
    """`mlxhog train` with no arguments, on the whole held-out text."""
    watched = {"eval_every": "10s", "sample_every": "30s", "model": "minute", "tokenizer": "auto"}
    runs = [record(**watched, seed=seed).result for seed in SEEDS[: smallest(1, 3)]]
    score = smallest("val_bits_per_byte", "final_bits_per_byte")  # a tiny text is scored at once
    bits = [getattr(one, score) for one in runs]
    parts = [shares(map(vars, one.workers)) for one in runs]
    first_s = [one.first_step_s for one in runs]
    findings.results |= {"default command, bits per byte": bits, "shares of a step": parts}
    findings.at_most("mlxhog train, held-out bits per byte", Mean.of(bits), 1.44)
    spent = Mean.of(one["optimizer"] for one in parts)
    findings.at_most("mlxhog train, share of the optimizer", spent, 0.08)
    findings.at_most("mlxhog train, first step after, s", Mean.of(first_s), 4.0)


PARTS = {one.__name__: one for one in (throughput, steps, command)}


def main():
    """Measure what the flags ask for."""
    chosen = flags(__doc__, parts=PARTS, quick="throughput and steps").parse_args()

    def measure(findings, _):
        quick = chosen.quick and not chosen.tiny
        for name in chosen.only or list(PARTS)[: 2 if quick else None]:
            PARTS[name](findings, chosen)

    packages = ("mlx", "torch", "xlstm")
    return measured("speedup", chosen, measure, packages=packages, quiet=True)


if __name__ == "__main__":
    raise SystemExit(main())
