"""What is promised of every run, counted over many: gates, replays, bits, damage, interruptions.

    python benchmarks/soak.py                         all parts, about half an hour
    python benchmarks/soak.py --only gate --runs 30   one of them, or several

    gate             real runs of ssp whose workers are killed: clocks stay together, none waits
    replays          recorded lock-free runs, of killed workers too, replay to their hashes
    repeatability    trainings of the strategies that promise it repeat bit for bit
    recording_cost   what recording costs: throughput, in pairs, and bytes of its log
    faults           damaged files are refused, interrupted runs end as they should
    damaged_records  replays of damaged records end soon, in words

Counts are of independent runs, so no load spoils them; the times of `recording_cost` want a quiet
machine. Each part ends with a JSON line of its own name.
"""

import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
from itertools import cycle, islice
from pathlib import Path

from harness.estimates import Mean, Ratio, Share
from harness.frame import run, say
from harness.interleaved import with_twin
from harness.machine import ROOT, smallest
from training.faults import Killer
from training.recording import BYTES, QUIET_OPTIONS, model_file, record

from mlxhog import TrainConfig, train
from mlxhog.arena import Arena, event_log
from mlxhog.arena.requests import socket_path
from mlxhog.errors import ArenaError
from mlxhog.strategies import SSP

# -- gate -----------------------------------------------------------------------------------------

WORKERS, STEPS, KILLS = 3, 400, 2


class Clocks(threading.Thread):
    """Reads the clocks of a run from outside, twice, so that what is read is of one moment."""

    def __init__(self, out):
        super().__init__(daemon=True)
        self.out, self.ended, self.spread, self.reads = out, threading.Event(), 0, 0

    def run(self):
        while not self.ended.wait(0.01):
            for directory in self.out.glob("*"):
                try:
                    with Arena.connect(socket_path(directory)) as arena:
                        of = SSP(workers=arena.layout.max_workers)
                        while not self.ended.wait(2e-4):
                            clocks = of.clocks(arena)
                            if clocks and clocks == of.clocks(arena):
                                values = clocks.values()
                                self.spread = max(self.spread, max(values) - min(values))
                                self.reads += 1
                except (ArenaError, OSError):
                    continue


def gate(findings, chosen):
    """Runs of three workers, one slow now and then, a slack from 0 to 3, two kills at random."""
    runs, steps = smallest((1, 60), (chosen.runs or 100, STEPS))
    reached = within = kills = reads = late = worst = 0
    for seed in range(runs):
        slack = random.Random(seed).randrange(4)
        with tempfile.TemporaryDirectory() as folder:
            killer, clocks = Killer(KILLS, seed, within_s=0.02), Clocks(Path(folder) / "runs")
            clocks.start()
            options = {
                **QUIET_OPTIONS, "model": model_file(hidden_size=32, num_hidden_layers=1),
                "seq_len": 32, "batch_size": 2, "optimizer": "adamw", "lr": 1e-3,
                "strategy": "ssp", "slack": slack, "seed": seed, "steps": steps, "threads": 1,
                "workers": f"mlx:cpu*{WORKERS}", "slow": "1=random:0.2:4", "out": str(clocks.out),
            }  # fmt: skip
            result = train(TrainConfig(**options), observer=killer)
            clocks.ended.set()
            clocks.join()
        reached += (result.status, result.steps) == ("done", steps)
        within += clocks.spread <= slack + 1
        kills, reads = kills + KILLS - killer.left, reads + clocks.reads
        most = max(worker.max_staleness for worker in result.workers)
        late += most > (WORKERS - 1) * (2 * slack + 1)
        worst = max(worst, clocks.spread - slack)
        say(
            f"run {seed}: slack {slack}, {result.status} after {result.steps} steps, clocks "
            f"differ by {clocks.spread} at most, staleness up to {most}"
        )
    findings.exact("runs that reached their last step", reached, runs, n=runs)
    findings.exact("runs whose clocks were within slack + 1 whenever read", within, runs, n=runs)
    findings.exact("runs with a gradient later than (P - 1)(2 s + 1)", late, 0, n=runs)
    findings.results |= {"kills": kills, "reads": reads, "largest spread less slack": worst}


# -- replays --------------------------------------------------------------------------------------

MIXES = ("mlx:cpu,torch:cpu", "mlx:cpu*2,torch:cpu", "mlx:cpu*2,torch:cpu*2")
RULES = ("muon", "adamw", "momentum", "muon")


