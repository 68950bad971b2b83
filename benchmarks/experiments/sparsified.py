"""Sparsified training: what sparse steps cost in loss, and whether they meet less.

Six ways to write, with the same model, data, steps and two lock-free workers: everything; the
largest 10 % and 1 % of each step with error feedback, and 1 % without; what has reached twice the
step size; a head of which only the batch's words and 256 drawn ones are trained; and workers that
hold disjoint blocks. Each with its best recorded step size (`--tune`).
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from experiment.figures import INKS, Figure, new_panels
from experiment.record import (
    FAILS,
    HOLDS,
    PARTLY,
    Compared,
    Experiment,
    Outcome,
    Scale,
    run,
    say,
    told,
)
from experiment.searches import is_recorded, recorded, write_recorded
from harness.claims import Claim, Sample
from training.sparse_writing import Lane, in_turns, lost_share

from mlxhog import TrainConfig, train
from mlxhog.theory.supports import Estimate, Supports, estimate_delta, estimate_omega, estimate_rho

BUDGET = {"order": 100, "quick_s": 55, "full_s": 1200}
ABOUT = Experiment(
    name="sparsified",
    title="Sparsified training: error feedback, sampled heads, disjoint blocks",
    source="document 002, Open Problems; document 001, sparsity of xLSTM and of 7:1 models",
    about=__doc__.partition("\n\n")[2].strip(),
    packages=("torch",),
)

MODEL = """
model_type: xlstm_v1
vocab_size: 2048
embedding_dim: 128
num_blocks: 4
slstm_at: [1]
mlstm_block: {mlstm: {num_heads: 4}}
slstm_block: {slstm: {num_heads: 4}}
context_length: 128
reset_at_document_boundaries: true
bos_token_id: 2000
"""
DENSE, DISJOINT = "everything", "disjoint blocks"
WAYS: dict[str, dict[str, Any]] = {
    DENSE: {},
    "top 10 %": {"sparsify": "topk:0.1"},
    "top 1 %": {"sparsify": "topk:0.01"},
    "top 1 %, rest dropped": {"sparsify": "topk:0.01", "error_feedback": False},
    "threshold 2 lr": {"sparsify": "threshold:2"},
    "sampled head": {"sampled_head": 256},
    DISJOINT: {"blocks": "disjoint", "rotate_every": 25},
}
SMALLEST = 1e-3
SETTLING = 20  # steps until a residual has its usual size
NOISE = 0.15  # nats per token: the most that two runs here differed by their races alone
OVERHEAD = 2.0  # of a sparsified step's CPU time over a dense one's, at most


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    steps: int
    supports: int
    timed: int
    held_out: int
    replay: int


def size_of(scale: Scale) -> Size:
    """The size of a mode."""
    return scale.pick(
        tiny=Size(steps=12, supports=4, timed=2, held_out=2048, replay=20),
        quick=Size(steps=300, supports=20, timed=16, held_out=16_384, replay=400),
        full=Size(steps=2000, supports=96, timed=60, held_out=131_072, replay=4000),
    )


@dataclass(frozen=True)
class Measured:
    """What one way of writing gives.

    Attributes:
        loss: nats per token of held-out text after training, of each seed.
        mean_elements: that an update writes.
        omega, rho, delta: of the updates of both workers.
        p_conf: share of the pairs of updates, one of each worker, that write a common element.
        overlap: share of what an update writes that an update of the other worker writes, too.
        lost: share of the adds that are lost where both write all the time, without locks.
        gradient_ms, write_ms: CPU time of the parts of a step.
        tokens_per_s: of the run, both workers.
    """

    loss: list[float]
    mean_elements: float
    omega: Estimate
    rho: Estimate
    delta: Estimate
    p_conf: float
    overlap: float
    lost: float
    gradient_ms: Sample
    write_ms: Sample
    tokens_per_s: float


def config(folder: Path, way: str, *, steps: int, seed: int, lr: float) -> TrainConfig:
    """A run of two lock-free workers that write in one of the ways."""
    model = folder / "model.yaml"
    model.write_text(MODEL)
    return TrainConfig(
        model=str(model),
        tokenizer="bpe:2000",
        seq_len=128,
        batch_size=2,
        workers="torch:cpu*2",
        threads=1,
        steps=steps,
        strategy="hogwild",
        optimizer="adamw",
        lr=lr,
        seed=seed,
        out=str(folder / "runs"),
        eval_every="off",
        sample_every="off",
        save_every="off",
        **WAYS[way],
    )


def trained(options: TrainConfig) -> tuple[Path, float]:
    """Train; returns the checkpoint and the tokens per second of both workers."""
    result = train(options, observer=None)
    assert result.status == "done", result.error
    assert result.checkpoint is not None
    return Path(result.checkpoint), result.tokens_per_s


def measured(lane: Lane, size: Size, losses: list[float], tokens_per_s: float) -> Measured:
    """Supports of both workers, and what is lost where they write without locks."""
    bits = [np.stack(lane.supports(size.supports, SETTLING, worker)) for worker in (0, 1)]
    first, second = (Supports(part, lane.layout.n_floats) for part in bits)
    both = Supports(np.concatenate(bits), lane.layout.n_floats)
    common = float((first.counts.astype(float) * second.counts).sum())
    return Measured(
        loss=losses,
        mean_elements=float(both.sizes().mean()),
        omega=estimate_omega(both),
        rho=estimate_rho(both),
        delta=estimate_delta(both),
        p_conf=float(np.mean(first.meetings(second) / len(second))),
        overlap=common / (len(second) * float(first.counts.sum())),
        lost=lost_share(lane.layout, bits, size.replay),
        gradient_ms=Sample.of([1e3 * x for x in lane.times.gradient]),
        write_ms=Sample.of([1e3 * x for x in lane.times.write]),
        tokens_per_s=tokens_per_s,
    )


def result(scale: Scale) -> Outcome:
    """Train in every way, then measure all ways in turns."""
    size, step_sizes = size_of(scale), recorded(ABOUT.name)["lr"]
    folder = Path(tempfile.mkdtemp(prefix="mlxhog-sparsified-"))
    lanes: dict[str, Lane] = {}
    losses: dict[str, list[float]] = {way: [] for way in WAYS}
    speeds: dict[str, float] = {}
    try:
        for seed in scale.seeds:
            for way in WAYS:
                options = config(folder, way, steps=size.steps, seed=seed, lr=step_sizes[way])
                saved, speeds[way] = trained(options)
                lane = Lane(options, saved)
                losses[way].append(lane.loss(size.held_out))
                say(f"seed {seed}  {way}: {losses[way][-1]:.4f} nats per token")
                if seed == scale.seeds[-1]:
                    lanes[way] = lane
                else:
                    lane.close()
        in_turns(list(lanes.values()), size.timed)
        ways = {way: measured(lane, size, losses[way], speeds[way]) for way, lane in lanes.items()}
        n = sum(slot.size for slot in lanes[DENSE].layout.slots.values())
    finally:
        for lane in lanes.values():
            lane.close()
        shutil.rmtree(folder)
    return Outcome(
        compared=compared(ways, n),
        table=[row(way, one, n) for way, one in ways.items()],
        claims=claims(ways),
        settings={
            "model": MODEL,
            "parameters": n,
            "lr": step_sizes,
            "ways": WAYS,
            "workers": "torch:cpu*2",
            "settling_steps": SETTLING,
            **asdict(size),
        },
        results={way: asdict(one) for way, one in ways.items()},
    )


def row(way: str, one: Measured, n: int) -> dict[str, Any]:
    """A row of the table."""
    return {
        "way": way,
        "loss": float(np.mean(one.loss)),
        "Omega": int(one.omega.value),
        "Omega/n": one.omega.value / n,
        "rho >=": one.rho.value,
        "Delta": one.delta.value,
        "p_conf": one.p_conf,
        "overlap": one.overlap,
        "lost": one.lost,
        "gradient ms": one.gradient_ms.median,
        "write ms": one.write_ms.median,
    }


def compared(ways: dict[str, Measured], n: int) -> list[Compared]:
    """The documents' claims beside what was measured."""
    dense, one = ways[DENSE], ways["top 1 %"]
    apart, sampled = ways[DISJOINT], ways["sampled head"]
    less = one.overlap < 0.5 * dense.overlap
    cost = {way: float(np.mean(it.loss) - np.mean(dense.loss)) for way, it in ways.items()}
    return [
        Compared(
            claim="xLSTM training touches about 4 % of the parameters per example (Omega ~ 0.04)",
            measured=f"an update writes {dense.mean_elements / n:.1%} of the parameters; with a "
            f"sampled head {sampled.mean_elements / n:.1%}",
            verdict=told(dense.mean_elements < 0.08 * n),
            timing=False,
        ),
        Compared(
            claim="Hogwild on dense problems: make the updates sparse (open problem)",
            measured=f"1 % of each step written: Omega {one.omega.value:,.0f} of {n:,}, and "
            f"{one.overlap:.1%} of what an update writes is written by the other worker's, too "
            f"(dense {dense.overlap:.1%}); but any two updates still meet somewhere: p_conf "
            f"{one.p_conf:.3f}",
            verdict=HOLDS if one.p_conf < 0.5 else PARTLY if less else FAILS,
            timing=False,
        ),
        Compared(
            claim="a fundamental trade-off, sparsity against learning quality (open problem)",
            measured=f"nats per token beside dense training at equal steps: 10 % "
            f"{cost['top 10 %']:+.3f}, 1 % {cost['top 1 %']:+.3f}, 1 % without error feedback "
            f"{cost['top 1 %, rest dropped']:+.3f}",
            verdict=told(cost["top 1 %"] > max(NOISE, cost["top 10 %"])),
            timing=False,
        ),
        Compared(
            claim="mLSTM and sLSTM have disjoint parameters: train the blocks in parallel",
            measured=f"p_conf between two workers {apart.p_conf:.3f} and nothing lost without "
            f"locks ({apart.lost:.1e} of all adds, dense {dense.lost:.1e}), for "
            f"{cost[DISJOINT]:+.3f} nats per token at equal steps, as each writes a part of its "
            "gradient",
            verdict=told(apart.p_conf == 0),
            timing=False,
        ),
    ]


