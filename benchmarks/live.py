"""Reading a model while it is trained: what is promised, what it costs, what a weight change does.

    python benchmarks/live.py                      everything, 17 minutes
    python benchmarks/live.py --quick              fewer reads, shorter runs
    python benchmarks/live.py --only promises      one part of it, or several

promises    reads against writers that add 1 to every element at every update, mode by mode
training    tokens/s of a training on one core with a reader busy on another, and the reader's own
            beside those of a generator of a checkpoint while nothing trains
publishing  what taking one copy costs, for models of several sizes
states      logits after a text whose state was computed with older weights, and with the newest
server      a server of a run that trains, by `serving.py`: streams at once, clients, first tokens

A part is a function that adds to the findings; `PARTS` lists them.
"""

from __future__ import annotations

import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import serving
from harness.claims import Sample, flags, measured
from harness.estimates import Ratio
from harness.interleaved import answer, spawned
from harness.machine import cores, pin, smallest, unpin

from mlxhog.arena import Arena, plan, published
from mlxhog.base.quantities import Interval
from mlxhog.config.config import TrainConfig
from mlxhog.decoding.options import Sampling
from mlxhog.errors import MlxhogError
from mlxhog.live import CHECKPOINT, READ_MODES
from mlxhog.live.opening import open_source
from mlxhog.live.source import WeightFollower
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.strategies import build
from mlxhog.training.publishing import Publisher
from tests.live.patterns import Inbox, check, pattern_run

PROMPT = "The "
BYTES = ("--model=tiny", "--tokenizer=bytes")
TEXT = "The Congress shall from time to time receive from the President information on the state "
SIZES = ("tiny", "125m")
START_S = 120.0
ALL_CORES = cores()


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        reads: of each mode.
        seconds: of each training run that is timed.
        turns: pairs of such runs.
        copies: that are taken of each model.
        steps: updates before states are compared.
        gaps: updates between the weights of two versions that are.
    """

    reads: int
    seconds: float
    turns: int
    copies: int
    steps: int
    gaps: tuple[int, ...] = (1, 10, 100)


FULL = Scale(reads=100_000, seconds=30.0, turns=5, copies=50, steps=400)
QUICK = Scale(reads=2_000, seconds=12.0, turns=2, copies=10, steps=100)
TINY = Scale(reads=20, seconds=1.0, turns=1, copies=1, steps=1, gaps=(1,))


# -- promises --------------------------------------------------------------------------------------


def promises(scale, findings):
    """Reads of each mode against two writers; a read that breaks its promise is counted."""
    rows = {}
    for mode in READ_MODES:
        with tempfile.TemporaryDirectory() as folder, pattern_run(Path(folder), writers=2) as run:
            source, backend = run.reader(mode), Inbox()
            broken, whole, versions = 0, 0, set()
            began = time.perf_counter()
            for _ in range(scale.reads):
                loaded = source.load(backend)
                versions.add(loaded.version)
                whole += loaded.consistent
                try:
                    check(mode, loaded, backend.inbox, run.arena)
                except AssertionError:
                    broken += 1
            seconds = time.perf_counter() - began
            source.close()
        rows[mode] = {
            "reads": scale.reads,
            "of one version": whole / scale.reads,
            "versions seen": len(versions),
            "reads_per_s, checked": scale.reads / seconds,
        }
        print(f"{mode:20} {rows[mode]}", flush=True)
        findings.exact(f"{mode}: reads of {scale.reads:,} that broke the promise", broken, 0)
    findings.results["promises"] = rows


# -- training beside a reader ----------------------------------------------------------------------


def write_for_ever(spec, out, mode, core, pipe):
    """In a process: generate from a run or a checkpoint on one core; tell tokens and versions."""
    pin(core)
    deadline = time.monotonic() + START_S
    while True:
        try:
            source, model = open_source(spec, root=Path(out), backend="torch:cpu", mode=mode)
            if mode == CHECKPOINT or not source.ended():
                break
        except MlxhogError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)
    follower = WeightFollower(source, model.backend)
    pipe.send("reads")
    while True:
        pipe.send(_written(model, follower, pipe.recv()))


def _written(model, follower, seconds):
    """Generate for some time, answer after answer of 100 tokens."""
    tokens, answers, of_two, versions = 0, 0, 0, set()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        follower.refresh(in_sequence=False)
        sampling, answer_versions = Sampling(max_new_tokens=100, seed=answers), set()
        for _ in model.answer([PROMPT], sampling, by=follower):
            tokens += 1
            answer_versions.add(follower.loaded().version)
        answers, of_two, versions = (
            answers + 1,
            of_two + (len(answer_versions) > 1),
            versions | answer_versions,
        )
    now = time.perf_counter()
    return {
        "tokens_per_s": tokens / (now - began),
        "versions": len(versions),
        "answers of several versions": of_two / max(1, answers),
    }


@contextlib.contextmanager
def reading(spec, out, mode, core):
    """A process that generates when it is asked to; the pipe takes seconds and gives findings."""
    with spawned(write_for_ever, spec, out, mode, core) as (pipe, _):
        answer(pipe, "the reader")  # it reads
        yield pipe


def trained(out, seconds, core, *, with_reader):
    """One run on one core, perhaps with a reader on another; its result and the reader's."""
    options = ["--workers=torch:cpu", "--threads=1", f"--out={out}", *BYTES]
    options += [f"--time={seconds:g}", "--eval-every=off", "--sample-every=off", "--save-every=off"]
    command = [sys.executable, "-m", "mlxhog", "train", "--json", "--quiet", *options]
    pin(core)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    unpin(ALL_CORES)
    measurements = {}
    try:
        if with_reader is not None:
            with reading("latest", out, READ_MODES[0], with_reader) as pipe:
                pipe.send(max(2.0, seconds * 0.6))
                measurements["reader"] = answer(pipe, "the reader")
        output, _ = process.communicate(timeout=seconds + START_S)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
    measurements["tokens_per_s"] = json.loads(output.splitlines()[-1])["tokens_per_s"]
    return measurements


