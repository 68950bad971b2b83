"""What recording a lock-free run costs: throughput, in pairs, and bytes of its log.

    python benchmarks/recording_cost.py --pairs 10 --time 20

Runs with and without `--determinism record` take turns; each pair gives one ratio of tokens per
second. The limits are our own: at most 2 % of the throughput, at most 2 MB/s.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path

from harness.claims import Findings, Sample, flags, measured
from harness.estimates import Mean, Ratio
from harness.interleaved import with_twin
from harness.machine import smallest
from training.recording import BYTES

from mlxhog import TrainConfig, train
from mlxhog.arena import event_log

MOST_MB_PER_S = 2.0
LEAST_SHARE = 0.98


def one_run(folder: Path, workers: str, determinism: str, seconds: float) -> tuple[float, float]:
    """Tokens per second while training, and bytes of its log per second."""
    config = TrainConfig(
        workers=workers, strategy="hogwild", determinism=determinism, time=seconds, threads=1,
        **BYTES, eval_every="off", sample_every="off", save_every="off", out=str(folder),
    )  # fmt: skip
    result = train(config, observer=None)
    logs = (Path(result.run) / event_log.FOLDER).glob("worker-*.log")
    n_bytes = sum(path.stat().st_size for path in logs)
    return result.tokens / result.seconds, n_bytes / result.seconds


def measure(findings: Findings, chosen: Namespace) -> None:
    """Measure pairs, and unrecorded runs twice in each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def turn(determinism: str, pair: int) -> tuple[float, float]:
            speed, rate = one_run(folder, chosen.workers, determinism, smallest(1.0, chosen.time))
            line = f"{pair + 1:3}  {determinism:6} {speed:.0f} tok/s, {rate / 1e6:.3f} MB/s of log"
            print(line, flush=True)
            return speed, rate

        runs, again = with_twin(range(chosen.pairs), ("none", "record"), turn, twin="none")
    speeds = {name: [speed for speed, _ in own] for name, own in runs.items()}
    rates = [rate / 1e6 for _, rate in runs["record"]]
    share = Ratio.of(speeds["record"], speeds["none"])
    findings.same("not recorded, tokens per second", speeds["none"], [speed for speed, _ in again])
    findings.at_least("throughput of recorded runs, as a share", share, LEAST_SHARE)
    findings.at_most("log, MB per second", Mean.of(rates), MOST_MB_PER_S)
    findings.results |= {"tokens_per_s": speeds, "share": share, "mb_per_s": Sample.of(rates)}


def main() -> int:
    """Read the flags, and measure."""
    parser = flags(__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--time", type=float, default=20.0)
    parser.add_argument("--workers", default="mlx:cpu,torch:cpu")
    return measured("recording_cost", parser.parse_args(), measure, packages=("mlx", "torch"))


if __name__ == "__main__":
    raise SystemExit(main())
