"""Training under faults: what is lost, what hangs, what is left behind.

    python benchmarks/chaos.py --quick             one strategy after the other, a few minutes
    python benchmarks/chaos.py --seed 3            30 minutes of faults, over every strategy
    python benchmarks/chaos.py --seed 0 1 2        the same for each seed, one after the other

Every strategy trains the same model on real text, run after run, under a seeded schedule of
faults, one every few seconds (`training/faults.py`): workers killed, one or all; stopped, one or
the whole group; a full disk; a closed pipe; the supervisor killed, and its run resumed. Workers and
supervisors are also killed while they start.

What has to hold: no run hangs, no process outlives it, and every ticket is accounted for (`Audit`).
Fed examples are in `feeding.py`, damaged records in `soak.py`, clusters in `cluster_chaos.py`.
"""

import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.frame import run, say
from harness.machine import smallest
from training.faults import FaultSchedule, Observed

from mlxhog.arena.workers import State
from tests.processes import alive, below
from tests.small_disk import small_disk

WORKERS = ("mlx:cpu", "torch:cpu")
STRATEGIES = {
    "hogwild": ("--strategy=hogwild",),  # auto may go on in another arena than the one that is read
    "hogwild, racy": ("--write=racy",),
    "hogwild, disjoint blocks": ("--blocks=disjoint", "--predict=none"),
    "hogwild after sync": ("--async-after=0.3",),
    "sync": ("--strategy=sync",),
    "round_robin": ("--strategy=round_robin",),
    # So often that a replaced worker, for whom the others wait, has caught up soon.
    "local_sgd": ("--strategy=local_sgd", "--average-every=10"),
    "async_ps": ("--strategy=async_ps",),
    "ssp": ("--strategy=ssp", "--slack=1"),
    "locked": ("--strategy=locked",),
    "aig": ("--strategy=aig",),
}
ORDERED = "sync", "round_robin"
"""Strategies in which a successor ends the round, or the turn, in which a worker died."""
HEARTBEAT_S = 6.0
CALM_S = 20.0  # after so long without progress no fault is planted, until there is some
HANG_S = 60.0  # without progress and without faults
LONGEST_RUN_S = 600.0  # many times what an undisturbed run takes
DISK_BYTES = 512 << 20
POLL_S = 0.02
DEATHS_AT_SPAWN = 4  # of workers, and of supervisors
SPAWN_S = 1.5  # at a moment of which a worker that is being spawned is killed
LEAVE_S = 10.0  # for what a killed supervisor was spawning, on a busy machine


@dataclass
class Record:
    """What one strategy did with one seed."""

    strategy: str
    seed: int
    faults: dict[str, int] = field(default_factory=dict)
    chaos_s: float = 0.0
    runs: int = 0
    unsaved: int = 0
    hangs: int = 0
    failures: list[str] = field(default_factory=list)
    orphans: int = 0
    lost: int = 0
    doubled: int = 0
    uncounted: int = 0
    tickets: int = 0
    torn: int = 0

    def take_in(self, run, *, full_disk):
        """Note how a run has ended, and account for its tickets; a hang is killed."""
        if not run.ended():
            self.hangs += 1
            self.failures.append(f"hang: {run.words()}")
            return run.abandon()
        self.orphans += len(run.orphans())
        code, status = run.process.returncode, run.result().get("status")
        if full_disk and (code, status) == (3, "unsaved"):  # what it promises on a full disk
            self.unsaved += 1
        elif (code, status) != (0, "done"):
            self.failures.append(f"exit code {code}, {status}: {run.words()}")
        audit = run.audit(ordered=any(name in self.strategy for name in ORDERED))
        self.tickets += audit.handed_out
        for name in ("torn", "lost", "doubled", "uncounted"):
            setattr(self, name, getattr(self, name) + getattr(audit, name))


def train_flags(strategy, seed, tokens, eval_tokens):
    """What every run is called with."""
    return [
        f"--workers={','.join(WORKERS)}", "--threads=1", f"--seed={seed}", f"--tokens={tokens}",
        "--save-every=5s", "--keep-last=2", "--eval-every=20s", f"--eval-tokens={eval_tokens}",
        "--sample-every=15s", "--restarts=100000", f"--heartbeat-timeout-s={HEARTBEAT_S}",
        *STRATEGIES[strategy],
    ]  # fmt: skip


def disturbed(record, schedule, out, words, seconds):
    """Train under faults, run after run, until the time is over and the run in hand has ended.

    Args:
        record: what is measured.
        schedule: plants the faults.
        out: the folder of runs.
        words: flags of run number 0, 1, ...
        seconds: how long to begin new runs.
    """
    resume, last_begin_s = None, time.monotonic() + seconds
    while resume is not None or time.monotonic() < last_begin_s:
        own = words(record.runs) if resume is None else []
        with closing(Observed(out, own, len(WORKERS), resume=resume)) as run:
            record.runs += resume is None
            resume, began_s = None, time.monotonic()
            end_s = began_s + LONGEST_RUN_S
            schedule.begin(run)
            while not (run.ended() or run.still_s() > CALM_S + HANG_S or time.monotonic() > end_s):
                schedule.step(calm=run.still_s() > CALM_S)
                run.look()
                time.sleep(POLL_S)
            schedule.end()
            record.chaos_s += time.monotonic() - began_s
            if run.process.returncode == -signal.SIGKILL:
                record.orphans += len(run.orphans())
                if (run.directory / "checkpoints" / "latest").exists():
                    resume = run.directory  # its tickets live on in this checkpoint
            else:
                record.take_in(run, full_disk=schedule.filled_disk)