def recorded(folder, workers, optimizer, kills, seed):
    """One recorded run; returns its folder."""
    options = {
        **QUIET_OPTIONS, **smallest({}, {"model": "minute", "tokenizer": "auto"}),
        "workers": workers, "optimizer": optimizer, "determinism": "record",
        "steps": smallest(4, 150), "threads": 1,
        "batch_size": 2, "seq_len": 128, "out": str(folder), "seed": seed,
    }  # fmt: skip
    return Path(train(TrainConfig(**options), observer=Killer(kills, seed, within_s=0.05)).run)


def replay(run):
    """What `mlxhog replay` says of a run."""
    words = [sys.executable, "-m", "mlxhog", "replay", str(run), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        return {"equal": False, "difference": done.stderr.strip(), "deaths": 0, "steps": 0}
    return json.loads(done.stdout.splitlines()[-1])


def replays(findings, chosen):
    """Record 2 to 4 workers, of which up to three are killed, replay in fresh processes."""
    runs, outcomes, torn = smallest(1, chosen.runs or 20), [], 0
    with tempfile.TemporaryDirectory() as folder:
        kinds = islice(zip(cycle(MIXES), cycle(RULES), strict=False), runs)
        for k, (workers, optimizer) in enumerate(kinds):
            run = recorded(folder, workers, optimizer, k % 4, k)
            logs = sorted((run / event_log.FOLDER).glob("worker-*.log"))
            torn += sum(isinstance(e, event_log.Torn) for log in logs for e in event_log.read(log))
            outcomes.append({"workers": workers, "optimizer": optimizer, **replay(run)})
            say(
                f"{k + 1:3}  {workers:22} {optimizer:9} {outcomes[-1]['deaths']} deaths: "
                f"{outcomes[-1]['difference'] or 'equal'}"
            )
        again = [recorded(folder, MIXES[0], "muon", 0, 1) for _ in range(2)]
        ends = {event_log.load(event_log.End, run).sha256["params"] for run in again}
    equal, deaths = (sum(int(one[name]) for one in outcomes) for name in ("equal", "deaths"))
    findings.results |= {"runs": outcomes, "deaths": deaths, "torn_steps": torn}
    findings.exact("recorded runs that replay to their hashes", equal, runs, n=runs)
    # Else nothing was asynchronous.
    findings.exact("ends of two recorded runs of one configuration", len(ends), 2)


# -- repeatability --------------------------------------------------------------------------------

STRATEGIES, OPTIMIZERS = ("serial", "sync", "round_robin", "avg_runs"), ("muon", "adamw")


def trained(strategy, optimizer, seed):
    """SHA-256 of the parameters at the end of a training."""
    workers = "torch:cpu" if strategy == "serial" else "mlx:cpu,torch:cpu"
    run = record(
        keep_params=True, strategy=strategy, optimizer=optimizer, workers=workers, threads=1,
        seed=seed, steps=60, batch_size=2, seq_len=128,
    )  # fmt: skip
    return hashlib.sha256(run.points[-1].params.tobytes()).hexdigest()


def repeatability(findings, chosen):
    """Two trainings of each strategy that promises it, and one of another seed."""
    arms = [(strategy, optimizer) for strategy in STRATEGIES for optimizer in OPTIMIZERS]
    arms = smallest(arms[2:3], arms)
    equal = other = 0
    for arm in arms:
        first, second, third = (trained(*arm, seed) for seed in (1, 1, 2))
        equal, other = equal + (first == second), other + (first != third)
        say(f"trained by {', '.join(arm)}: {'equal' * (first == second) or 'DIFFERS'}")
    findings.exact("trainings that a second run repeats bit for bit", equal, len(arms), n=len(arms))
    findings.exact("trainings with other bits by another seed", other, len(arms), n=len(arms))


# -- recording_cost -------------------------------------------------------------------------------

MOST_MB_PER_S, LEAST_SHARE = 2.0, 0.98


def recording_cost(findings, chosen):
    """Runs with and without `--determinism record` in turns, unrecorded ones twice."""
    with tempfile.TemporaryDirectory() as folder:

        def turn(determinism, pair):
            options = {
                **QUIET_OPTIONS, **BYTES, "workers": "mlx:cpu,torch:cpu", "strategy": "hogwild",
                "determinism": determinism, "time": smallest(1.0, chosen.time), "threads": 1,
                "out": folder,
            }  # fmt: skip
            result = train(TrainConfig(**options), observer=None)
            logs = (Path(result.run) / event_log.FOLDER).glob("worker-*.log")
            speed, log = result.tokens / result.seconds, sum(one.stat().st_size for one in logs)
            rate = log / result.seconds / 1e6
            say(f"{pair + 1:3}  {determinism:6} {speed:.0f} tok/s, {rate:.3f} MB/s of log")
            return speed, rate

        runs, again = with_twin(range(chosen.pairs), ("none", "record"), turn, twin="none")
    speeds = {name: [speed for speed, _ in own] for name, own in runs.items()}
    rates = [rate for _, rate in runs["record"]]
    share = Ratio.of(speeds["record"], speeds["none"])
    findings.same("not recorded, tokens per second", speeds["none"], [speed for speed, _ in again])
    findings.at_least("throughput of recorded runs, as a share", share, LEAST_SHARE)
    findings.at_most("log, MB per second", Mean.of(rates), MOST_MB_PER_S)
    findings.results |= {"tokens_per_s": speeds, "share": share, "mb_per_s": Mean.of(rates)}


# -- faults ---------------------------------------------------------------------------------------

MOST_FILES, MOST_RUNS = 0.001, 0.1


def damaged_files(mutations):
    """How many damaged files `tests.faults.fuzz_loaders` does not see refused as they should be.

    Raises:
        SystemExit: it ended by an exception, so its last line counts nothing.
    """
    words = ["--mutations", f"{mutations}", *smallest(["--only", "train.yaml"], [])]
    command = [sys.executable, "-m", "tests.faults.fuzz_loaders", *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(ended.stdout, end="")
    if ended.returncode not in (0, 1) or not ended.stdout:
        raise SystemExit(f"it ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")
    counts = json.loads(ended.stdout.splitlines()[-1])
    return counts["failures"], counts["mutations"]


def interrupted_runs(repeat):
    """How many runs end wrongly by a signal or a closed pipe, before, in and after their steps."""
    from tests.faults.interrupted_runs import CAUSES, MOMENTS, interrupted

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the runs would ignore it, too
    cases = [(c, m) for _ in range(repeat) for c in CAUSES for m in MOMENTS]
    cases, draw, wrong = smallest(cases[:1], cases), random.Random(0), 0
    for cause, moment in cases:
        with tempfile.TemporaryDirectory() as folder:
            delay_s = draw.uniform(0.1, 3.0)
            try:
                how = interrupted(Path(folder), cause, MOMENTS[moment], delay_s=delay_s)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                how, wrong = f"WRONG: {error}", wrong + 1
        say(f"{cause:4}  {moment:13}  {delay_s:.2f} s  {how}")
    return wrong, len(cases)


def faults(findings, chosen):
    """Damaged files of every kind, and runs interrupted at every moment.

    The upper end of an interval says how often a fault that was not seen may happen.
    """
    files = damaged_files(smallest(10, 400 if chosen.quick else 4000))
    runs = interrupted_runs(1 if chosen.quick else 3)
    findings.exact("damaged files that are not refused as they should be", files[0], 0)
    findings.at_most("share of such files", Share.of(*files), MOST_FILES, timing=False)
    findings.exact("interrupted runs that end wrongly", runs[0], 0)
    findings.at_most("share of such runs", Share.of(*runs), MOST_RUNS, timing=False)


# -- damaged_records ------------------------------------------------------------------------------

LIMIT_S = 120.0
"""A replay that waits for turns that never come says so after 5 s; this is for a slow machine."""


def damaged_records(findings, chosen):
    """Replay mutations of one record: each ends with an exit code of ours, without a traceback."""
    from tests.faults.mutations import mutate

    count, wrong = smallest(1, chosen.runs or 60), 0
    with tempfile.TemporaryDirectory(prefix="mlxhog-damaged-") as folder:
        run = recorded(folder, MIXES[0], "muon", 0, 1)
        intact = {path: path.read_bytes() for path in sorted((run / event_log.FOLDER).iterdir())}
        for number in range(count):
            rng = random.Random(f"0/{number}")
            path = rng.choice(list(intact))
            path.write_bytes(mutate(intact[path], rng))
            words = [sys.executable, "-m", "mlxhog", "replay", str(run)]
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
            if done.returncode not in (0, 1, 2, 3) or "Traceback" in done.stdout + done.stderr:
                wrong += 1
                say(f"mutation {number} of {path.name}: {done.returncode} {done.stderr[-300:]}")
            path.write_bytes(intact[path])
    name = "replays of damaged records that ended otherwise than in words"
    findings.exact(name, wrong, 0, n=count)


PARTS = {
    one.__name__: one
    for one in (gate, replays, repeatability, recording_cost, faults, damaged_records)
}


if __name__ == "__main__":
    run(
        __doc__, PARTS,
        modes={"quick": "a tenth of the damaged files, a third of the interruptions"},
        options={
            "--runs": {"type": int, "help": "gate (100), replays (20), damaged_records (60)"},
            "--pairs": {"type": int, "default": 10, "help": "recording_cost"},
            "--time": {"type": float, "default": 20.0, "help": "recording_cost: of a run, s"},
        },
        packages=("mlx", "torch"),
    )  # fmt: skip
