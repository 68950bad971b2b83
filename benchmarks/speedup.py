"""Tokens per second of small worker mixes and of presets, and the parts of a step.

    python benchmarks/speedup.py                        minutes
    python benchmarks/speedup.py --quick                fewer turns
    python benchmarks/speedup.py --only preset_speed    of speedup (mixes, parts of a step) and this

Model: xLSTM d 128, 4 blocks, 4 heads, bytes of the corpus sotu, S 256, B 8. Mixes take turns;
numbers are medians over turns. Presets train as `mlxhog train --model NAME` does, on the bundled
corpus. Parts of a step are those that a run reports, with AdamW and with
Muon; what a GPU worker dispatches is `python -m tools.counts`. Who reaches a loss sooner is
in `schemes.py`, what a minute gives in `peers.py`.
"""

import numpy as np
from harness.estimates import Mean, Ratio
from harness.frame import run
from harness.interleaved import take_turns, with_control
from harness.machine import smallest
from training.recording import model_file, record

from mlxhog.display.metrics import format_parts
from mlxhog.progress import shares

PRESETS = ("tiny", "minute", "minute-ngrams", "5m", "10m", "30m", "60m")
BACKENDS = ("torch", "mlx")
PAIRS = {"torch+torch": "torch:cpu*2", "mlx+mlx": "mlx:cpu*2", "mlx+torch": "mlx:cpu,torch:cpu"}
SIZES = {128: (60, 4, 0.10, 0.15), 512: (6, 6, 0.15, 0.15)}
"""Width -> steps, blocks, and the largest share of all but the gradient: with AdamW, with Muon."""


def throughput(findings, chosen):
    """Tokens per second of every mix, in turns."""
    seconds, turns = smallest((0.1, 1), (5.0, 2) if chosen.quick else (8.0, 3))
    alone = {f"{one} {n} thread{'s' * (n > 1)}": (f"{one}:cpu", n)
             for one in BACKENDS for n in (1, 2)}  # fmt: skip
    mixes = {**alone, **{name: (workers, 1) for name, workers in PAIRS.items()}}

    def rate(name, _):
        workers, threads = mixes[name]
        return record(
            optimizer="adamw", workers=workers, threads=threads, batch_size=8, time=seconds,
            strategy="hogwild" if name in PAIRS else "serial",
        ).result.tokens_per_s  # fmt: skip

    control = "torch 2 threads"
    rates, again = with_control(range(turns), mixes, rate, control=control)
    findings.same(f"{control}, tokens per second", rates[control], again)
    findings.table(
        {"mix": name, "tokens per second": Mean.of(values).spelt(",.0f")}
        for name, values in rates.items()
    )
    for pair in PAIRS:  # ratios within a turn, so that a slow spell of the machine hits both sides
        a, b = (rates[f"{one} 1 thread"] for one in pair.split("+"))
        share = Ratio.of(rates[pair], [x + y for x, y in zip(a, b, strict=True)])
        findings.at_least(f"{pair} / sum of its members alone", share, 0.92)


def steps(findings, chosen):
    """Shares of a step (`mlxhog.progress.shares`)."""
    for width, (n, blocks, *limits) in list(SIZES.items())[: smallest(1, None)]:
        model = model_file(hidden_size=width, num_hidden_layers=blocks)
        for optimizer, most in zip(("adamw", "muon"), limits, strict=True):
            parts = []
            for seed in range(1, 1 + smallest(1, 3 if chosen.quick else 5)):
                result = record(
                    seed=seed, model=model, workers=PAIRS["torch+torch"], threads=1, steps=n,
                    batch_size=8, strategy="hogwild", optimizer=optimizer,
                ).result  # fmt: skip
                parts.append(shares(map(vars, result.workers)))
            name = f"d {width}, {blocks} blocks, {optimizer}"
            print(f"\nstep at {name}: {', '.join(format_parts(parts[0]))}")
            findings.results[f"step split, {name}"] = parts
            other = (sum(own[part] for part in ("read", "optimizer", "write")) for own in parts)
            findings.at_most(f"read, optimizer and write, {name}", Mean.of(other), most)


def speedup(findings, chosen):
    """The mixes, and the parts of a step."""
    throughput(findings, chosen)
    steps(findings, chosen)


def preset_speed(findings, chosen):
    """Tokens per second of `mlxhog train --model NAME`."""
    seconds, turns = smallest((0.1, 1), (10, 2) if chosen.quick else (20, 3))
    names = smallest(PRESETS[:1], PRESETS)

    def rate(name, _):
        return record(
            model=name, tokenizer="auto", workers="auto", batch_size=4, time=seconds,
        ).result.tokens_per_s  # fmt: skip

    rates = take_turns(range(turns), names, rate)
    findings.table(
        {"preset": name, "tokens per second": round(float(np.median(values)))}
        for name, values in rates.items()
    )


if __name__ == "__main__":
    modes = {"quick": "fewer turns"}
    parts = {"speedup": speedup, "preset_speed": preset_speed}
    run(__doc__, parts, modes=modes, packages=("mlx", "torch"), quiet=True)
