"""Do recorded lock-free runs replay bit for bit, whoever was killed?

    python benchmarks/replays.py --runs 20

Runs of 2, 3 and 4 workers, MLX and torch mixed, with moments of all or of each worker; in three of
four runs workers are killed at any instruction and replaced. Each is recorded, and replayed by
`mlxhog replay` in fresh processes. Two recordings of one configuration have to differ: else nothing
was asynchronous.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from itertools import cycle, islice
from pathlib import Path

from harness.claims import Findings, flags, measured
from harness.machine import smallest
from training.faults import Killer

from mlxhog import TrainConfig, train
from mlxhog.arena import event_log

BUDGET = {"order": 340, "full_s": 110, "full": ["--runs", "10"]}
MIXES = ("mlx:cpu,torch:cpu", "mlx:cpu*2,torch:cpu", "mlx:cpu*2,torch:cpu*2")
RULES = ("muon", "adamw", "momentum", "muon")


def record(folder: Path, workers: str, optimizer: str, kills: int, seed: int, steps: int) -> Path:
    """One recorded run; returns its folder."""
    config = TrainConfig(
        workers=workers, optimizer=optimizer, determinism="record", steps=steps, threads=1,
        batch_size=2, seq_len=128, eval_every="off", sample_every="off", save_every="off",
        out=str(folder), seed=seed,
    )  # fmt: skip
    return Path(train(config, observer=Killer(kills, seed, within_s=0.05)).run)


def replay(run: Path) -> dict[str, object]:
    """What `mlxhog replay` says."""
    done = subprocess.run(
        [sys.executable, "-m", "mlxhog", "replay", str(run), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        return {"equal": False, "difference": done.stderr.strip(), "deaths": 0, "steps": 0}
    outcome: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def measure(findings: Findings, chosen: Namespace) -> None:
    """Record, replay, compare."""
    runs, steps = smallest((1, 4), (chosen.runs, chosen.steps))
    equal = deaths = torn = 0
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = islice(zip(cycle(MIXES), cycle(RULES), strict=False), runs)
        for k, (workers, optimizer) in enumerate(kinds):
            kills = k % 4
            run = record(folder, workers, optimizer, kills, chosen.seed + k, steps)
            logs = sorted((run / event_log.FOLDER).glob("worker-*.log"))
            torn += sum(
                isinstance(one, event_log.Torn) for log in logs for one in event_log.read(log)
            )
            outcome = replay(run)
            equal += bool(outcome["equal"])
            deaths += int(str(outcome["deaths"]))
            outcomes.append({"workers": workers, "optimizer": optimizer, **outcome})
            print(
                f"{k + 1:3}  {workers:22} {optimizer:9} {outcome['steps']} steps, "
                f"{outcome['deaths']} deaths: {outcome['difference'] or 'equal'}",
                flush=True,
            )
        again = [record(folder, MIXES[0], "muon", 0, 1, steps) for _ in range(2)]
        ends = {event_log.load(event_log.End, run).sha256["params"] for run in again}
    findings.results |= {"runs": outcomes, "deaths": deaths, "torn_steps": torn}
    findings.exact("recorded runs that replay to their hashes", equal, runs, n=runs)
    findings.exact("ends of two recorded runs of one configuration", len(ends), 2)


def main() -> int:
    """Read the flags, and measure."""
    parser = flags(__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    return measured("replays", parser.parse_args(), measure, packages=("mlx", "torch"))


if __name__ == "__main__":
    raise SystemExit(main())
