"""A server beside a training: many clients, many streams at once, the first token.

    python benchmarks/serving.py                      everything, a few minutes
    python benchmarks/serving.py --quick              fewer requests and tokens
    python benchmarks/serving.py --only streams       one part of it, or several

streams    tokens/s of 32 answers at once on two threads, beside those of one answer, of the engine
           alone: `tiny`, and a model whose weights do not fit into the caches
requests   OpenAI's client, 16 at a time, asks a server of a run that trains; what failed or hung,
           how much memory the server takes on, how many versions of the weights answered
first      seconds to the first token of a stream, asked one after another while the run trains
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness.claims import Sample, flags, measured
from harness.estimates import Mean, Ratio
from harness.interleaved import with_twin
from harness.machine import resident, smallest
from language_models.decoding import Ids, load_backend

from mlxhog.checkpoint import run as runs
from mlxhog.decoding.engine import Engine, Request
from mlxhog.decoding.options import Sampling
from mlxhog.models.registry import load_architecture
from mlxhog.models.xlstm_large import XLSTMLargeConfig

STREAMS, THREADS, CLIENTS = 32, 2, 16
GAIN = 5.0  # of 32 answers over one
FIRST_S = 0.1
MEMORY_BYTES = 16 << 20
HUNG_S = 120.0


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    requests: int
    firsts: int
    tokens: int
    turns: int


FULL, QUICK = Scale(1000, 200, 400, 5), Scale(200, 50, 100, 3)
TINY = Scale(10, 1, 4, 1)


# -- many streams ----------------------------------------------------------------------------------


def models():
    """`tiny`, and one of 100 MB."""
    large = XLSTMLargeConfig(vocab_size=8192, hidden_size=512, num_hidden_layers=6, num_heads=4)
    return {"tiny": load_architecture("tiny"), "d 512 x 6": large}


def tokens_per_s(backend, cfg, count, tokens):
    """Tokens per second of `count` answers at once, from when all are being written."""
    engine = Engine(backend, Ids(cfg.vocab_size), batch_size=count)
    for k in range(count):
        sampling = Sampling(max_new_tokens=tokens, seed=k)
        engine.submit(Request(prompt=[1, 2, 3], sampling=sampling))
    engine.step()
    began, written = time.perf_counter(), 0
    while engine.is_busy:
        written += len(engine.step())
    return written / (time.perf_counter() - began)


def streams(scale, findings):
    """Measure what answering together gains."""
    for name, cfg in models().items():
        together(scale, findings, name, cfg)


def together(scale, findings, name, cfg):
    """One answer and many at once, in turns, by one model."""
    backend = load_backend("torch:cpu", cfg, threads=THREADS)
    tokens_per_s(backend, cfg, 2, 20)
    rates, again = with_twin(
        range(scale.turns),
        (1, STREAMS),
        lambda count, _: tokens_per_s(backend, cfg, count, scale.tokens),
        twin=1,
    )
    findings.same(f"one stream, tokens per second, {name}", rates[1], again)
    one, many = Sample.of(rates[1]), Sample.of(rates[STREAMS])
    gain = Ratio.of(rates[STREAMS], rates[1])
    print(f"{name}: {one.median:,.0f} tok/s alone, {many.median:,.0f} together, {gain} times")
    findings.results[f"streams {name}"] = {"one": one, "together": many}
    findings.at_least(f"{STREAMS} streams over one, {THREADS} threads, {name}", gain, GAIN)


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


def mlxhog(folder, *words):
    """Start a command."""
    return subprocess.Popen(
        [sys.executable, "-m", "mlxhog", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@contextmanager
def serving(workers):
    """A server of a run that trains until the block ends."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training = mlxhog(folder, "train", "--time", "1h", "--workers", workers, "--json")
        served = None
        try:
            deadline = time.monotonic() + HUNG_S
            while not any((run.directory / "socket").exists() for run in list_runs(folder)):
                if training.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the training did not start")
                time.sleep(0.1)
            served = mlxhog(folder, "serve", "latest", "--port", "0", "--json")
            assert served.stdout is not None
            told = json.loads(served.stdout.readline())
            yield Server(told["url"], told["model"], told["pid"])
            if training.poll() is not None:
                raise SystemExit("the training ended meanwhile")
        finally:
            for process in (served, training):
                if process is not None:
                    process.send_signal(signal.SIGTERM)
                    process.communicate()


def list_runs(folder):
    """The runs of a folder."""
    return runs.list_runs(folder / "runs")


def requests(scale, findings):
    """Have many clients ask at once while a run trains."""
    failed = []
    seconds = []
    versions = set()
    with serving("torch:cpu") as server:

        def ask(numbers, lock):
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
            numbers, lock = iter(range(count)), threading.Lock()
            threads = [threading.Thread(target=ask, args=(numbers, lock)) for _ in range(CLIENTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        all_of(scale.requests // 10)
        before, _ = resident(server.pid)
        all_of(scale.requests)
        grown = resident(server.pid)[0] - before
    print(
        f"{len(seconds)} answers, median {statistics.median(seconds):.3f} s, the longest "
        f"{max(seconds):.3f} s; {len(versions)} versions; memory {grown / 2**20:+.1f} MiB"
    )
    findings.results["requests"] = {
        "seconds": Sample.of(seconds), "versions": len(versions), "failed": failed[:5],
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


def first(scale, findings):
    """Measure the time to the first token while a run trains on every core."""
    seconds = []
    with serving("auto") as server, server.client() as client:
        for k in range(scale.firsts + 5):
            began = time.perf_counter()
            stream = client.completions.create(
                model=server.model, prompt="The state of", max_tokens=8, stream=True
            )
            next(iter(stream))
            seconds.append(time.perf_counter() - began)
            for _ in stream:
                pass
            if k < 5:
                seconds.clear()  # connections and caches begin
            time.sleep(0.02)
    late = float(np.quantile(seconds, 0.95))
    mean = Mean.of(seconds)
    print(f"first token: {mean.spelt('.4f')} s, 95 % below {late:.4f} s")
    findings.results["first"] = {"seconds": Sample.of(seconds), "95 %": late}
    findings.at_most("seconds to the first token while training", mean, FIRST_S)


PARTS = {
    "streams": streams,
    "requests": requests,
    "first": first,
}


def main():
    """Measure, and print the claims."""
    chosen = flags(__doc__, quick="fewer requests and tokens", parts=PARTS).parse_args()
    packages = ("torch", "starlette", "uvicorn", "openai")
    return measured("serving", chosen, measure, packages=packages)


def measure(findings, chosen):
    """Measure the parts."""
    for name in chosen.only or PARTS:
        print(f"-- {name}", flush=True)
        PARTS[name](smallest(TINY, QUICK if chosen.quick else FULL), findings)


if __name__ == "__main__":
    raise SystemExit(main())
