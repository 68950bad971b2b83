"""Runs of `mlxhog.train` with a recorder: what a training did over time, found out afterwards.

While a run trains, the recorder copies the shared parameters twice a second from a read-only
attachment. Validation loss is computed from the copies when training is over, so that no evaluation
takes time from it. Times are seconds since all workers were ready.
"""

import atexit
import json
import math
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from harness.frame import say
from harness.machine import ROOT, cores, one_of_a_kind, smallest

from mlxhog import TrainConfig, backends, train
from mlxhog.arena import Arena
from mlxhog.arena.child import Lane
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.requests import socket_path
from mlxhog.checkpoint.run import Run
from mlxhog.data import validation_set
from mlxhog.display.record import RunRecord
from mlxhog.experiments.short_runs import score
from mlxhog.models.families import param_count
from mlxhog.models.registry import load_architecture
from mlxhog.progress import Result
from mlxhog.training.plan.decide import make_plan

MAX_BYTES = 2 << 30  # of parameters that are kept of a run

BYTES = {"model": "tiny", "tokenizer": "bytes"}
"""The model and the tokens of all recorded numbers, if an option does not name others."""
MIN_RUN = {"steps": 32, "tokens": None, "time": None, "batch_size": 2, "seq_len": 32}
"""What `--tiny` makes of every run but those of a cluster, whose rounds go by the clock."""


def of_this_size(options):
    """Options of a run; with `--tiny` those of a run of a second on the pages of docs/.

    A run that begins with the weights of another takes its model and its tokenizer, too.
    """
    if "init_from" in options:
        options = {name: value for name, value in options.items() if name not in BYTES}
    return {**smallest({"data": str(ROOT / "docs")}, {}), **options, **smallest(MIN_RUN, {})}


QUIET_OPTIONS = {**BYTES, "eval_every": "off", "sample_every": "off", "save_every": "off"}


@dataclass
class Point:
    """The run at one moment."""

    seconds: float
    tokens: int
    params: Any  # a copy of the shared floats; None if they were not kept


@dataclass
class Recorded:
    """A finished run, its points, its part in a cluster, and how its strategy changed, in words."""

    result: Result
    points: list[Point]
    cluster: dict[str, Any]
    changes: str


@dataclass
class _Recorder:
    out: Path
    keep_params: bool
    arena: Arena | None = None
    points: list[Point] = field(default_factory=list)
    _gap_s: float = 0.0
    _next_s: float = 0.0

    def __call__(self, progress):
        if self.arena is None or progress.step < 1:  # a strategy that is chosen takes another arena
            (run,) = self.out.iterdir()
            self.arena = Arena.connect(socket_path(run))
        if progress.step < 1:
            return
        start = self.arena.counters.load("start_ns")
        seconds = (monotonic_ns() - start) / 1e9
        if seconds >= self._next_s:
            params = model_of(self.arena) if self.keep_params else None
            self.points.append(Point(seconds, self.arena.counters.load("tokens"), params))
            self._next_s = seconds + self._gap_s
            if len(self.points) * self.arena.params.nbytes > MAX_BYTES:
                del self.points[1::2]  # and look half as often from now on
                self._gap_s = seconds / len(self.points)


@one_of_a_kind
def record(*, keep_params=False, disturb=None, **options):
    """Train with `options` of TrainConfig in a temporary folder, recording as it goes.

    Args:
        keep_params: whether points have the parameters of their moment.
        disturb: further observer of the run, which has `end()` (`training.disturbances`).
        options: of `TrainConfig`.

    Raises:
        KeyboardInterrupt: the user has interrupted the run, and so the benchmark.
    """
    out = Path(tempfile.mkdtemp(prefix="mlxhog-benchmark-"))
    try:
        recorder = _Recorder(out / "runs", keep_params)
        options = of_this_size({**QUIET_OPTIONS, "runs_dir": str(out / "runs"), **options})
        config = TrainConfig(**options)
        try:
            observers = [recorder, *([] if disturb is None else [disturb])]
            result = train(config, observer=lambda one: [observe(one) for observe in observers])
        finally:
            if disturb is not None:
                disturb.end()
        if result.status == "interrupted":
            raise KeyboardInterrupt
        assert recorder.arena is not None, "a run tells of itself before it starts"
        points = [point for point in recorder.points if point.seconds < result.seconds]
        params = recorder.arena.params.copy() if keep_params else None  # at rest by now
        points.append(Point(result.seconds, result.tokens, params))
        recorder.arena.close()
        part = json.loads((Path(result.run) / "run.json").read_text()).get("cluster", {})
        events = RunRecord(Run(Path(result.run))).events
        changes = (f"{one.elapsed_s:.1f} s {one.text.split(':')[0]}"
                   for one in events if one.kind == "strategy")  # fmt: skip
        return Recorded(result, points, part, ", ".join(changes))
    finally:
        shutil.rmtree(out)


