"""Document 000's own case: one writer learns decision segments with APOLLO, one reader answers.

    python benchmarks/one_writer.py             about ten minutes
    python benchmarks/one_writer.py --quick     about three

A segment is 50 to 256 bytes of text that the model has not seen, of which the last third is
trained. For APOLLO, APOLLO-Mini and AdamW, from a checkpoint that the same rule has trained:

gradient   the share of elements that are zero, of the embedding and of dense layers
step       its size beside the spacing of floats: the share of dense elements that a step leaves
           where they were, in float32 and if the weights were bfloat16
answers    what a reader saw that answered while segments were trained (`--follow`): updates during
           one answer of 100 tokens, tokens written by other weights than its first, weights' age
"""

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness.claims import Sample
from harness.frame import flags, measured
from harness.interleaved import mlxhog
from harness.machine import smallest

from mlxhog import arena, backends, optim
from mlxhog.arena.requests import ask
from mlxhog.checkpoint import checkpoint, formats
from mlxhog.checkpoint import run as runs
from mlxhog.config.config import TrainConfig
from mlxhog.data.batch import IGNORED, Batch
from mlxhog.data.sotu import read_sotu
from mlxhog.decoding.options import Sampling
from mlxhog.errors import MlxhogError
from mlxhog.live.opening import open_source
from mlxhog.live.source import WeightFollower
from mlxhog.models import families
from mlxhog.optim.gradients import Rows
from mlxhog.optim.rule import parameter
from mlxhog.theory.analysis.written import WrittenSteps

OPTIMIZERS = ("apollo", "apollo-mini", "adamw")
LENGTHS = (50, 128, 256)
ROWS = 4
WARM = 20  # steps on segments before one is looked at: moments and limiter have settled
ANSWER = 100
WAIT_S = 120.0
DENSE_ZEROS = 0.01
"""Share of zero elements from which on a dense layer's gradient would count as sparse here."""


@dataclass(frozen=True)
class Scale:
    """Steps of the checkpoint, segments that are looked at, seconds of answering."""

    steps: int
    segments: int
    seconds: float


FULL, QUICK = Scale(600, 30, 60.0), Scale(150, 8, 15.0)
TINY = Scale(4, 1, 1.0)


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
        self.slots, self._dense = layout.slots, np.zeros(layout.n_floats, np.bool_)
        for slot in self.slots.values():
            self._dense[slot.offset : slot.offset + slot.size] = slot.kind != "rows"
        self.backend = backends.create("torch:cpu", threads=2, kernels="auto", cpu_blas="auto")
        self.backend.bind(model, self.slots, layout.n_floats, None)
        inbox, hidden = self.backend.inbox, families.hidden_matrices(model)
        opened.copy_into({name: parameter(inbox, slot) for name, slot in self.slots.items()})
        decay = frozenset(name for name, one in spec.items() if one.decay)
        config = optim.for_model(config, model.hidden_size, hidden, 1)
        self._written = WrittenSteps(config, self.slots, inbox, decay, hidden)

    def gradient(self, batch):
        """The mean gradient at the weights as they are."""
        self.backend.refresh()
        return self.backend.loss_and_grads(batch)[1]

    def step(self, grads):
        """Take one step at the full step size."""
        self.backend.inbox += self._written.step(grads)

    def dense(self):
        """The parameters that are no rows of a table, (n,), copied."""
        return self.backend.inbox[self._dense]


def zeros(grads, slots, *, tables):
    """Share of elements that are exactly zero, of tables of rows or of everything else."""
    n = nonzero = 0
    for name, grad in grads.items():
        if (slots[name].kind == "rows") == tables:
            values = grad.coalesced().values if isinstance(grad, Rows) else grad
            n, nonzero = n + slots[name].size, nonzero + int(np.count_nonzero(values))
    return 1 - nonzero / n


def unmoved(before, after, bits):
    """Share of elements whose step is below half the spacing of floats with `bits` of mantissa."""
    _, exponents = np.frexp(before)
    spacing = np.ldexp(np.float64(1.0), exponents - 1 - bits)
    return float((np.abs(after.astype(np.float64) - before) < spacing / 2).mean())


