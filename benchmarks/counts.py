"""What a step costs beside its gradient: an optimizer's time and state, and what MLX dispatches.

    python benchmarks/counts.py                      every part, a quarter of an hour
    python benchmarks/counts.py --quick              fewer turns
    python benchmarks/counts.py --only optimizers    some of: optimizers stripes graphs

    optimizers   xLSTM Large of width 128 and 512, four blocks, bytes, one thread: the share of a
                 step of each optimizer in gradient and step together, of SOAP the mean, since every
                 tenth step refreshes the bases; its state in the arena; and what bounds Muon: its
                 operations over the speed of our own matrix product
    stripes      norm, AdamW's step and read of 160m: one thread against two, in pairs
    graphs       what MLX dispatches for a step of 160m, copies and holds: counts on any machine

An older commit is measured in a `git worktree` with an environment of its own. What Metal kernels
move, and whether they lose adds, are tests (tests/metal).
"""

import time
from dataclasses import replace
from functools import partial

import numpy as np
from harness.claims import Sample, flags, measured
from harness.estimates import Mean, Ratio
from harness.interleaved import Program, once, take_turns
from harness.machine import cores, pin, smallest
from language_models.ours import large
from language_models.sizes import LargeSize

from mlxhog import _native, arena, backends, optim
from mlxhog.arena import Arena
from mlxhog.config.config import TrainConfig
from mlxhog.data.batch import Batch
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.optim import Muon, Target, gradients, updates
from mlxhog.optim.muon import ORTHOGONALIZATIONS, operations
from mlxhog.optim.rule import new_state
from mlxhog.optim.updates import Rows, row_width
from tools import counts

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
WORDS = 512
"""Rows of an embedding that a gradient has."""
MLSTM, SLSTM = "mLSTM", "sLSTM"
CELLS = {MLSTM: (96, 96, 192), SLSTM: (192,) * 4}
"""Widths of the inputs of a cell's head at 160m; it has 4 heads."""


def timed(work):
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def target(shared, decay):
    """Where steps of one thread go: an arena."""
    mode = updates.WRITE_MODES[shared.write]
    slots, locks = shared.layout.slots, shared.locks(1)
    return Target(
        flat=shared.params, slots=slots, locks=locks, mode=mode, private={}, shared={}, decay=decay
    )


# -- optimizers -----------------------------------------------------------------------------------


class Bench:
    """A model, its arena, a backend with one thread, and one optimizer of each kind."""

    def __init__(self, d):
        self.model = large(LargeSize(d=d, blocks=4, heads=4, vocab=320, batch=2, seq=SEQ))
        spec = families.param_spec(self.model)
        self.layout = arena.plan(spec, max_workers=1, n_tickets=1)
        self.arena = Arena.create(self.layout)
        for name, value in families.init_params(self.model, seed=0).items():
            self.arena.param(name)[...] = value
        self.hidden = families.hidden_matrices(self.model)
        self.rules = {
            name: optim.build(TrainConfig(**options), self.hidden)
            for name, options in KINDS.items()
        }
        base = target(self.arena, frozenset(name for name, one in spec.items() if one.decay))
        shapes = {name: one.shape for name, one in spec.items()}
        self.targets = {}
        for name, rule in self.rules.items():
            own = rule.state_shapes(shapes)
            private, places = new_state(rule.state_segments, own, self.layout.n_floats)
            self.targets[name] = replace(base, private=private, places=places)
        self.backend = backends.create("torch:cpu", threads=1, kernels="auto", cpu_blas="auto")
        self.backend.bind(self.model, self.layout.slots, self.layout.n_floats, None)
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


