"""What a step of an optimizer costs beside its gradient, and how large its state is.

    python benchmarks/optimizer_step.py            a quarter of an hour
    python benchmarks/optimizer_step.py --quick    fewer turns

xLSTM Large of width 128 and 512, four blocks, bytes, one thread: the share of a step of each
optimizer in gradient and step together (of SOAP the mean, since every tenth step refreshes the
bases), and its state in the arena. What a GPU worker dispatches is `python -m tools.counts graphs`.
"""

import time
from dataclasses import replace
from functools import partial

import numpy as np
from harness.claims import Sample
from harness.estimates import Mean
from harness.frame import flags, measured
from harness.interleaved import Program, once
from harness.machine import cores, pin, smallest
from language_models.ours import Size, large, load_backend, target

from mlxhog import arena, optim
from mlxhog.arena import Arena
from mlxhog.config.config import TrainConfig
from mlxhog.data.batch import Batch
from mlxhog.models import families
from mlxhog.optim import Target, gradients, updates

SEQ = 256
TOKENS = {512: 0.15, 2048: 0.05}
"""Tokens of a gradient, and the largest share of a Muon step that is aimed at."""
ROUNDS = {128: (40, 12), 512: (12, 4)}
"""Width -> turns, in full and with --quick."""
PRIVATE_MUON = {"optimizer": "muon", "moments": "private"}
KINDS = {
    "muon": PRIVATE_MUON,
    "muon, ns5": {**PRIVATE_MUON, "orthogonalization": "ns5"},
    **{name: {"optimizer": name} for name in
       ("adamw", "lion", "adan", "apollo", "apollo-mini", "soap")},
}  # fmt: skip
MINI_STATE = 0.02
"""Largest part of AdamW's state of the hidden matrices that APOLLO-Mini may keep."""


def timed(work):
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Bench:
    """A model, its arena, a backend with one thread, and one optimizer of each kind."""

    def __init__(self, d):
        self.model = large(Size(d=d, vocab=320, batch=2))
        spec = families.param_spec(self.model)
        self.layout = arena.plan(spec, max_workers=1, n_tickets=1)
        self.arena = Arena.create(self.layout)
        self.backend = load_backend("torch:cpu", self.model, layout=self.layout)
        self.arena.params[:] = self.backend.inbox[: len(self.arena.params)]
        self.hidden = families.hidden_matrices(self.model)
        self.rules = {
            name: optim.build(TrainConfig(**options), self.hidden)
            for name, options in KINDS.items()
        }
        decay = frozenset(name for name, one in spec.items() if one.decay)
        base = target(self.arena, decay=decay)
        self.targets = {}
        for name, rule in self.rules.items():
            own = Target.alone(rule, self.arena.params, self.layout.slots, decay)
            self.targets[name] = replace(base, private=own.private, places=own.places)
        rng = np.random.default_rng(0)
        self.steps, self.batches = dict.fromkeys(KINDS, 0), {}
        for tokens in TOKENS:
            text = rng.integers(0, 256, (tokens // SEQ, SEQ + 1), np.int32)
            self.batches[tokens] = Batch(text[:, :-1].copy(), text[:, 1:].copy(), n_bytes=0)

    def gradient(self, tokens):
        """Read the parameters, compute a gradient and its norm."""
        updates.snapshot(self.backend.inbox, self.arena.params)
        self.backend.refresh()
        _, self.grads = self.backend.loss_and_grads(self.batches[tokens])
        gradients.global_norm(self.grads)

    def step(self, kind):
        """Take one step with the last gradient."""
        self.steps[kind] = step = self.steps[kind] + 1
        rule = self.rules[kind]
        rule.step(self.targets[kind], self.grads, lr=1e-5, step=step, seed=step, grad_scale=0.5)

    def state_floats(self, kind):
        """Floats of a rule's state: of all parameters, and of the hidden matrices alone."""
        own = self.targets[kind]
        sizes = [
            (name, slot.size)
            for segment in own.private
            for name, slot in own.places.get(segment, own.slots).items()
        ]
        return sum(n for _, n in sizes), sum(n for name, n in sizes if name in self.hidden)


def shares(threads, width, rounds):
    """Seconds of gradients and steps of a width turn by turn, and floats of states."""
    pin(cores()[-1])
    bench, times = Bench(width), {}
    for turn in range(rounds + 1):
        for tokens in TOKENS:
            spent = {f"{tokens}": timed(partial(bench.gradient, tokens))}
            spent |= {kind: timed(partial(bench.step, kind)) for kind in KINDS}
            for name, seconds in spent.items():
                times.setdefault(name, []).extend([seconds] * bool(turn))
    return times, {kind: bench.state_floats(kind) for kind in KINDS}


def measure(findings, chosen):
    """The share of an optimizer's step, and its state."""
    for width in smallest([128], chosen.width):
        rounds = smallest(1, ROUNDS[width][chosen.quick])
        program = Program("optimizer_step", "shares", {"width": width, "rounds": rounds})
        times, state = once(program, threads=1)
        rows = []
        for kind in KINDS:
            step = float(np.mean(times[kind])) if kind == "soap" else Sample.of(times[kind]).median
            part = {n: step / (step + Sample.of(times[f"{n}"]).median) for n in TOKENS}
            rows.append({
                "width": width, "optimizer": kind, "ms": 1e3 * step,
                **{f"share at {n} tokens": share for n, share in part.items()},
                "state / AdamW's": state[kind][0] / state["adamw"][0],
            })  # fmt: skip
        findings.table(rows)
        mini = state["apollo-mini"][1] / state["adamw"][1]
        name = f"state of APOLLO-Mini for hidden matrices over AdamW's, width {width}"
        findings.at_most(name, mini, MINI_STATE, timing=False)
        for k, (tokens, limit) in enumerate(TOKENS.items()):
            turns = zip(times["muon"][k :: len(TOKENS)], times[f"{tokens}"], strict=True)
            share = Mean.of(step / (step + gradient) for step, gradient in turns)
            findings.at_most(f"share of a Muon step, width {width}, {tokens} tokens", share, limit)


def main():
    """Measure what the flags ask for."""
    parser = flags(__doc__, quick="fewer turns")
    parser.add_argument("--width", type=int, nargs="+", choices=list(ROUNDS), default=list(ROUNDS))
    chosen = parser.parse_args()
    return measured("optimizer_step", chosen, measure, packages=("torch",), quiet=True)


if __name__ == "__main__":
    raise SystemExit(main())