def while_starting(record, draw, out, words):
    """Kill workers before they are up, in a run that ends well; then supervisors that start.

    A worker that is being spawned holds nothing, and leaves at once when its supervisor has died.
    """
    killed, end_s = set(), time.monotonic() + LONGEST_RUN_S
    with closing(Observed(out, words, len(WORKERS))) as run:
        while not run.ended() and time.monotonic() < end_s:
            run.look()
            for slot in range(1, len(WORKERS) + 1):
                entry = run.entry(slot)
                one, starts = (slot, entry.incarnation), entry.state == State.STARTING and entry.pid
                if starts and one not in killed and len(killed) < smallest(1, DEATHS_AT_SPAWN):
                    time.sleep(draw.uniform(0.0, SPAWN_S))
                    run.send([slot], signal.SIGKILL)
                    killed.add(one)
            time.sleep(POLL_S)
        record.take_in(run, full_disk=False)
    record.faults["kill at spawn"] = len(killed)
    for _ in range(smallest(1, DEATHS_AT_SPAWN)):
        command = [sys.executable, "-m", "mlxhog", "train", "--quiet", f"--out={out}", *words]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                while not (pids := below(process.pid)) and process.poll() is None:
                    time.sleep(POLL_S)
                time.sleep(draw.uniform(0.0, SPAWN_S))
                pids += below(process.pid)
            finally:
                process.kill()
        end_s = time.monotonic() + LEAVE_S
        while any(map(alive, pids)) and time.monotonic() < end_s:
            time.sleep(POLL_S)
        record.orphans += sum(map(alive, set(pids)))
    record.faults["kill the supervisor at spawn"] = smallest(1, DEATHS_AT_SPAWN)


def measure(findings, options):
    """Train every strategy under faults, and count."""
    minutes, tokens, eval_tokens = options.minutes, options.tokens, 65_536
    if options.quick:
        minutes, tokens, eval_tokens = len(options.strategy) / 3, 150_000, 16_384
    if options.tiny:
        options.strategy = options.strategy[:1]
        minutes, tokens, eval_tokens = 1 / 60, 2_000, 2048
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # so that nothing stays behind
    records = []
    for seed in options.seed:
        for number, strategy in enumerate(options.strategy):
            records.append(record := Record(strategy, seed))
            with (
                tempfile.TemporaryDirectory(prefix="mlxhog-chaos-") as folder,
                ExitStack() as stack,
            ):
                out = Path(folder)
                disk = stack.enter_context(small_disk(out, DISK_BYTES))

                def words(run, strategy=strategy, seed=seed):
                    return train_flags(strategy, 100 * seed + run, tokens, eval_tokens)

                schedule = FaultSchedule(
                    1000 * seed + number, record.faults, len(WORKERS), HEARTBEAT_S, disk=disk
                )
                while_starting(record, schedule.random, out, words(2))
                disturbed(record, schedule, out, words, 60 * minutes / len(options.strategy))
            say(f"{asdict(record)}")
    total = {
        name: sum(getattr(one, name) for one in records)
        for name in ("runs", "tickets", "hangs", "orphans", "lost", "doubled", "uncounted")
    }
    failures = sum(len(one.failures) for one in records)
    for name, n, trials in (
        ("runs that hang", total["hangs"], total["runs"]),
        ("runs that end otherwise than done", failures, total["runs"]),
        ("workers that outlive their run", total["orphans"], total["runs"]),
        ("tickets lost", total["lost"], total["tickets"]),
        ("tickets computed twice", total["doubled"], total["tickets"]),
        ("tickets nobody counted, beyond one a kill", total["uncounted"], total["tickets"]),
    ):
        findings.exact(name, n, 0, n=trials)
    faults = sum(sum(record.faults.values()) for record in records)
    pause = sum(record.chaos_s for record in records) / max(faults, 1)
    findings.at_most("seconds per fault", pause, 5.0, timing=False)
    findings.results["records"] = list(map(asdict, records))


if __name__ == "__main__":
    run(
        __doc__, measure, modes={"quick": "20 s of faults per strategy"},
        options={
            "--seed": {"type": int, "nargs": "+", "default": [0]},
            "--minutes": {"type": float, "default": 30.0, "help": "of faults, per seed"},
            "--tokens": {"type": int, "default": 1_000_000, "help": "of one run"},
            "--strategy": {
                "nargs": "+", "choices": tuple(STRATEGIES), "metavar": "NAME",
                "default": list(STRATEGIES), "help": ", ".join(STRATEGIES),
            },
        },
        packages=("mlx", "torch"),
    )  # fmt: skip
