"""The memory of a gradient: what a token takes, and whether the plan's number is right.

    python benchmarks/memory.py --quick    eager MLX by architecture; a large model by kernels
    python benchmarks/memory.py --full     every framework and kernel variant by architecture
    python benchmarks/memory.py --only recompute_time    what recomputation costs

Each gradient of one sequence is computed in a process of its own, at two lengths. Measured is its
peak above what exists before it: MLX's own count where MLX allocates everything, else resident
memory. The slope between the lengths is the memory of a token; the error is that of the plan's
number (gradients and activations, without snapshots). Resident memory of a small model is mostly
the libraries', so an error counts above 6 MB of difference only.

`recompute_time` lets gradients of the large model with and without recomputed blocks take turns.
"""

import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from harness.estimates import Mean, Ratio
from harness.frame import run, say
from harness.interleaved import Program, in_turns
from harness.machine import resident, smallest

from mlxhog import arena, backends
from mlxhog.data.batch import Batch
from mlxhog.models import activations, families
from mlxhog.models.registry import load_architecture

MAD = "hidden_size=256,vocab_size=320"
ARCHITECTURES = {
    "5m": "", "10m": "", "30m": "", "5m-v1": "", "minute": "", "mlstm swiglu mlstm swiglu": MAD,
    "mh-attention swiglu mh-attention swiglu": MAD, "gated-delta-net swiglu gla swiglu": MAD,
}  # fmt: skip
VARIANTS = (("mlx:cpu", "eager"), ("torch:cpu", "eager"), ("mlx:cpu", "native"),
            ("torch:cpu", "native"))  # fmt: skip
"""The first is measured with --quick, too, and judged: its peaks repeat exactly."""

LARGE, LARGE_CHANGES, LARGE_LENGTHS = "160m", "vocab_size=50304", (512, 2048)
LARGE_ARMS = (("torch:cpu", "native"), ("mlx:cpu", "native"), ("mlx:cpu", "eager"))
OPTIONS = (("float32", "none"), ("float32", "blocks"), ("bfloat16", "none"), ("bfloat16", "blocks"))
"""Pairs of --dtype and --recompute that the large model is measured with, one after the other."""
MAX_MB = {"native": 0.2, "eager": 0.25}
"""Largest memory of a token with bfloat16 and recomputed blocks, by kernels."""

MAX_ERROR = 0.15


@dataclass(frozen=True)
class Arm:
    """One gradient: of which model, and how it is computed."""

    model: str
    changes: str  # of `--set`
    backend: str
    kernels: str
    dtype: str = "float32"
    recompute: str = "none"
    length: int = 256


TIMED = (
    Arm(LARGE, LARGE_CHANGES, "torch:cpu", "native", "bfloat16", length=2048),
    Arm(LARGE, LARGE_CHANGES, "mlx:cpu", "native", "bfloat16", length=2048),
    Arm("5m", "", "mlx:cpu", "eager"),  # of the large one it takes minutes on a CPU
)
MAX_TIME = 1.4
"""Most seconds of a gradient with recomputed blocks, by those of one without."""


def peak_bytes(arm):
    """Bytes that a gradient takes at its peak above all that exists before it."""
    backend = create(arm, threads=1)
    warm = load_architecture("tiny", "hidden_size=16,num_hidden_layers=1")  # loads libraries
    bind(backend, warm)
    backend.loss_and_grads(batch(warm, 8))
    model = load_architecture(arm.model, arm.changes or None)
    bind(backend, model, arm.recompute)
    sample = batch(model, arm.length)
    gc.collect()
    if arm.backend == "mlx:cpu" and arm.kernels != "native":
        import mlx.core as mx

        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        backend.loss_and_grads(sample)
        return mx.get_peak_memory() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory begins anew
    before, _ = resident()
    backend.loss_and_grads(sample)
    return resident()[1] - before


def create(arm, threads):
    return backends.create(arm.backend, threads=threads, kernels=arm.kernels, dtype=arm.dtype)


def bind(backend, model, recompute="none"):
    layout = arena.plan(families.param_spec(model), max_workers=1, n_tickets=1)
    backend.bind(model, layout, recompute=recompute == "blocks")
    noise = np.random.default_rng(0).normal(0.0, 0.02, 1 << 16).astype(np.float32)
    backend.param_buffer[:] = np.resize(noise, len(backend.param_buffer))
    backend.refresh()


