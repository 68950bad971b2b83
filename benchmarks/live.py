"""A model that is read and served while it trains: what is promised, and what it costs.

    python benchmarks/live.py                              everything, 20 minutes
    python benchmarks/live.py --quick                      fewer reads and requests, shorter runs
    python benchmarks/live.py --only promises requests     some of the parts

promises    reads against writers that add 1 to every element at every update, mode by mode
training    tokens/s of a training on one core with a reader busy on another, and the reader's own
            beside those of a generator of a checkpoint while nothing trains
streams     tokens/s of 32 answers at once on two threads, beside those of one answer, of the engine
            alone: `tiny`, and a model whose weights do not fit into the caches
requests    OpenAI's client, 16 at a time, asks a server of a run that trains; what failed or hung,
            how much memory the server takes on, how many versions of the weights answered
first       seconds to the first token of a stream, asked one after another while the run trains
"""

import contextlib
import json
import signal
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from harness.estimates import Mean, Ratio
from harness.frame import each, run, say
from harness.interleaved import answer, mlxhog, spawned, with_control
from harness.machine import cores, pin, resident, smallest
from language_models.ours import Ids, Size, large, load_backend

from mlxhog import load
from mlxhog.checkpoint import run as runs
from mlxhog.decoding.engine import DecodingEngine, GenerationRequest
from mlxhog.decoding.options import Sampling
from mlxhog.errors import MlxhogError
from mlxhog.models.registry import load_architecture
from mlxhog.serving import CHECKPOINT, READ_MODES
from tests.serving.patterns import Inbox, PatternRun, check

BYTES = ("--model=tiny", "--tokenizer=bytes")
START_S, HUNG_S = 120.0, 120.0
ALL_CORES = cores()
STREAMS, THREADS, CLIENTS = 32, 2, 16
GAIN = 5.0  # of 32 answers over one
FIRST_S, MEMORY_BYTES = 0.1, 16 << 20


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        reads: of each mode.
        seconds: of each training run that is timed.
        turns: pairs of such runs, and of streams.
        requests, firsts: asked of a server.
        tokens: of each stream.
    """

    reads: int
    seconds: float
    turns: int
    requests: int
    firsts: int
    tokens: int


FULL = Scale(100_000, 30.0, 5, 1000, 200, 400)
QUICK = Scale(2_000, 12.0, 2, 200, 50, 100)
TINY = Scale(20, 1.0, 1, 10, 1, 4)


def scale_of(chosen):
    """The scale of a mode; the number of reads may be given."""
    scale = smallest(TINY, QUICK if chosen.quick else FULL)
    return replace(scale, reads=chosen.reads) if chosen.reads else scale


# -- promises --------------------------------------------------------------------------------------


def promises(findings, chosen):
    """Reads of each mode against two writers; a read that breaks its promise is counted."""
    scale = scale_of(chosen)
    rows = {}
    for mode in READ_MODES:
        with tempfile.TemporaryDirectory() as folder, PatternRun(Path(folder), writers=2) as run:
            source, backend = run.reader(mode), Inbox()
            broken, whole, versions = 0, 0, set()
            began = time.perf_counter()
            for _ in range(scale.reads):
                loaded = source.load(backend)
                versions.add(loaded.version)
                whole += loaded.consistent
                try:
                    check(loaded, backend.param_buffer, run.arena)
                except AssertionError:
                    broken += 1
            seconds = time.perf_counter() - began
            source.close()
        rows[mode] = {
            "reads": scale.reads, "of one version": whole / scale.reads,
            "versions seen": len(versions), "reads_per_s, checked": scale.reads / seconds,
        }  # fmt: skip
        say(f"{mode:20} {rows[mode]}")
        findings.exact(f"{mode}: reads of {scale.reads:,} that broke the promise", broken, 0)
    findings.results["promises"] = rows


# -- training beside a reader ----------------------------------------------------------------------


def write_for_ever(spec, out, mode, core, pipe):
    """In a process: generate from a run or a checkpoint on one core; send tokens per second."""
    pin(core)
    pipe.send("is there")
    model = opened(spec, out, mode)
    pipe.send("reads")
    while True:
        seconds, tokens, answers, began = pipe.recv(), 0, 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            sampling = Sampling(max_new_tokens=100, seed=answers)
            tokens += sum(1 for _ in model.answer(["The "], sampling))
            answers += 1
        pipe.send(tokens / (time.perf_counter() - began))


def opened(spec, out, mode):
    """The shared weights of a run once it has taken a step, or a checkpoint."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            model = load(spec, runs_dir=out, backend="torch:cpu", mode=mode, wait=0)
            source = model.follower.source
            if mode == CHECKPOINT or (source.newest() and not source.ended()):
                return model
        except MlxhogError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