def model_of(arena):
    """Copy the parameters; of averaged runs, what their average would be now."""
    params = arena.params.copy()
    replicas = sum(name.startswith("copies.") for name in arena.layout.segments) - 1
    if replicas > 0:
        n = arena.layout.probe.offset
        copies = [arena.segment(f"copies.{k + 1}")[:n] for k in range(replicas)]
        params[:n] = sum(copies[1:], start=copies[0]) / np.float32(replicas)
    return params


@lru_cache
def model_file(like="tiny", **sizes):
    """A YAML architecture like one but for some sizes, in a file that ends with this process."""
    fields = {**load_architecture(like).to_dict(), **sizes}
    for other in ("embedding_dim", "num_blocks"):
        fields.pop(other, None)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
        yaml.safe_dump(fields, file)
    atexit.register(partial(Path(file.name).unlink, missing_ok=True))
    return file.name


def count_parameters(model):
    """Parameters of an architecture."""
    return param_count(load_architecture(model))


ALONE = {"strategy": "serial", "workers": "torch:cpu", "threads": 1, "tokenizer": "bytes"}
WORST_BITS = 16.0
"""Bits per byte that a diverged training counts as; a uniform guess has 8."""


@one_of_a_kind
def end_bits(validation, **options):
    """Train, one worker on one core by default; returns validation bits per byte of so many tokens.

    With one worker it depends on nothing but its options, so several may run side by side.
    """
    with tempfile.TemporaryDirectory(prefix="mlxhog-benchmark-") as out:
        config = TrainConfig(**of_this_size({**QUIET_OPTIONS, **ALONE, **options, "runs_dir": out}))
        result = train(config, observer=None)
        if result.status == "interrupted":
            raise KeyboardInterrupt
        if result.status != "done":
            return WORST_BITS
        place = (Path(str(result.checkpoint)), make_plan(config).data.val, config.seq_len)
        scores = score(Lane(None, 0), "torch:cpu", *place, smallest(2048, validation))
    bits = validation_set.bits_per_byte(*(float(of.sum()) for of in scores))
    return min(bits, WORST_BITS) if math.isfinite(bits) else WORST_BITS


class HeldOut:
    """Bits per byte on validation text, in this process, for recorded parameters."""

    def __init__(self, options, tokens=65_536):
        """Open the text of a run with these options, and lay its model over a buffer."""
        plan = make_plan(TrainConfig(**of_this_size(options)))
        self._seq_len, self._tokens = plan.config.seq_len, smallest(2048, tokens)
        self._file = plan.data.val
        self._backend = backends.create("torch:cpu", threads=len(cores()), kernels="auto")
        self._backend.bind(plan.model, plan.layout)

    def bits_per_byte(self, params):
        """Evaluate one copy of the parameter segment; `WORST_BITS` at most."""
        self._backend.param_buffer[:] = params
        batches = validation_set.batches(
            self._file, seq_len=self._seq_len, batch_size=32, val_subset_tokens=self._tokens
        )
        scores = [(self._backend.evaluate(batch).nats, batch.n_bytes) for batch in batches]
        bits = validation_set.bits_per_byte(*map(sum, zip(*scores, strict=True)))
        return min(bits, WORST_BITS) if math.isfinite(bits) else WORST_BITS

    def crossing(self, points, target):
        """Seconds and tokens at which the loss first falls to `target`; None if it never does.

        Bisection over the points (the loss falls but for noise), then a straight line between two.
        """
        scores = {}

        def bits(k):
            if k not in scores:
                scores[k] = self.bits_per_byte(points[k].params)
            return scores[k]

        low, high = 0, len(points) - 1
        if high < 1 or bits(high) > target or bits(low) <= target:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if bits(middle) > target else (low, middle)
        share = (bits(low) - target) / (bits(low) - bits(high))
        a, b = points[low], points[high]
        return a.seconds + share * (b.seconds - a.seconds), a.tokens + share * (b.tokens - a.tokens)


