"""Sparsified training: what sparse steps cost in loss, and whether they meet less.

    python benchmarks/sparsified.py          three ways
    python benchmarks/sparsified.py --full   six, more steps
    python benchmarks/sparsified.py --tune   search the learning rate of each way

With the same model, data, steps and two lock-free workers, written is: everything; the largest 10 %
and 1 % of each step with error feedback, and 1 % without; what has reached twice the learning rate;
and a head of which only the batch's targets and 256 negatives are trained. Each way at its best
recorded learning rate. Then both workers of the last seed compute further steps at the trained
parameters, and the elements that they would write are counted.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from harness.claims import counted
from harness.estimates import Mean
from harness.frame import run, say
from harness.interleaved import with_control
from harness.tuning import around, settings, tune
from training.recording import QUIET_OPTIONS

from mlxhog import TrainConfig, train
from mlxhog.models import families
from mlxhog.research.analysis.sampling import GradientSource, OwnSteps, Subject
from mlxhog.research.hypergraph import Hypergraph
from mlxhog.training.plan.decide import make_plan

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
DENSE, SOME, LITTLE = "everything", "top 10 %", "top 1 %"
WAYS = {
    DENSE: {},
    SOME: {"sparsify": "topk:0.1"},
    LITTLE: {"sparsify": "topk:0.01"},
    "top 1 %, rest dropped": {"sparsify": "topk:0.01", "error_feedback": False},
    "threshold 2 lr": {"sparsify": "threshold:2"},
    "sampled head": {"sampled_softmax": 256},
}
TUNED_ON = 1  # no other training has that seed
LATER_EPOCH = 1 << 20  # an order of the batches that training has not used


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    steps: int
    supports: int
    validation: int
    width: int = 128
    settling: int = 20  # steps until a residual has its usual size


def size_of(chosen):
    """The size of a mode."""
    return chosen.pick(
        tiny=Size(steps=4, supports=2, validation=1024, width=16, settling=2),
        quick=Size(steps=300, supports=20, validation=16_384),
        full=Size(steps=500, supports=40, validation=32_768),
    )


def options(folder, way, *, size, seed, lr):
    """Of a run of two lock-free workers that write in one of the ways."""
    model = Path(folder) / "model.yaml"
    model.write_text(MODEL.replace("WIDTH", str(size.width)))
    return {
        **QUIET_OPTIONS, "eval_every": "1h", "val_subset_tokens": size.validation,
        "model": str(model), "tokenizer": "bpe:2000", "seq_len": 128, "batch_size": 2,
        "workers": "torch:cpu*2", "threads": 1, "steps": size.steps, "strategy": "hogwild",
        "optimizer": "adamw", "lr": lr, "seed": seed,
        "runs_dir": str(Path(folder) / "runs"), **WAYS[way],
    }  # fmt: skip


def trained(how):
    """Bits per byte of validation text, and the checkpoint."""
    result = train(TrainConfig(**how), observer=None)
    assert result.status == "done", result.error
    return result.val_bits_per_byte, Path(result.checkpoint)


def written(how, checkpoint, size):
    """Omega, rho and Delta of sampled updates of two workers, and the share that each writes."""
    config = TrainConfig(**{**how, "workers": "torch:cpu"})
    plan = make_plan(config)
    source = GradientSource(Subject(plan, config, (), checkpoint))
    bits = [packed(source, size, worker) for worker in (0, 1)]
    source.backend.close()
    n = plan.layout.n_floats
    both = Hypergraph.of_bitmaps(np.concatenate(bits), n)
    numbers = {"Omega": both.omega, "rho >=": both.sampled_rho, "Delta": both.delta}
    return {**numbers, "shares": (both.sizes / n).tolist()}


def packed(source, size, worker):
    """Supports of what a worker (0 or 1) writes after some steps: (number, bytes)."""
    plan, config, rows = source.subject.plan, source.subject.steps, []
    slots, hidden = plan.layout.slots, families.hidden_matrices(plan.model)
    groups = families.rate_groups(plan.model)
    optimizer = OwnSteps(config, slots, source.params, plan.decay, hidden, groups)
    for step in range(size.settling + size.supports):
        epoch, ticket = divmod(2 * step + worker, source.batches.n_tickets)
        source.gradient((LATER_EPOCH + epoch, ticket))
        whole = optimizer.step(source.grads) != 0
        for name, elements in getattr(optimizer.rule, "written", {}).items():  # of a part of it
            whole[slots[name].offset + elements] = True
        rows.append(np.packbits(whole, bitorder="little"))
    return np.stack(rows[size.settling :])


def measure(findings, chosen):
    """Train in every way, then count what its last run would write."""
    size, ways = size_of(chosen), tuple(WAYS)[: 3 if chosen.quick else None]
    rates, counts = settings("sparsified", ways), {}
    seeds = findings.seeds = tuple(TUNED_ON + seed for seed in chosen.seeds)

    def end(way, seed):
        with tempfile.TemporaryDirectory(prefix="mlxhog-sparsified-") as folder:
            how = options(folder, way, size=size, seed=seed, lr=rates[way]["lr"])
            bits, checkpoint = trained(how)
            say(f"seed {seed}  {way}: {bits:.4f} bits per byte")
            if seed == seeds[-1] and way not in counts:
                counts[way] = written(how, checkpoint, size)
        return bits

    bits, again = with_control(seeds, ways, end, control=DENSE)
    findings.table(
        {"way": way, "bits per byte": Mean.of(bits[way]).spelt(".3f"), **one,
         "shares": Mean.of(one["shares"]).value}
        for way, one in counts.items()
    )  # fmt: skip
    findings.same(f"bits per byte, {DENSE}", bits[DENSE], again)
    findings.document(
        counted("share of the parameters that an update writes", Mean.of(counts[DENSE]["shares"]),
                "<=", 0.08),  # twice the document's 4 %
        *(counted(f"bits per byte of top 1 % less {other}, at equal steps",
                  Mean.of_differences(bits[LITTLE], bits[other]), ">=", 0.0)
          for other in (DENSE, SOME)),
    )  # fmt: skip
    findings.results |= {
        "settings": asdict(size),
        "ways": {way: {"bits per byte": bits[way], **one} for way, one in counts.items()},
    }


def tuning(chosen):
    """Search the learning rate of each way, at the quick size."""
    size = size_of(chosen)

    def loss(way, point):
        with tempfile.TemporaryDirectory(prefix="mlxhog-sparsified-") as folder:
            return trained(options(folder, way, size=size, seed=TUNED_ON, **point))[0]

    tune("sparsified", dict.fromkeys(WAYS, {"lr": around(0.008, 2.0, 7)}), loss)


if __name__ == "__main__":
    run(__doc__, measure, actions={"tune": tuning}, packages=("torch",), seeds=(3, 5))
