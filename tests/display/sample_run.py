"""Runs that nobody trained, for what reads or shows them: their progress, and their folders."""

import json
import math
from dataclasses import replace
from importlib.metadata import version

from mlxhog.checkpoint.run import Run
from mlxhog.progress import Progress, WorkerReport

WORKER = WorkerReport(
    slot=1, backend="mlx:cpu", pid=4711, state="running", steps=352, tokens=360_448,
    tokens_per_s=17_200.0, mean_staleness=1.1, max_staleness=4, dropped=2,
    memory_bytes=212_000_000,
)  # fmt: skip
PROGRESS = Progress(
    step=640, tokens=655_360, elapsed_s=42.0, call_s=42.0, budget_fraction=0.7, eta_s=18.0,
    loss=1.58, train_bits_per_byte=2.28, val_bits_per_byte=2.31, tokens_per_s=31_300.0,
    lost_update_rate=0.0, memory_bytes=630_000_000,
    workers=(WORKER, replace(WORKER, slot=2, backend="torch:cpu", state="dead")),
    baselines={"uniform": 8.0, "unigram": 4.333, "gzip": 2.696, "xz": 2.186},
)  # fmt: skip

VALIDATION = {
    "asked_bytes": 65_536, "text": "0123456789abcdef predefined 65536", "n_bytes": 65_536,
    "share": 0.076, "batches": 16, "all_batches": 227, "larger_share": 1.0,
}  # fmt: skip
"""What a run.json says of the part of the validation text that evaluations are of."""


def lines(n, workers=2, *, every_s=2.0, pid=100):
    """Metrics of a run that goes well: every worker takes 10 steps between two lines."""
    for k in range(1, n + 1):
        table = [
            {
                "slot": slot, "backend": "torch:cpu", "pid": pid + slot, "state": "running",
                "steps": 10 * k, "tokens": 640 * k, "tokens_per_s": 300.0 + slot + math.sin(k),
                "mean_staleness": 1.0, "max_staleness": 3, "dropped": 0,
                "memory_bytes": 200_000_000 + k, "wait_s": 0.5 * k,
                "staleness": {"0": 3 * k, "1": 5 * k, "2": k, "3": k},
            }
            for slot in range(1, workers + 1)
        ]  # fmt: skip
        yield {
            "step": 10 * workers * k, "tokens": 640 * workers * k, "elapsed_s": every_s * k,
            "budget_fraction": k / n, "eta_s": every_s * (n - k), "loss": 5.0 / math.sqrt(k),
            "train_bits_per_byte": 7.0 / math.sqrt(k),
            "val_bits_per_byte": None if k < 5 else 7.5 / math.sqrt(k - k % 5),
            "tokens_per_s": 320.0 * workers, "lost_update_rate": 0.0,
            "memory_bytes": 200_000_000 * workers, "workers": table, "staleness": {},
            "supervisor_pid": pid, "marks": False,
        }  # fmt: skip


def event(kind, text, *, elapsed_s=4.0, step=40):
    """A line of events.jsonl."""
    return {"t_s": 1.8e9, "elapsed_s": elapsed_s, "step": step, "kind": kind, "text": text}


EVENTS = (
    event("message", "worker 2 (torch:cpu) died (SIGKILL) and is being replaced"),
    event("sample", "The year of the union"),
    event("checkpoint", "checkpoints/step-00000040"),
)


def write_run(
    root,
    name="20260101-000000-made",
    *,
    metrics=(),
    events=EVENTS,
    status=None,
    config="seq_len: 64\nlr: 0.01\nworkers: torch:cpu*2\n",
):
    """Write the folder of a run, and return it."""
    run = Run((root / name).absolute())
    run.checkpoints.mkdir(parents=True)
    run.config_path.write_text(config)
    append(run, metrics)
    if events is not None:
        run.events_path.write_text("".join(json.dumps(line) + "\n" for line in events))
    known = {"status": "done", "mlxhog": version("mlxhog"), "machine": "linux x86_64"}
    run.write_status(known | {"validation": VALIDATION} | (status or {}))
    return run


def append(run, metrics):
    """Let a run grow."""
    with run.metrics_path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in metrics)