def product_speed(n):
    """Operations per second of our own float32 product of n x n matrices, one thread."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal((n, n), dtype=np.float32) for _ in range(2))
    y, calls = np.empty((n, n), np.float32), max(1, int(2e8 / n**3))

    def work():
        for _ in range(calls):
            _native.ops.linears(x, [w], [None], [y], threads=1)

    work()
    return 2.0 * n**3 * calls / min(timed(work) for _ in range(7))


def shares(threads, width, rounds):
    """Seconds of gradients and steps of a width turn by turn, bounds of Muon, floats of states."""
    pin(cores()[-1])
    bench, times = Bench(width), {}
    for turn in range(rounds + 1):
        for tokens in TOKENS:
            spent = {f"{tokens}": timed(partial(bench.gradient, tokens))}
            spent |= {kind: timed(partial(bench.step, kind)) for kind in KINDS}
            for name, seconds in spent.items():
                times.setdefault(name, []).extend([seconds] * bool(turn))
    shapes = [bench.layout.slots[name].shape for name in bench.hidden]
    speed = product_speed(2 * min(map(min, shapes)))
    steps = {
        kind: len(ORTHOGONALIZATIONS[rule.orthogonalization])
        for kind, rule in bench.rules.items()
        if isinstance(rule, Muon)
    }
    bounds = {
        kind: sum(operations(shape, n) for shape in shapes) / speed for kind, n in steps.items()
    }
    return times, bounds, {kind: bench.state_floats(kind) for kind in KINDS}


def optimizers(findings, chosen):
    """The share of an optimizer's step, and its state."""
    for width in smallest([128], chosen.width):
        rounds = smallest(1, ROUNDS[width][chosen.quick])
        program = Program("counts", "shares", {"width": width, "rounds": rounds})
        times, bounds, state = once(program, threads=1)
        samples = {name: Sample.of(values) for name, values in times.items()}
        print(f"\nwidth {width}")
        for tokens in TOKENS:
            print(f"  gradient of {tokens} tokens {1e3 * samples[f'{tokens}'].median:.2f} ms")
        part = {}
        for kind in KINDS:
            step = float(np.mean(times[kind])) if kind == "soap" else samples[kind].median
            part[kind] = {n: step / (step + samples[f"{n}"].median) for n in TOKENS}
            words = ", ".join(f"{share:.1%} at {n}" for n, share in part[kind].items())
            bound = f", products alone {1e3 * bounds[kind]:.2f} ms" if kind in bounds else ""
            of_all = state[kind][0] / state["adamw"][0]
            print(f"  {kind:14} {1e3 * step:8.2f} ms, {words}; state {of_all:.3f}{bound}")
        mini = state["apollo-mini"][1] / state["adamw"][1]
        name = f"state of APOLLO-Mini for hidden matrices over AdamW's, width {width}"
        findings.at_most(name, mini, MINI_STATE, timing=False)
        for k, (tokens, limit) in enumerate(TOKENS.items()):
            turns = zip(times["muon"][k :: len(TOKENS)], times[f"{tokens}"], strict=True)
            share = Mean.of(step / (step + gradient) for step, gradient in turns)
            findings.at_most(f"share of a Muon step, width {width}, {tokens} tokens", share, limit)
        findings.results[f"width {width}"] = {
            "seconds": samples, "shares": part, "bound_seconds": bounds, "state_floats": state,
        }  # fmt: skip


# -- one thread against two -----------------------------------------------------------------------


def by_threads(threads, name, turns):
    """Seconds of the CPU's parts of a step by one thread and by `threads`, turn by turn."""
    layout = arena.plan(families.param_spec(load_architecture(name)), max_workers=1, n_tickets=1)
    rng = np.random.default_rng(0)

    def gradient(slot):
        if slot.kind != "rows":
            return rng.standard_normal(slot.shape, dtype=np.float32)
        words = min(WORDS, slot.shape[0])
        index = np.sort(rng.choice(slot.shape[0], words, replace=False)).astype(np.int32)
        return Rows(index, rng.standard_normal((words, row_width(slot)), dtype=np.float32))

    with Arena.create(layout) as shared:
        shared.params[...] = 0.01
        grads = {slot.name: gradient(slot) for slot in layout.slots.values()}
        state = {name: np.zeros(layout.n_floats, np.float32) for name in ("m", "v")}
        one = replace(target(shared, frozenset(layout.slots)), private=state)
        inbox, rule = np.zeros(layout.n_floats, np.float32), optim.AdamW()

        def parts(count, turn):
            own = replace(one, threads=count)
            spent = {
                "norm": timed(lambda: gradients.global_norm(grads, count)),
                "AdamW": timed(lambda: rule.step(own, grads, lr=1e-5, step=turn, seed=turn)),
                "read": timed(lambda: updates.snapshot(inbox, shared.params, threads=count)),
            }
            return {**spent, "all three": sum(spent.values())}

        rows = take_turns(range(1, turns + 1), (1, threads), parts, warm_up=True)
    return {part: [[row[part] for row in rows[n]] for n in (1, threads)] for part in rows[1][0]}


