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

import numpy as np
from experiment.figures import INKS, label_lines, new_panels
from experiment.record import Compared, Experiment, Outcome, Scale, run, say
from experiment.searches import is_recorded, recorded, search, write_recorded
from harness.claims import Claim, Twin
from harness.estimates import Mean
from harness.interleaved import with_twin

from mlxhog import TrainConfig, backends, train
from mlxhog.checkpoint import checkpoint
from mlxhog.data import heldout
from mlxhog.data.batches import Batches
from mlxhog.models import families
from mlxhog.strategies.disjoint import block_groups
from mlxhog.theory.analysis.written import WrittenSteps
from mlxhog.theory.supports import Supports
from mlxhog.training.plan import make_plan

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
embedding_dim: WIDTH
num_blocks: 4
slstm_at: [1]
mlstm_block: {mlstm: {num_heads: 4}}
slstm_block: {slstm: {num_heads: 4}}
context_length: 128
reset_at_document_boundaries: true
bos_token_id: 2000
"""
DENSE, DISJOINT = "everything", "disjoint blocks"
WAYS = {
    DENSE: {},
    "top 10 %": {"sparsify": "topk:0.1"},
    "top 1 %": {"sparsify": "topk:0.01"},
    "top 1 %, rest dropped": {"sparsify": "topk:0.01", "error_feedback": False},
    "threshold 2 lr": {"sparsify": "threshold:2"},
    "sampled head": {"sampled_head": 256},
    DISJOINT: {"blocks": "disjoint", "rotate_every": 25},
}
LITTLE, SOME = "top 1 %", "top 10 %"
QUICK_WAYS = (DENSE, SOME, LITTLE, DISJOINT)
RATES, TUNED_ON = (0.002, 0.004, 0.008), 1  # no other training has that seed
FREE = 0.15  # nats per token: the most that two runs here differed by their races alone
LATER_EPOCH = 1 << 20  # an order of the batches that training has not used


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    steps: int
    supports: int
    held_out: int
    width: int = 128
    settling: int = 20  # steps until a residual has its usual size

    @property
    def model(self):
        """The architecture, as YAML."""
        return MODEL.replace("WIDTH", str(self.width))


def size_of(scale):
    """The size of a mode."""
    return scale.pick(
        tiny=Size(steps=4, supports=2, held_out=1024, width=16, settling=2),
        quick=Size(steps=300, supports=20, held_out=16_384),
        full=Size(steps=500, supports=40, held_out=32_768),
    )


@dataclass(frozen=True)
class Measured:
    """What one way of writing gives.

    Attributes:
        loss: nats per token of held-out text after training, of each seed.
        share: of the parameters that an update writes, of each sampled update.
        omega, rho, delta: of the updates of both workers.
        meetings: share of the other worker's updates that write an element of an update, too; of
            each sampled update.
        overlap: share of an update's elements that one update of the other worker writes, too; of
            each sampled update.
        tokens_per_s: of the run, both workers.
    """

    loss: list[float]
    share: list[float]
    omega: int
    rho: float
    delta: float
    meetings: list[float]
    overlap: list[float]
    tokens_per_s: float


def config(folder, way, *, size, seed, lr):
    """A run of two lock-free workers that write in one of the ways."""
    model = folder / "model.yaml"
    model.write_text(size.model)
    return TrainConfig(
        model=str(model),
        tokenizer="bpe:2000",
        seq_len=128,
        batch_size=2,
        workers="torch:cpu*2",
        threads=1,
        steps=size.steps,
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


def trained(options):
    """Train; returns the checkpoint and the tokens per second of both workers."""
    result = train(options, observer=None)
    assert result.status == "done", result.error
    assert result.checkpoint is not None
    return Path(result.checkpoint), result.tokens_per_s


class Lane:
    """A trained model, whose batches of one sequence say what a worker would write."""

    def __init__(self, options, saved):
        """Load the parameters of a checkpoint; the caller closes the lane."""
        plan = make_plan(options)
        self.config, self.layout = options, plan.layout
        self._model, self._decay = plan.model, plan.decay
        kernels, slots = plan.kernels[0], plan.layout.slots
        self._backend = backends.create("torch:cpu", threads=1, kernels=kernels, cpu_blas="auto")
        self._backend.bind(plan.model, slots, plan.layout.n_floats, None, plan.sampled)
        for name, value in checkpoint.load(saved).params.items():
            slot = slots[name]
            self._backend.inbox[slot.offset : slot.offset + slot.size] = value.reshape(-1)
        self._backend.refresh()
        self._train = Batches.open(
            plan.data.train,
            seq_len=options.seq_len,
            batch_size=options.micro_batch,
            seed=options.seed,
        )
        self._held_out = plan.data.open(options.seq_len)[1]
        disjoint = getattr(options.strategy, "blocks", "all") == "disjoint"
        parts = block_groups(plan.model, 2) if disjoint else []
        self._groups = [{name for block in part for name in block.params} for part in parts]
        self.close = self._backend.close

    def loss(self, tokens):
        """Nats per token of held-out text, spread over it, full softmax."""
        batches = heldout.batches(
            self._held_out, seq_len=self.config.seq_len, batch_size=8, eval_tokens=tokens
        )
        scores = list(map(self._backend.evaluate, batches))
        return sum(one.nats for one in scores) / sum(one.targets for one in scores)

    def supports(self, number, skip, worker):
        """Packed supports of what a worker (0 or 1) writes after some steps: (number, bytes)."""
        slots, hidden = self.layout.slots, families.hidden_matrices(self._model)
        written = WrittenSteps(self.config, slots, self._backend.inbox, self._decay, hidden)
        rows = []
        for step in range(skip + number):
            epoch, ticket = divmod(2 * step + worker, self._train.n_tickets)
            _, grads = self._backend.loss_and_grads(self._train.at(LATER_EPOCH + epoch, ticket))
            if self._groups:
                grads = {name: grads[name] for name in grads if name in self._groups[worker]}
            masks = written.masks(grads)
            whole = np.zeros(self.layout.n_floats, np.bool_)
            for name, mask in masks.items():
                whole[slots[name].offset : slots[name].offset + slots[name].size] = mask.reshape(-1)
            rows.append(np.packbits(whole, bitorder="little"))
        return np.stack(rows[skip:])


def measured(lane, size, losses, tokens_per_s):
    """Supports of both workers."""
    bits = [lane.supports(size.supports, size.settling, worker) for worker in (0, 1)]
    first, second = (Supports(part, lane.layout.n_floats) for part in bits)
    both = Supports(np.concatenate(bits), lane.layout.n_floats)
    return Measured(
        loss=losses,
        share=(both.sizes / lane.layout.n_floats).tolist(),
        omega=both.omega,
        rho=both.rho,
        delta=both.delta,
        meetings=(first.meetings(second) / len(second)).tolist(),
        overlap=overlap(first, second),
        tokens_per_s=tokens_per_s,
    )


def overlap(first, second):
    """Mean share of each of the first supports that is in one of the second."""
    shares = []
    for row, elements in zip(first.bits, first.sizes, strict=True):
        written = np.unpackbits(row, count=first.n, bitorder="little").astype(bool)
        common = float(second.counts[written].sum()) / len(second)
        shares.append(common / elements if elements else 0.0)
    return shares


def result(scale):
    """Train in every way, then measure all ways in turns."""
    size, step_sizes = size_of(scale), recorded(ABOUT.name)["lr"]
    seeds = tuple(TUNED_ON + seed for seed in scale.seeds)
    chosen = scale.pick(tiny=QUICK_WAYS, quick=QUICK_WAYS, full=tuple(WAYS))
    folder = Path(tempfile.mkdtemp(prefix="mlxhog-sparsified-"))
    lanes = {}
    speeds = {}

    def end(way, seed):
        options = config(folder, way, size=size, seed=seed, lr=step_sizes[way])
        saved, speeds[way] = trained(options)
        lane = Lane(options, saved)
        loss = lane.loss(size.held_out)
        say(f"seed {seed}  {way}: {loss:.4f} nats per token")
        if seed == seeds[-1] and way not in lanes:
            lanes[way] = lane
        else:
            lane.close()
        return loss

    try:
        losses, again = with_twin(seeds, chosen, end, twin=DENSE)
        ways = {way: measured(lanes[way], size, losses[way], speeds[way]) for way in chosen}
        n = sum(slot.size for slot in lanes[DENSE].layout.slots.values())
    finally:
        for lane in lanes.values():
            lane.close()
        shutil.rmtree(folder)
    return Outcome(
        compared=compared(ways),
        table=[row(way, it, n, ways[DENSE]) for way, it in ways.items()],
        settings={
            "model": size.model,
            "parameters": n,
            "lr": step_sizes,
            "ways": {way: WAYS[way] for way in chosen},
            "workers": "torch:cpu*2",
            **asdict(size),
        },
        results={way: asdict(one) for way, one in ways.items()},
        twins=[Twin.of(f"nats per token, {DENSE}", losses[DENSE], again)],
        seeds=seeds,
    )  # fmt: skip


def row(way, one, n, dense):
    """A row of the table."""
    return {
        "way": way,
        "loss": Mean.of(one.loss).spelt(".3f"),
        "above dense": Mean.of_differences(one.loss, dense.loss).spelt("+.3f"),
        "Omega": one.omega,
        "Omega/n": one.omega / n,
        "rho >=": one.rho,
        "Delta": one.delta,
        "p_conf": Mean.of(one.meetings).value,
        "overlap": Mean.of(one.overlap).value,
    }


def compared(ways):
    """The documents' claims beside what was measured.

    That one update of top 1 % writes 1 %, and that two workers with disjoint blocks never meet,
    is how these ways are made; what that costs in loss, and whether it keeps workers apart, is not.
    """
    dense, one = ways[DENSE], ways[LITTLE]

    def cost(way, other):
        return Mean.of_differences(ways[way].loss, ways[other].loss)

    return [
        Compared.of(
            "xLSTM training touches about 4 % of the parameters per example (Omega ~ 0.04)",
            Claim.of(
                "share of the parameters that an update writes", Mean.of(dense.share), "<=", 0.08,
                timing=False,
            ),
        ),
        Compared.of(
            "Hogwild on dense problems: make the updates sparse (open problem)",
            Claim.of(
                "top 1 %: share of the other worker's updates that write a common element",
                Mean.of(one.meetings), "<=", 0.5, timing=False,
            ),
            Claim.of(
                "top 1 %: share of an update's elements that the other worker's writes, too",
                Mean.of(one.overlap), "<=", 0.5, timing=False,
            ),
        ),
        Compared.of(
            "a fundamental trade-off, sparsity against learning quality (open problem)",
            Claim.of(
                "nats per token of top 1 % less dense, at equal steps", cost(LITTLE, DENSE),
                ">=", 0.0, timing=False,
            ),
            Claim.of(
                "nats per token of top 1 % less top 10 %", cost(LITTLE, SOME), ">=", 0.0,
                timing=False,
            ),
        ),
        Compared.of(
            "mLSTM and sLSTM have disjoint parameters: train the blocks in parallel (at no cost)",
            Claim.of(
                "nats per token of disjoint blocks less dense, at equal steps",
                cost(DISJOINT, DENSE), "<=", FREE, timing=False,
            ),
            measured="Two workers with disjoint blocks share no element by construction, but each "
            f"writes a part of its gradient: {cost(DISJOINT, DENSE).spelt('+.3f')} nats per token "
            "at equal steps.",
        ),
    ]  # fmt: skip


def tune():
    """Search the step size of each way, at the quick size, and record it; go on with a search."""
    size = size_of(Scale("quick"))
    known = recorded(ABOUT.name)["searched"] if is_recorded(ABOUT.name) else {}
    losses = {way: known.get(way, {}) for way in WAYS}
    folder = Path(tempfile.mkdtemp(prefix="mlxhog-sparsified-"))

    def loss(way, lr):
        tried = {float(rate): one for rate, one in losses[way].items()}
        if lr not in tried:
            options = config(folder, way, size=size, seed=TUNED_ON, lr=lr)
            lane = Lane(options, trained(options)[0])
            losses[way][f"{lr:g}"] = lane.loss(size.held_out)
            lane.close()
            say(f"{way}  lr {lr:g}: {losses[way][f'{lr:g}']:.4f}")
        return losses[way][f"{lr:g}"]

    try:
        best = {way: search(RATES, lambda lr, way=way: loss(way, lr)).best for way in WAYS}
        write_recorded(ABOUT.name, {"lr": best, "searched": losses, "steps": size.steps})
    finally:
        shutil.rmtree(folder)


def draw(outcome):
    """Loss against what is written, and against how much of it the other worker writes, too."""
    figure, (left, right) = new_panels(
        ("share of the parameters that an update writes", "nats per token", "Loss at equal steps"),
        ("share that the other worker writes, too", "", "Loss and overlap"),
    )
    for ink, (way, one) in zip(INKS, outcome.results.items(), strict=False):
        share, common = Mean.of(one["share"]).value, Mean.of(one["overlap"]).value
        left.plot([share] * len(one["loss"]), one["loss"], "o", color=ink, label=way)
        right.plot([common] * len(one["loss"]), one["loss"], "o", color=ink, label=way)
    left.set_xscale("log")
    label_lines(left, right)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw, tune=tune))