# -- trainings whose loss is known over time -------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        seconds: of the looks, since all workers were ready; the first look is at the first step.
        steps: gradients computed by then.
        bits: validation bits per byte then.
        tokens_per_s: over the whole training.
        staleness: mean over all workers.
        lost_update_rate: of the probe.
    """

    seconds: list[float]
    steps: list[float]
    bits: list[float]
    tokens_per_s: float
    staleness: float
    lost_update_rate: float

    @property
    def end(self):
        """Bits per byte at the end."""
        return self.bits[-1]

    def first(self, axis, target):
        """Seconds or steps until the loss is down to a target; infinite if it never is."""
        for k, bits in enumerate(self.bits):
            if bits <= target:
                if k == 0:
                    return axis[0]
                share = (self.bits[k - 1] - target) / (self.bits[k - 1] - bits)
                return axis[k - 1] + share * (axis[k] - axis[k - 1])
        return math.inf


def mean_staleness(reports):
    """Over the gradients of all workers."""
    steps = max(1, sum(report.steps for report in reports))
    return sum(report.mean_staleness * report.steps for report in reports) / steps


class Bench:
    """Runs trainings that have a model, a batch and a validation text in common."""

    def __init__(self, sizes, *, batch=2, seq_len=256, looks=10, val_subset_tokens=16_384):
        """Open the validation text.

        Args:
            sizes: of the architecture, in place of those of `tiny`.
            batch: sequences in a gradient.
            seq_len: tokens in a sequence.
            looks: evaluations of each training.
            val_subset_tokens: validation text of one evaluation.
        """
        self.model, self.looks, self.per_step = model_file(**sizes), looks, batch * seq_len
        text = {"model": self.model, "tokenizer": "bytes", "seq_len": seq_len}
        self.options = {
            **text, "batch_size": batch, "optimizer": "adamw", "schedule": "constant", "threads": 1,
            "strategy": "hogwild",
        }  # fmt: skip
        self.settings = {"sizes": sizes, "batch": batch, "seq_len": seq_len}
        self.validation = HeldOut(text, tokens=val_subset_tokens)

    def train(self, name, *, seed, **options):
        """Train, and evaluate what was copied on the way.

        Args:
            name: for the line of progress.
            seed: of initial values and data order.
            options: of `TrainConfig`, in place of the bench's.
        """
        run = record(keep_params=True, **{**self.options, "seed": seed, **options})
        points, reports = _spread(run.points, self.looks), run.result.workers
        training = Training(
            seconds=[round(point.seconds, 2) for point in points],
            steps=[point.tokens / self.per_step for point in points],
            bits=[round(self.validation.bits_per_byte(point.params), 4) for point in points],
            tokens_per_s=run.result.tokens_per_s,
            staleness=mean_staleness(reports),
            lost_update_rate=run.result.lost_update_rate or 0.0,
        )
        say(
            f"  {name:32} seed {seed}  {training.end:6.3f} bits per byte  "
            f"{training.seconds[-1]:6.1f} s  {training.tokens_per_s:7,.0f} tokens/s  "
            f"staleness {training.staleness:.2f}"
        )
        return training


def _spread(points, looks):
    """Some of the points, evenly over the text, the first and the last among them."""
    targets = np.linspace(points[0].tokens, points[-1].tokens, looks)
    tokens = [point.tokens for point in points]
    chosen = {int(np.argmin([abs(t - w) for t in tokens])) for w in targets}
    return [points[k] for k in sorted({0, len(points) - 1} | chosen)]


SIZES = {"hidden_size": 128, "num_hidden_layers": 4}
MINI = {"hidden_size": 64, "num_hidden_layers": 3}
TINY = {"hidden_size": 32, "num_hidden_layers": 1}


def workers(count, backend="torch:cpu"):
    """The mix of so many workers of one backend."""
    return backend if count == 1 else f"{backend}*{count}"


def enough_cores(count):
    """Whether so many workers have a core each here."""
    return count <= len(cores())
