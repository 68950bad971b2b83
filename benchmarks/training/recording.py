"""Runs of `mlxhog.train` with a recorder: what a training did over time, found out afterwards.

While a run trains, the recorder copies the shared parameters twice a second from a read-only
attachment. Held-out loss is computed from the copies when training is over, so that no evaluation
takes time from it. Times are seconds since all workers were ready.
"""

from __future__ import annotations

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
from harness.machine import ROOT, one_of_a_kind, smallest
from numpy.typing import NDArray

from mlxhog import TrainConfig, train
from mlxhog.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.requests import socket_path
from mlxhog.data import heldout
from mlxhog.report.metrics import Result

MOST_BYTES = 2 << 30  # of parameters that are kept of a run

BYTES = {"model": "tiny", "tokenizer": "bytes"}
"""The model and the tokens of all recorded numbers, if an option does not name others."""
SMALLEST_RUN = {"steps": 32, "tokens": None, "time": None, "batch_size": 2, "seq_len": 32}
"""What `--tiny` makes of every run but those of a cluster, whose rounds go by the clock."""


def of_this_size(options):
    """Options of a run; with `--tiny` those of a run of a second on the pages of docs/."""
    return {**smallest({"data": str(ROOT / "docs")}, {}), **options, **smallest(SMALLEST_RUN, {})}


QUIET_OPTIONS = {**BYTES, "eval_every": "off", "sample_every": "off", "save_every": "off"}


@dataclass
class Point:
    """The run at one moment."""

    seconds: float
    tokens: int
    params: NDArray[np.float32] | None


@dataclass
class Recorded:
    """A finished run, its points, and its part in a cluster as run.json has it."""

    result: Result
    points: list[Point]
    pss_bytes: int
    cluster: dict[str, Any]


@dataclass
class _Recorder:
    out: Path
    keep_params: bool
    arena: Arena | None = None
    points: list[Point] = field(default_factory=list)
    pss_bytes: int = 0
    _gap_s: float = 0.0
    _next_s: float = 0.0

    def _thin(self, seconds):
        """Drop every other point, and look half as often from now on."""
        del self.points[1::2]
        self._gap_s = seconds / len(self.points)

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
            if len(self.points) * self.arena.params.nbytes > MOST_BYTES:
                self._thin(seconds)
        pids = [worker.pid for worker in progress.workers if worker.state == "running"]
        self.pss_bytes = max(self.pss_bytes, sum(map(pss_bytes, pids)))


@one_of_a_kind
def record(*, keep_params=False, **options):
    """Train with `options` of TrainConfig in a temporary folder, recording as it goes.

    Raises:
        KeyboardInterrupt: the user has interrupted the run, and so the benchmark.
    """
    out = Path(tempfile.mkdtemp(prefix="mlxhog-benchmark-"))
    try:
        recorder = _Recorder(out / "runs", keep_params)
        options = of_this_size({**QUIET_OPTIONS, "out": str(out / "runs"), **options})
        config = TrainConfig(**options)
        result = train(config, observer=recorder)
        if result.status == "interrupted":
            raise KeyboardInterrupt
        assert recorder.arena is not None, "a run tells of itself before it starts"
        points = [point for point in recorder.points if point.seconds < result.seconds]
        params = recorder.arena.params.copy() if keep_params else None  # at rest by now
        points.append(Point(result.seconds, result.tokens, params))
        recorder.arena.close()
        status = json.loads((Path(result.run) / "run.json").read_text())
        return Recorded(result, points, recorder.pss_bytes, status.get("cluster", {}))
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
def model_file(**sizes):
    """A YAML architecture like `tiny` but for some sizes, in a file that ends with this process."""
    import yaml

    from mlxhog.models.registry import load_architecture

    fields = {**load_architecture("tiny").to_dict(), **sizes}
    for other in ("embedding_dim", "num_blocks"):
        fields.pop(other, None)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
        yaml.safe_dump(fields, file)
    atexit.register(partial(Path(file.name).unlink, missing_ok=True))
    return file.name


def count_parameters(model):
    """Parameters of an architecture."""
    from mlxhog.models.families import param_count
    from mlxhog.models.registry import load_architecture

    return param_count(load_architecture(model))


def pss_bytes(pid):
    """Proportional set size of a process: shared pages are divided among those who map them."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    line = next(line for line in text.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024


def held_out_bits(backend, text, seq_len, tokens):
    """Bits per byte of a backend's parameters over so many tokens, spread over a text."""
    nats, n_bytes = 0.0, 0
    for batch in heldout.batches(text, seq_len=seq_len, batch_size=32, eval_tokens=tokens):
        nats += backend.evaluate(batch).nats
        n_bytes += batch.n_bytes
    return heldout.bits_per_byte(nats, n_bytes)


ALONE = {"strategy": "serial", "workers": "torch:cpu", "threads": 1, "tokenizer": "bytes"}
WORST_BITS = 8.0
"""Bits per byte of a uniform guess; the score of a training that diverged."""


@one_of_a_kind
def end_bits(held_out, **options):
    """Train one worker on one core, and return held-out bits per byte over so many tokens.

    It depends on nothing but its options, so several may run side by side, and nothing is timed.
    """
    from mlxhog.arena.child import Lane
    from mlxhog.theory.short_runs import score
    from mlxhog.training.plan import make_plan

    with tempfile.TemporaryDirectory(prefix="mlxhog-benchmark-") as out:
        config = TrainConfig(**of_this_size({**QUIET_OPTIONS, **ALONE, **options, "out": out}))
        result = train(config, observer=None)
        if result.status == "interrupted":
            raise KeyboardInterrupt
        if result.status != "done":
            return WORST_BITS
        text, tokens = make_plan(config).data.val, smallest(2048, held_out)
        place = (Path(str(result.checkpoint)), text, config.seq_len, tokens)
        nats, n_bytes = score(Lane(None, 0), "torch:cpu", *place)
        bits = heldout.bits_per_byte(float(nats.sum()), int(n_bytes.sum()))
    return bits if math.isfinite(bits) else WORST_BITS


class HeldOut:
    """Bits per byte on held-out text, in this process, for recorded parameters."""

    def __init__(self, options, tokens=65_536):
        """Open the text of a run with these options, and lay its model over a buffer."""
        from mlxhog import backends
        from mlxhog.training.plan import make_plan

        plan = make_plan(TrainConfig(**of_this_size(options)))
        self._seq_len, self._tokens = plan.config.seq_len, smallest(2048, tokens)
        self._file = plan.data.open(self._seq_len)[1]
        self._backend = backends.create("torch:cpu", threads=2, kernels="auto", cpu_blas="auto")
        self._backend.bind(plan.model, plan.layout.slots, plan.layout.n_floats, None)

    def bits_per_byte(self, params):
        """Evaluate one copy of the parameter segment."""
        self._backend.inbox[:] = params
        return held_out_bits(self._backend, self._file, self._seq_len, self._tokens)

    def crossing(self, points, target):
        """Seconds and tokens at which the loss first falls to `target`; None if it never does.

        Bisection over the points (the loss falls but for noise), then a straight line between two.
        """
        scores = {}

        def score(k):
            if k not in scores:
                params = points[k].params
                assert params is not None
                scores[k] = self.bits_per_byte(params)
            return scores[k]

        low, high = 0, len(points) - 1
        if high < 1 or score(high) > target or score(low) <= target:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if score(middle) > target else (low, middle)
        share = (score(low) - target) / (score(low) - score(high))
        a, b = points[low], points[high]
        return a.seconds + share * (b.seconds - a.seconds), a.tokens + share * (b.tokens - a.tokens)