def stripes(findings, chosen):
    """The CPU side of a step of 160m, by one thread and by two."""
    options = {"name": smallest("tiny", "160m"), "turns": 5 if chosen.quick else 15}
    seconds = once(Program("counts", "by_threads", options), threads=2)
    for name, (one, two) in seconds.items():
        ratio = Ratio.of(one, two)
        findings.results[f"160m, {name}: seconds by 1 and by 2 threads"] = [
            Sample.of(one), Sample.of(two), ratio,
        ]  # fmt: skip
        medians = [Sample.of(values).spelt(".4f") for values in (one, two)]
        print(f"  160m, {name}: {medians[0]} s by one thread, {medians[1]} s by two: {ratio}")
    findings.at_least("160m: CPU side of a step, one thread / two", ratio, 1.8)


# -- what MLX dispatches --------------------------------------------------------------------------


def cell(kind, seq):
    """The sum of all outputs of a cell of 160m, and its arguments."""
    import mlx.core as mx

    from mlxhog.models.ops.kernels import choose

    mx.set_default_device(mx.cpu)
    ops, heads, random = choose("mlx", "reference", "cpu"), 4, np.random.default_rng(0)

    def drawn(*shape):
        return mx.array(random.standard_normal(shape, np.float32))

    inputs = [drawn(1, seq, heads, width) for width in CELLS[kind]]
    if kind == MLSTM:
        inputs += [drawn(1, seq, heads), drawn(1, seq, heads)]
        return lambda *x: ops.mlstm_cell(*x, chunk_size=64, eps=1e-6)[0].sum(), inputs
    DH = CELLS[kind][0]
    inputs += [0.05 * drawn(heads, 4 * DH, DH), drawn(4 * heads * DH)]
    return lambda *x: ops.slstm_cell(*x)[0].sum(), inputs


def cell_nodes(threads, kind, seq):
    """Dispatched nodes of a cell's forward pass, not compiled."""
    function, inputs = cell(kind, seq)
    return counts.dispatched([function(*inputs)])


def peak_per_position(threads, kind, seq):
    """Most bytes that MLX held during a cell's gradient, beyond its inputs, over its positions."""
    import mlx.core as mx

    function, inputs = cell(kind, seq)
    mx.eval(inputs)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.grad(function, argnums=list(range(len(inputs))))(*inputs))
    return (mx.get_peak_memory() - before) / seq


def copied(threads, name, batch, seq):
    """Gradients of a model with one block that NumPy has to copy."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    model = replace(load_architecture(name), num_hidden_layers=1)
    function, arguments = counts.gradient(model, batch, seq)
    value, (grads, dx) = function(*arguments)
    mx.eval(value, grads, dx)
    return sum(not np.array(grad, copy=False).flags.c_contiguous for grad in (*grads, dx))


def step_nodes(threads, name, batch, seq):
    """Dispatched nodes of a compiled gradient, with the norms of a GPU."""
    return counts.step_nodes(load_architecture(name), batch, seq)


def graphs(findings, chosen):
    """What a step of 160m dispatches, copies and holds, with the plain operators of MLX."""

    def counted(function, **options):
        return once(Program("counts", function, options, ("mlx.core",)), threads=1)

    step = {"name": smallest("tiny", "160m"), "batch": smallest(1, 2), "seq": smallest(64, 256)}
    short, long = smallest((64, 128), (512, 2048))
    nodes = counted("step_nodes", **step)
    findings.at_most("160m: dispatched nodes of a step", nodes, 1500, timing=False)
    findings.exact("160m: gradients of a block that NumPy copies", counted("copied", **step), 0)
    few, many = (counted("cell_nodes", kind=MLSTM, seq=seq) for seq in (256, long))
    findings.exact("mLSTM: nodes of all chunks beyond those of 4", many - few, 0)
    for kind in CELLS:
        least, most = (counted("peak_per_position", kind=kind, seq=seq) for seq in (short, long))
        name = f"{kind}: peak bytes of backward per position, S {long} / S {short}"
        findings.at_most(name, most / least, 1.1, timing=False)


PARTS = {"optimizers": optimizers, "stripes": stripes, "graphs": graphs}


def measure(findings, chosen):
    """Every part that was asked for."""
    for name in chosen.only or PARTS:
        print(f"\n{PARTS[name].__doc__}", flush=True)
        PARTS[name](findings, chosen)


def main():
    """Measure what the flags ask for."""
    parser = flags(__doc__, parts=PARTS, quick="fewer turns")
    parser.add_argument("--width", type=int, nargs="+", choices=list(ROUNDS), default=list(ROUNDS))
    packages = ("mlx", "torch")
    return measured("counts", parser.parse_args(), measure, packages=packages, quiet=True)


if __name__ == "__main__":
    raise SystemExit(main())
