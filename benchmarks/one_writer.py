"""Document 000's own case, one writer that learns decision segments with APOLLO: what it writes.

    python benchmarks/one_writer.py             some minutes
    python benchmarks/one_writer.py --quick     fewer steps and segments

A segment is 50 to 256 bytes of text that the model has not seen, of which the last third is
trained. For APOLLO, APOLLO-Mini and AdamW, from a checkpoint that the same rule has trained:

gradient   the share of elements that are zero, of the embedding and of dense layers
step       its size beside the spacing of floats: the share of dense elements that a step leaves
           where they were, in float32 and if the weights were bfloat16

What a reader sees meanwhile is in `live.py`.
"""

import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
from harness.frame import run
from harness.machine import smallest
from training.recording import BYTES

from mlxhog import TrainConfig, arena, backends, strategies, train
from mlxhog.checkpoint import formats
from mlxhog.data.batch import IGNORED, Batch
from mlxhog.data.sotu import read_sotu
from mlxhog.models import families
from mlxhog.optim.gradients import Rows
from mlxhog.optim.rule import parameter
from mlxhog.research.analysis.sampling import OwnSteps

OPTIMIZERS = ("apollo", "apollo-mini", "adamw")
LENGTHS = (50, 128, 256)
ROWS = 4
WARM = 20  # steps on segments before one is looked at: moments and limiter have settled
DENSE_ZEROS = 0.01
"""Share of zero elements from which on a dense layer's gradient would count as sparse here."""
SHARES = (
    "zeros of the embedding", "zeros of dense layers", "step in float32 spacings, median",
    "unmoved in float32", "unmoved in bfloat16",
)  # fmt: skip


def segments(length):
    """Batches of decision segments, cut from the newest addresses, again and again."""
    text = "".join(address.text for address in read_sotu()[-20:]).encode()
    ids = np.frombuffer(text, np.uint8).astype(np.int32)
    starts = np.arange(0, len(ids) - length - 1, length)
    rng = np.random.default_rng(length)
    while True:
        rows = ids[rng.choice(starts, ROWS, replace=False)[:, None] + np.arange(length + 1)]
        x, y = rows[:, :-1].copy(), rows[:, 1:].copy()
        y[:, : length - length // 3] = IGNORED
        yield Batch(x, y, int((y != IGNORED).sum()))


class Writer:
    """A model of a checkpoint, and one optimizer that moves it, in this process."""

    def __init__(self, path, config):
        """Load the weights; the optimizer begins without state."""
        opened = formats.open(path)
        model, spec = opened.config, families.param_spec(opened.config)
        layout = arena.plan(spec, max_workers=1, n_tickets=1)
        self._slots, self._dense = layout.slots, np.zeros(layout.n_floats, np.bool_)
        for slot in layout.slots.values():
            self._dense[slot.offset : slot.offset + slot.size] = slot.kind != "rows"
        self.backend = backends.create("torch:cpu", threads=2, kernels="auto")
        self.backend.bind(model, layout)
        param_buffer, hidden = self.backend.param_buffer, families.hidden_matrices(model)
        opened.copy_into(
            {name: parameter(param_buffer, slot) for name, slot in layout.slots.items()}
        )
        decay = frozenset(name for name, one in spec.items() if one.decay)
        config = strategies.for_model(config, model.hidden_size, hidden, 1)
        self._written = OwnSteps(config, layout.slots, param_buffer, decay, hidden)

    def learn(self, batch):
        """Take one step at the full learning rate; returns `SHARES` of it."""
        param_buffer = self.backend.param_buffer
        self.backend.refresh()
        grads, before = self.backend.loss_and_grads(batch)[1], param_buffer[self._dense]
        zeros = [self._zeros(grads, tables=tables) for tables in (True, False)]
        param_buffer += self._written.step(grads)
        size = np.abs(param_buffer[self._dense].astype(np.float64) - before)
        spacings = np.median(size / np.maximum(np.spacing(np.abs(before)), 1e-45))
        return [*zeros, spacings, unmoved(before, size, 23), unmoved(before, size, 7)]

    def _zeros(self, grads, *, tables):
        """Share of elements that are exactly zero, of tables of rows or of everything else."""
        n = nonzero = 0
        for name, grad in grads.items():
            if (self._slots[name].kind == "rows") == tables:
                values = grad.coalesced().values if isinstance(grad, Rows) else grad
                n, nonzero = n + self._slots[name].size, nonzero + int(np.count_nonzero(values))
        return 1 - nonzero / n


def unmoved(values, size, bits):
    """Share of steps below half the spacing of floats with `bits` of mantissa."""
    _, exponents = np.frexp(values)
    return (size < np.ldexp(0.5, exponents - 1 - bits)).mean()


def measure(findings, chosen):
    """Measure each optimizer."""
    steps, count = smallest((4, 1), (150, 8) if chosen.quick else (600, 30))
    warm = smallest(0, WARM)
    for optimizer in smallest(OPTIMIZERS[1:2], OPTIMIZERS):
        with tempfile.TemporaryDirectory() as folder:
            result = train(
                optimizer=optimizer, steps=steps, workers="torch:cpu", eval_every="off",
                runs_dir=folder, **BYTES,
            )  # fmt: skip
            rows = []
            for length in LENGTHS:
                config = TrainConfig(optimizer=optimizer, strategy="serial")
                writer = Writer(Path(result.checkpoint), config)
                seen = [writer.learn(batch) for batch in islice(segments(length), warm + count)]
                writer.backend.close()
                medians = map(float, np.median(seen[warm:], axis=0))
                rows.append({"optimizer": optimizer, "bytes": length,
                             **dict(zip(SHARES, medians, strict=True))})  # fmt: skip
        findings.table(rows)
        dense = max(row["zeros of dense layers"] for row in rows)
        name = f"{optimizer}: zeros among the gradients of dense layers"
        findings.at_most(name, dense, DENSE_ZEROS, timing=False)


if __name__ == "__main__":
    run(__doc__, measure, modes={"quick": "fewer steps and segments"}, packages=("torch",))
