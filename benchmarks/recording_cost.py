"""What recording a lock-free run costs: throughput, in pairs, and bytes of its log.

    python benchmarks/recording_cost.py --pairs 10 --time 20

Runs with and without `--determinism record` take turns; each pair gives one ratio of tokens per
second. The limits are our own: at most 2 % of the throughput, at most 2 MB/s.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path

from harness.claims import Claim, Findings, Mean, Sample, flags, measured
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
    """Measure pairs."""
    shares, rates = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for pair in range(chosen.pairs):
            order = ("none", "record") if pair % 2 == 0 else ("record", "none")
            speeds = {}
            for determinism in order:
                speeds[determinism], rate = one_run(
                    folder, chosen.workers, determinism, chosen.time
                )
                if determinism == "record":
                    rates.append(rate)
            shares.append(speeds["record"] / speeds["none"])
            print(
                f"{pair + 1:3}  {speeds['none']:.0f} tok/s, recorded {speeds['record']:.0f} "
                f"({shares[-1]:.3f}), log {rates[-1] / 1e6:.3f} MB/s",
                flush=True,
            )
    name, share = "throughput of recorded runs, as a share", Mean.of(shares)
    interval = (share.low, share.high)
    findings.claims.append(Claim(name, share.mean, ">=", LEAST_SHARE, interval=interval))
    findings.at_most("log, MB per second", max(rates) / 1e6, MOST_MB_PER_S)
    findings.results |= {
        "shares": shares, "share": Sample.of(shares), "bytes_per_s": Sample.of(rates),
    }  # fmt: skip


def main() -> int:
    """Read the flags, and measure."""
    parser = flags(__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--time", type=float, default=20.0)
    parser.add_argument("--workers", default="mlx:cpu,torch:cpu")
    return measured("recording_cost", parser.parse_args(), measure, packages=("mlx", "torch"))


if __name__ == "__main__":
    raise SystemExit(main())
