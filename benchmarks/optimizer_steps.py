"""The cost of an optimizer's step beside the gradient it moves, and the size of its state.

    python benchmarks/optimizer_steps.py            a quarter of an hour, one thread
    python benchmarks/optimizer_steps.py --quick    under five minutes

xLSTM Large of width 128 and 512, four blocks, bytes. Gradients of 512 and of 2,048 tokens, which
include reading the shared parameters and the norm, and steps take turns in one process, so that
drift hits all alike. The share is that of the step in gradient and step together; of SOAP the mean
step counts, since every tenth refreshes the bases. State is what a worker keeps in the arena.

Beside the times stands what bounds them: the operations of the orthogonalisation, with one triangle
of every symmetric product, over the speed of our own matrix product at that size.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from harness.claims import Findings, Sample, flags, measured
from harness.estimates import Mean
from harness.machine import cores, pin, smallest, unpin
from language_models.ours import large
from language_models.sizes import LargeSize

from mlxhog import _native, arena, backends, optim
from mlxhog.arena import Arena
from mlxhog.config.config import TrainConfig
from mlxhog.data.batch import Batch
from mlxhog.models import families
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.optim import Muon, Optimizer, Target, gradients, updates
from mlxhog.optim.muon import ORTHOGONALIZATIONS, operations
from mlxhog.optim.rule import new_state

SEQ = 256
TOKENS = {512: 0.15, 2048: 0.05}
"""Tokens of a gradient, and the largest share of a Muon step that is aimed at."""
ROUNDS = {128: (40, 12), 512: (12, 4)}
"""Width -> turns, in full and with --quick."""
KINDS = {
    "adamw": TrainConfig(optimizer="adamw"),
    "muon": TrainConfig(optimizer="muon", moments="private"),
    "muon, float32": TrainConfig(optimizer="muon", moments="private"),
    "muon, ns5": TrainConfig(optimizer="muon", moments="private", orthogonalization="ns5"),
    "lion": TrainConfig(optimizer="lion"),
    "adan": TrainConfig(optimizer="adan"),
    "apollo": TrainConfig(optimizer="apollo"),
    "apollo-mini": TrainConfig(optimizer="apollo-mini"),
    "soap": TrainConfig(optimizer="soap"),
}
MINI_STATE = 0.02
"""Largest part of AdamW's state of the hidden matrices that APOLLO-Mini may keep."""


