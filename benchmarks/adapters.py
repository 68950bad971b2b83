"""Adapters beside one frozen base: the memory of all processes, the start, and a killed worker.

    python benchmarks/adapters.py --quick    the 1.4B layout in bf16 and in 4 bits
    python benchmarks/adapters.py --full     also 400M at 2 x 1,024 tokens, and 7B in 4 bits

Bases have random weights, in a folder that is removed. Two workers, torch:cpu and mlx:cpu, train
`lora(rank=8)` on them, 1 x 32 tokens a step. Measured are the proportional set size of all
processes of the run at its highest, the seconds until both workers have taken a step, those of a
conversion included, and the seconds from the kill of a worker to the next step of its slot. The
7B layout is loaded by one backend, which generates 8 tokens, and takes a step of 8.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from harness.frame import run, say
from harness.interleaved import mlxhog
from harness.machine import resident, smallest

from mlxhog import arena, backends
from mlxhog.backends import frozen
from mlxhog.base import mapped, tensors
from mlxhog.data import tokenizers
from mlxhog.data.batch import Batch
from mlxhog.models import families
from mlxhog.models.adapters import LoRA
from mlxhog.models.registry import load_architecture

LARGE, MIDDLE, HUGE = "1.3b", "400m", "7b"
MAX_SHARE, MORE_BYTES = 1.15, 1.5e9  # of the base, in all processes
MAX_START_S, MAX_BACK_S = 60.0, 20.0
MAX_MIDDLE, MAX_HUGE = 6e9, 24e9
TEXT = "The quick brown fox jumps over the lazy dog. " * 2000
PATIENCE_S = 1200.0


def make_base(name, folder):
    """Write a base of random weights in bfloat16 with a tokenizer of bytes; return its bytes."""
    model = load_architecture(name)
    noise = np.random.default_rng(0).normal(0.0, 0.02, 1 << 20).astype(mapped.BFLOAT16)
    own = {}
    for spec in families.param_spec(model).values():
        is_norm = spec.init == "ones"
        own[spec.name] = np.resize(np.ones(1, noise.dtype) if is_norm else noise, spec.shape)
    folder.mkdir()
    tensors.write(folder / "model.safetensors", own)
    (folder / "config.json").write_text(json.dumps(model.to_dict()))
    for file, content in tokenizers.build("bytes", lambda: iter([b""])).files().items():
        (folder / file).write_bytes(content)
    return sum(tensor.nbytes for tensor in own.values())


def shared_bytes(pid):
    """The proportional set size of a process and all of its children, in bytes."""
    process, total = psutil.Process(pid), 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.Error, AttributeError):
            continue
    return total


def train(scratch, base, weights, *, batch, length, kills):
    """Train on a base; return its highest memory, and the seconds of start and return."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    (folder / "own.txt").write_text(TEXT)
    words = ["--adapter", "lora(rank=8)", "--base-weights", weights, "--workers",
             "torch:cpu,mlx:cpu", "--data", "own.txt", "--batch-size", batch, "--seq-len", length,
             "--recompute", "blocks", "--steps", 10_000, "--val-subset-tokens", 32,
             "--strategy", "hogwild"]  # fmt: skip
    began, most, killed, seconds = time.monotonic(), 0, {}, {}
    process = mlxhog(folder, "train", "--init-from", str(base), *map(str, words))
    try:
        while "back" not in seconds and time.monotonic() - began < PATIENCE_S:
            most, workers = max(most, shared_bytes(process.pid)), workers_of(folder)
            have_begun = len(workers) == 2 and all(one["steps"] for one in workers)
            if have_begun and not killed:
                seconds["start"], killed = time.monotonic() - began, workers[0]
                if not kills:
                    break
                os.kill(killed["pid"], signal.SIGKILL)
                killed_s = time.monotonic()
            elif killed and workers[0]["pid"] != killed["pid"]:
                if workers[0]["steps"] > killed["steps"]:
                    seconds["back"] = time.monotonic() - killed_s
            if process.poll() is not None:
                raise SystemExit(f"mlxhog train ended with {process.returncode}")
            time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    return most, seconds


def workers_of(folder):
    """The workers of the run in a folder, as its newest measurement has them."""
    for file in folder.glob("runs/*/metrics.jsonl"):
        if lines := file.read_text().splitlines():
            return json.loads(lines[-1])["workers"]
    return []


def peak_of_step(base, name, backend):
    """Bytes that a process takes to generate 8 tokens and take a step of 8, in 4 bits."""
    model = replace(load_architecture(name), adapter=LoRA(rank=8))
    own = backends.create(backend, threads=2, kernels="auto")
    files = tensors.read(base / "model.safetensors")
    weights = frozen.shared(model, files, "4bit", digest=f"benchmark-{name}")
    own.load_frozen(model, weights, weights="4bit")
    layout = arena.plan(families.trainable_spec(model), max_workers=1, n_tickets=1)
    own.bind(model, layout, recompute=True)
    own.param_buffer[:] = 0.01
    own.refresh()
    tokens, state = np.full((1, 1), 7, np.int32), None
    for _ in range(8):
        logits, state = own.logits(tokens, state)
        tokens = logits.argmax(-1).astype(np.int32)[:, None]
    x = np.arange(9, dtype=np.int32)[None]
    own.loss_and_grads(Batch(x[:, :-1].copy(), x[:, 1:].copy(), n_bytes=0))
    return resident()[1]


def measure(findings, chosen):
    """Measure, print, claim."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["XDG_CACHE_HOME"] = scratch
        of_large(findings, folder)
        if not chosen.quick:
            middle = smallest("tiny", MIDDLE)
            make_base(middle, folder / middle)
            most, _ = train(folder, folder / middle, "4bit", batch=2, length=1024, kills=False)
            name = f"{middle}, 4bit, 2 x 1,024 tokens: GB of all processes"
            findings.at_most(name, most / 1e9, MAX_MIDDLE / 1e9, timing=False)
            make_base(HUGE, folder / HUGE)
            words = [sys.executable, __file__, "--step-of", str(folder / HUGE)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            name = f"{HUGE}, 4bit, 8 tokens and a step of 8: GB of the process"
            findings.at_most(name, int(done.stdout.split()[-1]) / 1e9, MAX_HUGE / 1e9, timing=False)


def of_large(findings, folder):
    """Measure two workers on the largest base that both formats are trained with."""
    large, rows = smallest("tiny", LARGE), []
    base_bytes = make_base(large, folder / large)
    for weights in ("bfloat16", "4bit"):
        say(f"{large}, {weights}: two workers, 1 x 32 tokens a step")
        most, seconds = train(folder, folder / large, weights, batch=1, length=32, kills=True)
        held = base_bytes * (1 if weights == "bfloat16" else 5 / 16)
        rows.append({"base": large, "weights": weights, "GB": most / 1e9, **seconds})
        name = f"{large}, {weights}"
        limit = (MAX_SHARE * held + MORE_BYTES) / 1e9
        findings.at_most(f"{name}: GB of all processes", most / 1e9, limit, timing=False)
        findings.at_most(f"{name}: seconds to the first steps", seconds["start"], MAX_START_S)
        findings.at_most(f"{name}: seconds until a killed worker is back", seconds["back"],
                         MAX_BACK_S)  # fmt: skip
    findings.table(rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step-of"]:
        print(peak_of_step(Path(sys.argv[2]), HUGE, "mlx:cpu"))
        raise SystemExit
    run(__doc__, measure, packages=("mlx", "torch"))