@contextlib.contextmanager
def reading(out, mode, core):
    """A process that generates from the latest run; `rate(seconds)` is its tokens per second."""
    with spawned(write_for_ever, "latest", out, mode, core) as (pipe, _):

        def rate(seconds):
            answer(pipe, "the reader")  # it reads
            pipe.send(seconds)
            return answer(pipe, "the reader")

        answer(pipe, "the reader")
        yield rate


def trained(out, seconds, core, *, reader=None):
    """Tokens per second of a run on one core, and of a reader on another.

    With `--tiny` the run lasts until the reader has read, which may begin late.
    """
    waits = reader is not None and smallest(True, False)
    length = "1h" if waits else f"{seconds:g}"
    words = f"--workers=torch:cpu --threads=1 --time={length}"
    words += " --json --quiet --eval-every=off --sample-every=off --save-every=off"
    with contextlib.ExitStack() as stack:
        rate = None if reader is None else stack.enter_context(reading(out, READ_MODES[0], reader))
        pin(core)
        process = mlxhog(out, "train", *words.split(), f"--runs-dir={out}", *BYTES)
        stack.callback(process.wait)
        stack.callback(process.kill)
        pin(*ALL_CORES)
        read = None if rate is None else rate(smallest(0.2, max(2.0, seconds * 0.6)))
        if waits:
            process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=seconds + START_S)
    return json.loads(output.splitlines()[-1])["tokens_per_s"], read


def training(findings, chosen):
    """The same training with and without a reader, in turns."""
    scale = scale_of(chosen)
    core, other = cores()[0], cores()[-1]
    alone, beside, live, offline, again = [], [], [], [], []
    with tempfile.TemporaryDirectory() as out:
        for _ in range(scale.turns):
            alone.append(trained(out, scale.seconds, core)[0])
            rate, read = trained(out, scale.seconds, core, reader=other)
            beside.append(rate)
            live.append(read)
            with reading(out, CHECKPOINT, other) as rate:
                offline.append(rate(smallest(0.2, max(2.0, scale.seconds * 0.3))))
            repeats = smallest(False, True)
            again.append(trained(out, scale.seconds, core)[0] if repeats else alone[-1])
    rates = {"alone": alone, "beside": beside, "reader": live, "of a checkpoint": offline}
    findings.table(
        {"tokens per second": k, "mean": Mean.of(v).spelt(",.0f")} for k, v in rates.items()
    )
    findings.same("training alone, tokens per second", alone, again)
    name = "training beside a reader on another core, of that without"
    findings.at_least(name, Ratio.of(beside, alone), 0.9)
    findings.at_least("the reader, of a generator of a checkpoint", Ratio.of(live, offline), 0.9)


# -- many streams ----------------------------------------------------------------------------------


def tokens_per_s(backend, vocab, count, tokens):
    """Tokens per second of `count` answers at once, from when all are being written."""
    engine = DecodingEngine(backend, Ids(vocab), batch_size=count)
    for k in range(count):
        sampling = Sampling(max_new_tokens=tokens, seed=k)
        engine.submit(GenerationRequest(prompt=[1, 2, 3], sampling=sampling))
    engine.step()
    began, written = time.perf_counter(), 0
    while engine.is_busy:
        written += len(engine.step())
    return written / (time.perf_counter() - began)


def streams(findings, chosen):
    """One answer and many at once, in turns, by two models."""
    scale = scale_of(chosen)
    wide = large(smallest(Size(d=64, blocks=2, vocab=512), Size(d=512, blocks=6, vocab=8192)))
    for name, cfg in (("tiny", load_architecture("tiny")), ("d 512 x 6", wide)):
        backend = load_backend("torch:cpu", cfg, threads=THREADS)
        tokens_per_s(backend, cfg.vocab_size, 2, 20)
        rates, again = with_control(
            range(scale.turns), (1, STREAMS),
            lambda n, _, b=backend, v=cfg.vocab_size: tokens_per_s(b, v, n, scale.tokens),
            control=1,
        )  # fmt: skip
        findings.same(f"one stream, tokens per second, {name}", rates[1], again)
        gain = Ratio.of(rates[STREAMS], rates[1])
        findings.at_least(f"{STREAMS} streams over one, {THREADS} threads, {name}", gain, GAIN)
        findings.results[f"streams {name}"] = {f"{n}": Mean.of(own) for n, own in rates.items()}