def training(scale, findings):
    """The same training with and without a reader, in turns."""
    core, other = cores()[0], cores()[-1]
    alone, beside, live, offline, again = [], [], [], [], []
    extra = []
    with tempfile.TemporaryDirectory() as out:
        for _ in range(scale.turns):
            alone.append(trained(out, scale.seconds, core, with_reader=None)["tokens_per_s"])
            run = trained(out, scale.seconds, core, with_reader=other)
            beside.append(run["tokens_per_s"])
            live.append(run["reader"]["tokens_per_s"])
            extra.append(run["reader"])
            with reading("latest", out, CHECKPOINT, other) as pipe:
                pipe.send(max(2.0, scale.seconds * 0.3))
                offline.append(answer(pipe, "the reader")["tokens_per_s"])
            again.append(trained(out, scale.seconds, core, with_reader=None)["tokens_per_s"])
            print(f"alone {alone[-1]:.0f}  beside a reader {beside[-1]:.0f} tokens/s;", end=" ")
            print(f"reader {live[-1]:.0f}, of a checkpoint {offline[-1]:.0f}", flush=True)
    findings.same("training alone, tokens per second", alone, again)
    ratio = Ratio.of(beside, alone)
    findings.at_least("training beside a reader on another core, of that without", ratio, 0.9)
    ratio = Ratio.of(live, offline)
    findings.at_least("the reader, of a generator of a checkpoint", ratio, 0.9)
    findings.results["training"] = {
        "alone_tokens_per_s": Sample.of(alone),
        "beside_tokens_per_s": Sample.of(beside),
        "reader_tokens_per_s": Sample.of(live),
        "offline_tokens_per_s": Sample.of(offline),
        "readers": extra,
    }


# -- publishing ------------------------------------------------------------------------------------


def publishing(scale, findings):
    """Seconds of one copy while nobody writes, and the memory of two."""
    rows = {}
    for name in smallest(SIZES[:1], SIZES):
        spec = families.param_spec(load_architecture(name))
        layout = plan(spec, n_tickets=1, extra=published.segments(16))
        with Arena.create(layout) as arena:
            with tempfile.TemporaryDirectory() as name, arena.serve(Path(name) / "s") as server:
                load = partial(
                    build(TrainConfig(steps=1, strategy="hogwild"), 1).load, training=True
                )
                publisher = Publisher(arena, server, load, Interval(steps=10**9))
                seconds = []
                for _ in range(scale.copies):
                    arena.counters.add("version")
                    began = time.perf_counter()
                    publisher._publish(at_rest=False)
                    seconds.append(time.perf_counter() - began)
                publisher.end()
        n_bytes = 4 * layout.n_floats
        rows[name] = {
            "copy_ms": Sample.of([1e3 * s for s in seconds]),
            "GB_per_s": n_bytes / statistics.median(seconds) / 1e9,
            "copies_bytes": 2 * n_bytes,
        }
        print(f"a copy of {name}: {1e3 * statistics.median(seconds):.2f} ms", flush=True)
    findings.results["publishing"] = rows