class Bench:
    """A model, its arena, a backend with one thread, and one optimizer of each kind."""

    def __init__(self, d: int) -> None:
        """Build everything, and take each step once."""
        size = LargeSize(d=d, blocks=4, heads=4, vocab=320, batch=2, seq=SEQ)
        self.model: XLSTMLargeConfig = large(size)
        spec = families.param_spec(self.model)
        layout = arena.plan(spec, max_workers=1, n_tickets=1)
        self.arena = Arena.create(layout)
        for name, value in families.init_params(self.model, seed=0).items():
            self.arena.param(name)[...] = value
        hidden = families.hidden_matrices(self.model)
        self.optimizers: dict[str, Optimizer] = {
            name: optim.build(config, hidden) for name, config in KINDS.items()
        }
        base = Target(
            flat=self.arena.params,
            slots=layout.slots,
            locks=self.arena.locks(1),
            mode=updates.WRITE_MODES[self.arena.write],
            private={},
            shared={},
            decay=frozenset(name for name, one in spec.items() if one.decay),
        )
        shapes = {name: one.shape for name, one in spec.items()}
        self.targets = {}
        for name, rule in self.optimizers.items():
            own = rule.state_shapes(shapes)
            private, places = new_state(rule.state_segments, own, layout.n_floats)
            self.targets[name] = replace(base, private=private, places=places)
        self.backend = backends.create("torch:cpu", threads=1, kernels="auto", cpu_blas="auto")
        self.backend.bind(self.model, layout.slots, layout.n_floats, None)
        rng = np.random.default_rng(0)
        self.batches = {}
        for tokens in TOKENS:
            drawn = rng.integers(0, 256, (tokens // SEQ, SEQ + 1)).astype(np.int32)
            x, y = np.ascontiguousarray(drawn[:, :-1]), np.ascontiguousarray(drawn[:, 1:])
            self.batches[tokens] = Batch(x, y, n_bytes=0)
        self.grads: Any = None
        self.steps = dict.fromkeys(KINDS, 0)

    def gradient(self, tokens: int) -> None:
        """Read the parameters, compute a gradient and its norm."""
        updates.snapshot(self.backend.inbox, self.arena.params)
        self.backend.refresh()
        _, self.grads = self.backend.loss_and_grads(self.batches[tokens])
        gradients.global_norm(self.grads)

    def step(self, kind: str) -> None:
        """Take one step with the last gradient."""
        self.steps[kind] += 1
        step = self.steps[kind]
        self.optimizers[kind].step(
            self.targets[kind], self.grads, lr=1e-5, step=step, seed=step, grad_scale=0.5
        )

    def hidden(self) -> list[tuple[int, int]]:
        """Shapes of the hidden matrices."""
        slots = self.targets["adamw"].slots
        names = families.hidden_matrices(self.model)
        return [slots[name].shape for name in names]  # type: ignore[misc]

    def state_floats(self, kind: str) -> tuple[int, int]:
        """Floats of a rule's state: of all parameters, and of the hidden matrices alone."""
        target, hidden = self.targets[kind], families.hidden_matrices(self.model)
        sizes = [
            (name, slot.size)
            for segment in target.private
            for name, slot in target.places.get(segment, target.slots).items()
        ]
        return sum(n for _, n in sizes), sum(n for name, n in sizes if name in hidden)


def seconds(work: Callable[[], None]) -> float:
    """Time one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def product_speed(n: int) -> float:
    """Operations per second of our own float32 product of n x n matrices, one thread."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal((n, n), dtype=np.float32) for _ in range(2))
    y = np.empty((n, n), np.float32)
    calls = max(1, int(2e8 / n**3))

    def work() -> None:
        for _ in range(calls):
            _native.ops.linears(x, [w], [None], [y], threads=1)

    work()
    return 2.0 * n**3 * calls / min(seconds(work) for _ in range(7))


def measure(findings: Findings, chosen: Namespace) -> None:
    """Measure every width on one core."""
    allowed = cores()
    pin(allowed[-1])
    for d in smallest([128], chosen.width):
        measure_width(findings, d, smallest(1, ROUNDS[d][chosen.quick]))
    unpin(allowed)


def measure_width(findings: Findings, d: int, rounds: int) -> None:
    """Measure one width."""
    bench = Bench(d)
    times: dict[str, list[float]] = {str(tokens): [] for tokens in TOKENS}
    times |= {kind: [] for kind in KINDS}
    for turn in range(rounds + 1):
        for tokens in TOKENS:
            spent = {str(tokens): seconds(partial(bench.gradient, tokens))}
            spent |= {kind: seconds(partial(bench.step, kind)) for kind in KINDS}
            if turn:
                for name, spent_s in spent.items():
                    times[name].append(spent_s)
    samples = {name: Sample.of(values) for name, values in times.items()}
    speed = product_speed(min(min(shape) for shape in bench.hidden()) * 2)
    parameters = sum(slot.size for slot in bench.targets["adamw"].slots.values())
    print(f"\nwidth {d}, {parameters:,} parameters")
    for name in samples:
        what = f"gradient of {name} tokens" if name.isdigit() else f"step of {name}"
        print(f"  {what:24} {Sample.of([1e3 * s for s in times[name]]).spelt('.2f')} ms")
    shares = {}
    for kind in KINDS:
        step = samples[kind].median if kind != "soap" else float(np.mean(times[kind]))
        shares[kind] = {tokens: step / (step + samples[str(tokens)].median) for tokens in TOKENS}
        spelt = ", ".join(f"{100 * share:.1f} % at {n}" for n, share in shares[kind].items())
        print(f"  share of {kind:15} {spelt}")
    bounds = {}
    for kind in KINDS:
        rule = bench.optimizers[kind]
        if not isinstance(rule, Muon):
            continue
        steps = len(ORTHOGONALIZATIONS[rule.orthogonalization])
        work = sum(operations(shape, steps) for shape in bench.hidden())
        bounds[kind] = work / speed
        print(
            f"  bound of {kind:15} {1e3 * bounds[kind]:.2f} ms: {work / 1e9:.2f} GFLOP at "
            f"{speed / 1e9:.0f} GFLOP/s of the float32 product"
            + ("; products of bfloat16 factors are twice as fast" if rule.bfloat16 else "")
        )
    state = {kind: bench.state_floats(kind) for kind in KINDS}
    for kind, (whole, hidden) in state.items():
        of_all, of_hidden = whole / state["adamw"][0], hidden / state["adamw"][1]
        print(
            f"  state of {kind:15} {4 * whole / 2**20:8.2f} MiB, {of_all:.3f} of AdamW's; "
            f"of the hidden matrices {of_hidden:.3f}"
        )
    findings.at_most(
        f"state of APOLLO-Mini for hidden matrices over AdamW's, width {d}",
        state["apollo-mini"][1] / state["adamw"][1],
        MINI_STATE,
        timing=False,
    )
    for k, (tokens, limit) in enumerate(TOKENS.items()):
        turns = zip(times["muon"][k :: len(TOKENS)], times[str(tokens)], strict=True)
        share = Mean.of(step / (step + gradient) for step, gradient in turns)
        findings.at_most(f"share of a Muon step, width {d}, {tokens} tokens", share, limit)
    findings.results[f"width {d}"] = {
        "seconds": samples,
        "shares": shares,
        "float32_product_flops": speed,
        "bound_seconds": bounds,
        "state_floats": state,
    }


def main() -> int:
    """Measure what the flags ask for."""
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":  # NumPy's products, as workers have them
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    parser = flags(__doc__, quick="fewer turns")
    parser.add_argument("--width", type=int, nargs="+", choices=list(ROUNDS), default=list(ROUNDS))
    chosen = parser.parse_args()
    return measured("optimizer_steps", chosen, measure, packages=("torch",), quiet=True)


if __name__ == "__main__":
    raise SystemExit(main())