def claims(ways: dict[str, Measured]) -> list[Claim]:
    """Our own limits."""
    dense, one = ways[DENSE], ways["top 1 %"]

    def step_ms(it: Measured) -> float:
        return it.gradient_ms.median + it.write_ms.median

    return [
        Claim("p_conf of disjoint blocks", ways[DISJOINT].p_conf, "==", 0.0, timing=False),
        Claim(
            "lost without locks, disjoint blocks",
            ways[DISJOINT].lost,
            "==",
            0.0,
            timing=False,
        ),
        Claim("Omega of top 1 % / dense", one.omega.value / dense.omega.value, "<=", 0.012, False),
        Claim("CPU time of a step, top 1 % / dense", step_ms(one) / step_ms(dense), "<=", OVERHEAD),
    ]


def tune() -> None:
    """Search the step size of each way, at the quick size, and record it; go on with a search."""
    size = size_of(Scale("quick"))
    losses: dict[str, dict[str, float]] = (
        recorded(ABOUT.name)["searched"] if is_recorded(ABOUT.name) else {}
    )
    folder = Path(tempfile.mkdtemp(prefix="mlxhog-sparsified-"))
    try:
        for way in WAYS:
            tried = losses.setdefault(way, {})
            while (lr := next_lr(tried)) is not None:
                options = config(folder, way, steps=size.steps, seed=1, lr=lr)
                saved, _ = trained(options)
                lane = Lane(options, saved)
                tried[str(lr)] = lane.loss(size.held_out)
                lane.close()
                say(f"{way}  lr {lr:g}: {tried[str(lr)]:.4f}")
            best = {way: float(min(each, key=lambda lr: each[lr])) for way, each in losses.items()}
            write_recorded(ABOUT.name, {"lr": best, "searched": losses, "steps": size.steps})
    finally:
        shutil.rmtree(folder)


def next_lr(tried: dict[str, float]) -> float | None:
    """The smallest step size, then twice the largest as long as the loss falls."""
    if not tried:
        return SMALLEST
    largest = max(tried, key=float)
    return 2 * float(largest) if tried[largest] <= min(tried.values()) else None


def draw(outcome: Outcome) -> Figure:
    """Loss against what is written, and against how much of it the other worker writes, too."""
    figure, (left, right) = new_panels(
        ("elements an update writes", "nats per token", "Loss at equal steps"),
        ("share that the other worker writes, too", "", "Loss and overlap"),
    )
    for number, (way, one) in enumerate(outcome.results.items()):
        loss, ink = float(np.mean(one["loss"])), INKS[number % len(INKS)]
        left.plot(one["mean_elements"], loss, "o", color=ink, label=way)
        right.plot(one["overlap"], loss, "o", color=ink, label=way)
    left.set_xscale("log")
    left.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw, tune=tune))