# -- a server beside a training --------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A server of a run that trains."""

    url: str
    model: str
    pid: int

    def client(self):
        """OpenAI's client, which does not retry."""
        import openai

        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=HUNG_S)


@contextlib.contextmanager
def serving(workers):
    """A server of a run that trains until the block ends."""
    with tempfile.TemporaryDirectory() as name:
        folder, served = Path(name), None
        training = mlxhog(folder, "train", "--time", "1h", "--workers", workers, "--json")
        try:
            deadline = time.monotonic() + HUNG_S
            while not any(
                (run.directory / "socket").exists() for run in runs.list_runs(folder / "runs")
            ):
                if training.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the training did not start")
                time.sleep(0.1)
            served = mlxhog(folder, "serve", "latest", "--port", "0", "--json")
            line = json.loads(served.stdout.readline())
            yield Server(line["url"], line["model"], line["pid"])
            if training.poll() is not None:
                raise SystemExit("the training ended meanwhile")
        finally:
            for process in filter(None, (served, training)):
                process.send_signal(signal.SIGTERM)
                process.communicate()


def requests(findings, chosen):
    """Have many clients ask at once while a run trains."""
    with serving("torch:cpu") as server:
        ask_at_once(findings, scale_of(chosen), server)


def ask_at_once(findings, scale, server):
    """What `requests` measures, of a server."""
    failed, seconds, versions, lock = [], [], set(), threading.Lock()

    def ask(numbers):
        with server.client() as client:
            while True:
                with lock:
                    k = next(numbers, None)
                if k is None:
                    return
                began = time.perf_counter()
                try:
                    versions.update(_asked(client, server.model, k))
                    seconds.append(time.perf_counter() - began)
                except Exception as error:  # noqa: BLE001  # counted, whatever it is
                    failed.append(f"{type(error).__name__}: {error}")

    def all_of(count):
        numbers = iter(range(count))
        threads = [threading.Thread(target=ask, args=(numbers,)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    all_of(scale.requests // 10)
    before, _ = resident(server.pid)
    all_of(scale.requests)
    grown = resident(server.pid)[0] - before
    findings.results["requests"] = {
        "seconds": Mean.of(seconds), "versions": len(versions), "failed": failed[:5],
    }  # fmt: skip
    findings.exact("requests that failed or hung", len(failed), 0, n=scale.requests)
    findings.at_most("memory that the server took on, bytes", grown, MEMORY_BYTES, timing=False)


def _asked(client, model, k):
    """Ask once, whole or as a stream; returns the versions that answered."""
    how = {"model": model, "prompt": "The " * (1 + k % 40), "max_tokens": 8 + k % 50, "seed": k}
    if k % 2:
        *_, last = client.completions.create(**how, stream=True)
    else:
        last = client.completions.create(**how)
    weights = last.model_extra["mlxhog"]
    return {weights["version_first"], weights["version_last"]}


def first(findings, chosen):
    """Measure the time to the first token while a run trains on every core."""
    with serving("auto") as server:
        ask_in_turn(findings, scale_of(chosen), server)


def ask_in_turn(findings, scale, server):
    """What `first` measures, of a server."""
    seconds, warm = [], 5  # connections and caches begin
    with server.client() as client:
        for _ in range(scale.firsts + warm):
            began = time.perf_counter()
            stream = client.completions.create(
                model=server.model, prompt="The state of", max_tokens=8, stream=True
            )
            next(iter(stream))
            seconds.append(time.perf_counter() - began)
            for _ in stream:
                pass
            time.sleep(0.02)
    del seconds[:warm]
    findings.results["first"] = {
        "seconds": Mean.of(seconds),
        "95 %": float(np.quantile(seconds, 0.95)),
    }
    findings.at_most("seconds to the first token while training", Mean.of(seconds), FIRST_S)


PARTS = {one.__name__: one for one in (promises, training, streams, requests, first)}


def measure(findings, chosen):
    """Measure parts; all of `--tiny` have one server."""
    if chosen.only or smallest(False, True):
        each(PARTS)(findings, chosen)
        return
    for part in (promises, training, streams):
        part(findings, chosen)
    with serving("torch:cpu") as server:
        for ask in (ask_at_once, ask_in_turn):
            ask(findings, scale_of(chosen), server)


if __name__ == "__main__":
    run(
        __doc__, measure, only=PARTS,
        modes={"quick": "fewer reads and requests, shorter runs"},
        options={"--reads": {"type": int, "help": "of each mode"}},
        packages=("torch", "starlette", "uvicorn", "openai"),
    )  # fmt: skip