def batch(model, length):
    tokens = np.random.default_rng(1).integers(0, model.vocab_size, (1, length + 1), np.int32)
    return Batch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), n_bytes=0)


def in_a_process(arm):
    """Bytes of `peak_bytes`, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_bytes, arm).result()


def planned_bytes(arm):
    """Bytes of the gradient by the plan's count."""
    model = load_architecture(arm.model, arm.changes or None)
    how = {"length": arm.length, "dtype": arm.dtype, "recompute": arm.recompute}
    kept = activations.activations(model, arm.backend.partition(":")[0], arm.kernels, **how)
    return kept.peak(arm.length)


def rows_of(arms, lengths):
    """The rows of arms, two at a time: a peak is of its own process, so they do not disturb."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda arm: row_of(arm, lengths), arms))


def row_of(arm, lengths):
    """Measure an arm at two lengths: a row of the table."""
    say(f"{arm.backend} {arm.kernels}: {arm.model}, {arm.dtype}, recompute {arm.recompute}")
    lengths = smallest((8, 16), lengths)
    arms = [replace(arm, length=length) for length in lengths]
    peaks = [in_a_process(one) for one in arms]
    plans = list(map(planned_bytes, arms))
    own = {name: value for name, value in asdict(arm).items() if name != "length"}
    noise = 0 if (arm.backend, arm.kernels) == VARIANTS[0] else 6e6
    return own | {
        "lengths": lengths, "bytes": peaks, "plan": plans,
        "KB a token": (peaks[1] - peaks[0]) / (lengths[1] - lengths[0]) / 1e3,
        "error": max(abs(p - y) / (y + noise) for p, y in zip(plans, peaks, strict=True)),
    }  # fmt: skip


def measure(findings, chosen):
    """Measure, print, claim."""
    for backend, kernels in VARIANTS[: 1 if chosen.quick else None]:
        architectures = list(ARCHITECTURES.items())[: smallest(1, None)]
        arms = [Arm(model, changes, backend, kernels) for model, changes in architectures]
        rows = rows_of(arms, (256, 512))
        findings.table(rows)
        name = f"{backend}, {kernels}: largest error of the plan"
        worst = max(row["error"] for row in rows)
        findings.at_most(name, worst, MAX_ERROR, timing=False)
    for backend, kernels in LARGE_ARMS:
        large = Arm(smallest("tiny", LARGE), LARGE_CHANGES, backend, kernels)
        arms = [replace(large, dtype=dtype, recompute=recompute) for dtype, recompute in OPTIONS]
        rows = rows_of(arms, LARGE_LENGTHS)
        findings.table(
            [row | {"of none": row["KB a token"] / rows[0]["KB a token"]} for row in rows]
        )
        name = f"{LARGE}, {backend}, {kernels}, bfloat16, recomputed blocks: MB a token"
        findings.at_most(name, rows[-1]["KB a token"] / 1e3, MAX_MB[kernels], timing=False)


def gradient_step(*, arm, threads):
    """A step of `in_turns`: one gradient."""
    backend, model = create(arm, threads), load_architecture(arm.model, arm.changes)
    bind(backend, model, arm.recompute)
    sample = batch(model, smallest(8, arm.length))

    def step():
        backend.loss_and_grads(sample)

    return step


def recompute_time(findings, chosen):
    """The seconds of a gradient with recomputed blocks, by those of one without."""
    for arm in TIMED:
        name = f"{arm.model}, {arm.backend}, {arm.kernels}, {arm.dtype}, {arm.length} tokens"
        say(name)
        arm = replace(arm, model=smallest("tiny", arm.model))
        programs = {
            how: Program("memory", "gradient_step", {"arm": replace(arm, recompute=how)})
            for how in ("none", "blocks")
        }
        seconds, again = in_turns(programs, threads=2, turns=9, seconds=0.5)
        findings.same(f"{name}: none", seconds["none"], again)
        findings.table([{"row": name, **{how: Mean.of(own) for how, own in seconds.items()}}])
        ratio = Ratio.of(seconds["blocks"], seconds["none"])
        findings.at_most(f"{name}: seconds with recomputed blocks / none", ratio, MAX_TIME)


RESULTS = {"memory": measure, "recompute_time": recompute_time}

if __name__ == "__main__":
    run(__doc__, RESULTS, packages=("mlx", "torch"))