# -- states ----------------------------------------------------------------------------------------

AFTER = (1, 16, 64)
"""Tokens that the new weights have read of the text whose state the old ones made."""


def states(scale, findings):
    """How far logits are off whose state older weights have made.

    After a text is read with the weights of one version, the same text or more of it is read with
    those of a later version: from the state that there is, and from the beginning.
    """
    with tempfile.TemporaryDirectory() as out:
        by_version, model = _versions(out, scale.steps, scale.gaps)
    tokens = model.tokenizer.encode((TEXT * 8).encode())[:256].astype(np.int32)[None]
    rows = []
    base = min(by_version)
    for gap in scale.gaps:
        for after in AFTER:
            old = _logits(model, by_version[base], tokens[:, : 256 - after])
            mixed = _logits(model, by_version[base + gap], tokens[:, 256 - after :], old[1])
            fresh = _logits(model, by_version[base + gap], tokens)
            before = _logits(model, by_version[base], tokens)
            row = {
                "updates between": gap,
                "tokens read with the new weights": after,
                "largest difference of logits": float(np.abs(mixed[0] - fresh[0]).max()),
                "nats from recomputed": _divergence(fresh[0], mixed[0]),
                "nats between old and new weights": _divergence(fresh[0], before[0]),
            }
            rows.append(row)
            print(row, flush=True)
    findings.results["states"] = {"version": base, "rows": rows}


def _versions(out, steps, gaps):
    """Parameters at one version and some after it, read from a run while it trains."""
    options = ["--workers=torch:cpu", "--threads=1", "--live-every=1", *BYTES]
    options += [f"--steps={steps + max(gaps) + 200}", f"--out={out}", "--eval-every=off"]
    command = [sys.executable, "-m", "mlxhog", "train", "--json", "--quiet", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(MlxhogError):
                source, model = open_source("latest", root=Path(out), backend="torch:cpu")
                if not source.ended():
                    break
            if time.monotonic() > deadline:
                raise RuntimeError("the run cannot be read")
            time.sleep(0.05)
        by_version = {}
        while not source.ended():
            loaded = source.load(model.backend)
            wanted = [min(by_version, default=loaded.version) + gap for gap in gaps]
            if loaded.version >= steps and loaded.consistent:
                if not by_version or loaded.version in wanted:
                    by_version.setdefault(loaded.version, model.backend.inbox.copy())
                elif loaded.version > min(by_version) + max(gaps):
                    if len(by_version) == 1 + len(gaps):
                        break
                    by_version = {}  # one of them went by unseen
        if len(by_version) != 1 + len(gaps):
            raise RuntimeError("no run of versions without a gap was seen; is the machine busy?")
        return by_version, model
    finally:
        process.kill()
        process.wait()


def _logits(model, params, tokens, state=None):
    """Logits after the tokens, and the state."""
    np.copyto(model.backend.inbox, params)
    model.backend.refresh()
    return model.backend.logits(np.ascontiguousarray(tokens), state)


def _divergence(p_logits, q_logits):
    """Kullback-Leibler divergence of two next-token distributions, in nats."""

    def log_softmax(x):
        x = x.astype(np.float64) - x.max()
        return np.asarray(x - np.log(np.exp(x).sum()))

    p, q = log_softmax(p_logits), log_softmax(q_logits)
    return float((np.exp(p) * (p - q)).sum())


# -- server ----------------------------------------------------------------------------------------


def server(scale, findings):
    """Measure what `serving.py` measures."""
    for part in serving.PARTS.values():
        usual = serving.QUICK if scale.turns == QUICK.turns else serving.FULL
        part(smallest(serving.TINY, usual), findings)


PARTS = {
    "promises": promises,
    "training": training,
    "publishing": publishing,
    "states": states,
    "server": server,
}


def main():
    """Measure the parts that were asked for."""
    parser = flags(__doc__, quick="fewer reads, shorter runs", parts=PARTS)
    parser.add_argument("--reads", type=int, help="of each mode")
    return measured("live", parser.parse_args(), measure, packages=("torch",))


def measure(findings, chosen):
    """Measure the parts."""
    scale = smallest(TINY, QUICK if chosen.quick else FULL)
    if chosen.reads:
        scale = replace(scale, reads=chosen.reads)
    findings.results["scale"] = vars(scale)
    # With --tiny `serving.py` itself serves.
    for name in chosen.only or smallest(list(PARTS)[:-1], PARTS):
        PARTS[name](scale, findings)


if __name__ == "__main__":
    raise SystemExit(main())
