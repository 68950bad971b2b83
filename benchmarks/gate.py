"""The gate of ssp, in real runs whose workers are killed: clocks stay together, and nobody waits.

    python benchmarks/gate.py                         100 runs, about ten minutes
    python benchmarks/gate.py --runs 30               what all.py --full runs

Each run has three workers, one of them slow now and then, a slack drawn from 0 to 3, and two
workers killed at random moments. Meanwhile its clocks are read until two reads agree, so that what
is read is of one moment. Every run has to reach its last step.
"""

from __future__ import annotations

import random
import tempfile
import threading
from argparse import Namespace
from pathlib import Path

from harness.claims import Findings, flags, measured
from harness.machine import smallest
from training.faults import Killer
from training.recording import model_file

from mlxhog import TrainConfig, train
from mlxhog.arena import Arena
from mlxhog.arena.handover import socket_path
from mlxhog.errors import ArenaError
from mlxhog.report.metrics import Result
from mlxhog.strategies.ssp import clocks_of

WORKERS, STEPS, KILLS = 3, 400, 2


class Clocks(threading.Thread):
    """Reads the clocks of a run from outside."""

    def __init__(self, out: Path) -> None:
        """Watch the run that is going to begin in a folder."""
        super().__init__(daemon=True)
        self._out, self.ended = out, threading.Event()
        self.spread, self.reads = 0, 0

    def run(self) -> None:
        """Read until told to end."""
        while not self.ended.is_set():
            for directory in self._out.glob("*"):
                try:
                    with Arena.connect(socket_path(directory)) as arena:
                        self._watch(arena)
                except (ArenaError, OSError):
                    self.ended.wait(0.01)

    def _watch(self, arena: Arena) -> None:
        while not self.ended.is_set():
            clocks = clocks_of(arena)
            if clocks and clocks == clocks_of(arena):
                self.spread = max(self.spread, max(clocks.values()) - min(clocks.values()))
                self.reads += 1
            self.ended.wait(2e-4)


def run(seed: int, slack: int) -> tuple[Result, Clocks, int]:
    """One run with kills; its clocks, and how many workers were left alive that should not be."""
    with tempfile.TemporaryDirectory() as folder:
        out, killer = Path(folder) / "runs", Killer(KILLS, seed, within_s=0.02)
        clocks = Clocks(out)
        clocks.start()
        result = train(
            TrainConfig(
                model=model_file(hidden_size=32, num_hidden_layers=1), tokenizer="bytes",
                seq_len=32, batch_size=2,
                optimizer="adamw", lr=1e-3, strategy="ssp", slack=slack, seed=seed, steps=STEPS,
                workers=f"mlx:cpu*{WORKERS}", threads=1, slow="1=random:0.2:4", out=str(out),
                eval_every="off", sample_every="off", save_every="off",
            ),
            observer=killer,
        )  # fmt: skip
        clocks.ended.set()
        clocks.join()
    return result, clocks, killer.left


def measure(findings: Findings, chosen: Namespace) -> None:
    """Run, and count what was kept."""
    runs = smallest(1, chosen.runs)
    reached = within = kills = reads = 0
    late, worst = 0, 0
    for seed in range(runs):
        slack = random.Random(seed).randrange(4)
        result, clocks, left = run(seed, slack)
        reached += (result.status, result.steps) == ("done", STEPS)
        within += clocks.spread <= slack + 1
        kills += KILLS - left
        reads += clocks.reads
        most = max(worker.max_staleness for worker in result.workers)
        late += most > (WORKERS - 1) * (2 * slack + 1)
        worst = max(worst, clocks.spread - slack)
        print(
            f"run {seed}: slack {slack}, {result.status} after {result.steps} steps, clocks differ "
            f"by {clocks.spread} at most in {clocks.reads} reads, staleness up to {most}",
            flush=True,
        )
    findings.exact("runs that reached their last step", reached, runs, n=runs)
    findings.exact("runs whose clocks were within slack + 1 whenever read", within, runs, n=runs)
    findings.exact("runs with a gradient later than (P - 1)(2 s + 1)", late, 0, n=runs)
    findings.results |= {"kills": kills, "reads": reads, "largest spread less slack": worst}


def main() -> int:
    """Measure, and print the claims."""
    parser = flags(__doc__)
    parser.add_argument("--runs", type=int, default=100)
    return measured("gate", parser.parse_args(), measure, packages=("mlx",))


if __name__ == "__main__":
    raise SystemExit(main())
