"""What is promised of every run, counted over many: gates, replays, bits, damage, faults, feeding.

    python benchmarks/soak.py                         all but cluster_chaos, half an hour
    python benchmarks/soak.py --only gate --runs 30   one of them, or several

    gate             real runs of ssp whose workers are killed: clocks stay together, none waits
    replays          recorded lock-free runs, of killed workers too, replay to their hashes
    repeatability    trainings of the strategies that promise it repeat bit for bit
    recording_cost   what recording costs: throughput, in pairs, and bytes of its log
    faults           damaged files are refused, interrupted runs end as they should
    damaged_records  replays of damaged records end soon, in words
    feeding          no fed example is lost through kills, full disks and bad files
    cluster_chaos    machines on a cable are killed, stopped and unplugged, join and leave

Counts are of independent runs, so no load spoils them; the times of `recording_cost` want a quiet
machine. Each part ends with a JSON line of its own name. They are the soaks of `tests/soak/`, where
`python -m tests.soak` counts the same over fewer runs.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.cable import Cable
from harness.estimates import Mean, Ratio, Share
from harness.frame import run, say
from harness.interleaved import with_control
from harness.machine import smallest
from training.recording import BYTES, QUIET_OPTIONS

from mlxhog import TrainConfig, train
from mlxhog.arena import event_log
from mlxhog.research.simulator.links import Link
from tests.soak import part

CABLE, MACHINES = Link.parse("1Gbit:1ms"), 5


def claim(findings, counts):
    """Claim what a soak has counted."""
    for name, (times, wanted, trials) in counts.rows.items():
        findings.exact(name, times, wanted, n=trials or None)
    findings.results |= counts.facts


def soak(name, quick, full, findings, chosen):
    """Run one part of tests/soak so often."""
    claim(findings, part(name)(chosen.runs or smallest(1, quick if chosen.quick else full), say))


MAX_FILES, MAX_RUNS = 0.001, 0.1


def faults(findings, chosen):
    """Damaged files of every kind, and runs interrupted at every moment.

    The upper end of an interval says how often a fault that was not seen may happen.
    """
    for name, text, most, n in (
        ("damage", "share of such files", MAX_FILES, 1 if chosen.quick else 8),
        ("interrupts", "share of such runs", MAX_RUNS, 5 if chosen.quick else 15),
    ):
        counts = part(name)(chosen.runs or smallest(1, n), say)
        claim(findings, counts)
        ((times, _, trials),) = counts.rows.values()
        findings.at_most(text, Share.of(times, trials), most, timing=False)


def cluster_chaos(findings, chosen):
    """Faults of machines that are network namespaces on a cable."""
    n = chosen.runs or smallest(1, 3 if chosen.quick else 50)
    with Cable(CABLE, MACHINES) as cable:
        claim(findings, part("cluster")(n, say, cable))


MAX_MB_PER_S, MIN_SHARE = 2.0, 0.98


def recording_cost(findings, chosen):
    """Runs with and without `--determinism record` in turns, unrecorded ones twice."""
    with TemporaryDirectory() as folder:

        def turn(determinism, pair):
            options = {
                **QUIET_OPTIONS, **BYTES, "workers": "mlx:cpu,torch:cpu", "strategy": "hogwild",
                "determinism": determinism, "time": smallest(1.0, chosen.time), "threads": 1,
                "runs_dir": folder,
            }  # fmt: skip
            result = train(TrainConfig(**options), observer=None)
            logs = (Path(result.run) / event_log.FOLDER).glob("worker-*.log")
            speed, log = result.tokens / result.seconds, sum(one.stat().st_size for one in logs)
            rate = log / result.seconds / 1e6
            say(f"{pair + 1:3}  {determinism:6} {speed:.0f} tok/s, {rate:.3f} MB/s of log")
            return speed, rate

        runs, again = with_control(range(chosen.pairs), ("none", "record"), turn, control="none")
    speeds = {name: [speed for speed, _ in own] for name, own in runs.items()}
    rates = [rate for _, rate in runs["record"]]
    share = Ratio.of(speeds["record"], speeds["none"])
    findings.same("not recorded, tokens per second", speeds["none"], [speed for speed, _ in again])
    findings.at_least("throughput of recorded runs, as a share", share, MIN_SHARE)
    findings.at_most("log, MB per second", Mean.of(rates), MAX_MB_PER_S)
    findings.results |= {"tokens_per_s": speeds, "share": share, "mb_per_s": Mean.of(rates)}


PARTS = {
    "gate": partial(soak, "gates", 10, 30),
    "recording_cost": recording_cost,
    "replays": partial(soak, "replays", 3, 10),
    "repeatability": partial(soak, "repeats", 3, 8),
    "faults": faults,
    "damaged_records": partial(soak, "records", 6, 20),
    "feeding": partial(soak, "feeds", 1, 4),
    "cluster_chaos": cluster_chaos,
}


if __name__ == "__main__":
    run(
        __doc__, PARTS,
        modes={"quick": "a tenth of the damaged files, a third of the interruptions"},
        first={"tiny": 2, "quick": 7, "full": 7},  # pytest runs the others with n = 1
        options={
            "--runs": {"type": int, "metavar": "N", "help": "n of a part of tests/soak"},
            "--pairs": {"type": int, "default": 10, "help": "recording_cost"},
            "--time": {"type": float, "default": 20.0, "help": "recording_cost: of a run, s"},
        },
        packages=("mlx", "torch"),
    )  # fmt: skip