def steps(optimizer, path, scale):
    """Gradients and steps on segments of each length."""
    rows = []
    for length in LENGTHS:
        writer = Writer(path, TrainConfig(optimizer=optimizer, strategy="serial"))
        of_length = []
        for k, batch in enumerate(segments(length)):
            if k == smallest(0, WARM) + scale.segments:
                break
            grads, before = writer.gradient(batch), writer.dense()
            share = [zeros(grads, writer.slots, tables=tables) for tables in (True, False)]
            writer.step(grads)
            after = writer.dense()
            if k >= smallest(0, WARM):
                size = np.abs(after - before)
                spacings = float(np.median(size / np.maximum(np.spacing(np.abs(before)), 1e-45)))
                still = (unmoved(before, after, 23), unmoved(before, after, 7))
                of_length.append((*share, spacings, *still))
        writer.backend.close()
        names = (
            "zeros of the embedding", "zeros of dense layers", "step in float32 spacings, median",
            "unmoved in float32", "unmoved in bfloat16",
        )  # fmt: skip
        medians = map(statistics.median, zip(*of_length, strict=True))
        rows.append({"bytes": length, **dict(zip(names, medians, strict=True))})
        print(optimizer, {k: round(v, 4) for k, v in rows[-1].items()}, flush=True)
    return rows


BYTES = ("--model=tiny", "--tokenizer=bytes")


def train(folder, *words):
    """Start a training in a folder."""
    return mlxhog(folder, "train", "--json", "--workers=torch:cpu", *BYTES, *words)


def answers(folder, run, scale):
    """Answer while the run goes on with segments that it finds in a folder."""
    (folder / "new").mkdir()
    lines = []
    for k, batch in zip(range(4000), segments(128), strict=False):
        for x in batch.x:
            text = bytes(x.astype(np.uint8)).decode("utf-8", "replace")
            lines.append(json.dumps({"prompt": text[:85], "answer": text[85:]}))
        if k % 400 == 399:
            (folder / "new" / f"{k}.jsonl").write_text("\n".join(lines))
            lines = []
    training = train(folder, "--resume", str(run.directory), "--follow", "new")
    try:
        source, model = opened(folder)
        follower = WeightFollower(source, model.backend)
        sampling = Sampling(max_new_tokens=ANSWER)
        updates_in, tokens_after, ages, tokens = [], [], [], 0
        began = time.monotonic()
        while time.monotonic() - began < scale.seconds:
            follower.refresh(in_sequence=False)
            versions = []
            for _ in model.answer(["The "], sampling, by=follower):
                loaded = follower.loaded()
                versions.append(loaded.version)
                ages.append(loaded.age_updates)
            updates_in.append(versions[-1] - versions[0])
            tokens_after.append(sum(version != versions[0] for version in versions))
            tokens += len(versions)
        seconds = time.monotonic() - began
        status = ask(run.directory, "status", timeout_s=10.0)
        source.close()
        return {
            "answers": len(updates_in),
            "answers of several versions": sum(map(bool, tokens_after)) / len(tokens_after),
            "tokens of other weights than the first": sum(tokens_after) / tokens,
            "updates in an answer": Sample.of([float(n) for n in updates_in]),
            "age in updates": Sample.of([float(n) for n in ages]),
            "reader_tokens_per_s": tokens / seconds,
            "writer_step": status["step"],
        }
    finally:
        training.kill()
        training.communicate()


def opened(folder):
    """The run's shared weights, once it trains."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        try:
            source, model = open_source("latest", root=folder / "runs", backend="torch:cpu")
        except MlxhogError:
            time.sleep(0.2)
            continue
        if not source.ended():
            return source, model
        time.sleep(0.2)
    raise RuntimeError("the run does not go on")


def measure(findings, chosen):
    """Measure each optimizer."""
    scale = smallest(TINY, QUICK if chosen.quick else FULL)
    findings.results["scale"] = vars(scale)
    for optimizer in smallest(OPTIMIZERS[1:2], OPTIMIZERS):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            words = ("--optimizer", optimizer, "--steps", str(scale.steps), "--eval-every", "off")
            training = train(folder, *words)
            training.communicate()
            (run,) = runs.list_runs(folder / "runs")
            rows = steps(optimizer, checkpoint.latest(run), scale)
            live = answers(folder, run, scale)
        print(optimizer, live, flush=True)
        findings.results[optimizer] = {"steps": rows, "answers": live}
        dense = max(row["zeros of dense layers"] for row in rows)
        findings.at_most(
            f"{optimizer}: zeros among the gradients of dense layers", dense, DENSE_ZEROS,
            timing=False,
        )  # fmt: skip


def main():
    """Read the flags, and measure."""
    chosen = flags(__doc__, quick="fewer steps and segments").parse_args()
    return measured("one_writer", chosen, measure, packages=("torch",))


if __name__ == "__main__":
    raise SystemExit(main())
