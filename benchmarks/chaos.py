"""Training under faults: what is lost, what hangs, and what it costs.

    python benchmarks/chaos.py --quick             one strategy after the other, a few minutes
    python benchmarks/chaos.py --seed 3            30 minutes of faults, over every strategy
    python benchmarks/chaos.py --seed 0 1 2        the same for each seed, one after the other
    python benchmarks/chaos.py --claims FILE...    claims over the records of earlier calls

Every strategy trains the same model on real text, run after run, under a seeded schedule of
faults, one every few seconds: workers killed, one or all; stopped, one or the whole group; a full
disk; a closed pipe; the supervisor killed, and its run resumed. Workers and supervisors are also
killed while they start. Before and after, it trains undisturbed. The seed repeats the schedule, not
the moments at which it meets the run. In the end, `feeding.py` posts examples to a run that follows
a folder: through kills, a full disk, a file whose name is not UTF-8, a pipe, a link to /dev/zero,
and files of a few bytes that unpack to gigabytes. Then `mlxhog replay` reads records of a run that
were damaged, one after the other.

What has to hold: no run hangs, nobody outlives it, every ticket is accounted for (`Audit`), and
replays of damaged records end in words. Without `--quick`, whose runs are too few to tell a cost:
between faults the throughput is that of the undisturbed runs, and the held-out loss after the same
number of tokens differs by no more than seeds make it differ.
"""

from __future__ import annotations

import json
import math
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import feeding
from harness.claims import Claim, flags, measured
from harness.estimates import Ratio
from harness.machine import LoadWatch, smallest
from scipy import stats
from training import damaged_records
from training.fault_schedule import FaultSchedule
from training.faults import Observed, Rates

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
    # So often that a replaced worker, for whom the others wait, has caught up within SETTLE_S.
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
THROUGHPUT = 0.97
NOTICEABLE = 0.01  # bits per byte


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
    losses: list[float] = field(default_factory=list)
    undisturbed_losses: list[float] = field(default_factory=list)
    rates: Rates = field(default_factory=Rates)
    undisturbed: Rates = field(default_factory=Rates)


def train_flags(strategy, seed, tokens, eval_tokens):
    """What every run is called with."""
    return [
        f"--workers={','.join(WORKERS)}", "--threads=1", f"--seed={seed}", f"--tokens={tokens}",
        "--save-every=5s", "--keep-last=2", "--eval-every=20s", f"--eval-tokens={eval_tokens}",
        "--sample-every=15s", "--restarts=100000", f"--heartbeat-timeout-s={HEARTBEAT_S}",
        *STRATEGIES[strategy],
    ]  # fmt: skip


def undisturbed(record, out, words):
    """Train without faults, and note the pace and the loss."""
    run = Observed(out, words, len(WORKERS))
    try:
        while not run.ended():
            run.look()
            time.sleep(POLL_S)
        _take_in(record, run, full_disk=False)
        record.undisturbed.add(run.rates)
        record.undisturbed_losses.append(run.result()["val_bits_per_byte"])
    finally:
        _close(run)


def disturbed(record, schedule, out, words, seconds):
    """Train under faults, run after run, until the time is over and the run in hand has ended.

    Args:
        record: what is measured.
        schedule: plants the faults.
        out: the folder of runs.
        words: flags of run number 0, 1, ...
        seconds: how long to begin new runs.
    """
    resume = None
    last_begin_s = time.monotonic() + seconds
    while resume is not None or time.monotonic() < last_begin_s:
        flags = words(record.runs) if resume is None else []
        run = Observed(out, flags, len(WORKERS), resume=resume)
        record.runs += resume is None
        resume = None
        began_s = time.monotonic()
        end_s = began_s + LONGEST_RUN_S
        schedule.begin(run)
        try:
            while not (run.ended() or run.still_s() > CALM_S + HANG_S or time.monotonic() > end_s):
                schedule.step(calm=run.still_s() > CALM_S)
                run.look()
                time.sleep(POLL_S)
            schedule.end()
            record.chaos_s += time.monotonic() - began_s
            record.rates.add(run.rates)
            if not run.ended():
                record.hangs += 1
                record.failures.append(f"hang: {_where(run)}")
            elif run.process.returncode == -signal.SIGKILL:
                record.orphans += len(run.orphans())
                assert run.directory is not None
                if (run.directory / "checkpoints" / "latest").exists():
                    resume = run.directory  # its tickets live on in this checkpoint
            else:
                _take_in(record, run, full_disk=schedule.filled_disk)
                record.losses.append(run.result().get("val_bits_per_byte") or math.nan)
        finally:
            _close(run)


def while_starting(record, draw, out, words):
    """Kill workers before they are up, in a run that ends well; then supervisors that start.

    A worker that is being spawned holds nothing, and leaves at once when its supervisor has died.
    """
    run = Observed(out, words, len(WORKERS))
    killed = set()
    end_s = time.monotonic() + LONGEST_RUN_S
    try:
        while not run.ended() and time.monotonic() < end_s:
            run.look()
            for slot in range(1, len(WORKERS) + 1):
                one = slot, run.entry(slot).incarnation
                starts = run.entry(slot).state == State.STARTING and run.entry(slot).pid
                if starts and one not in killed and len(killed) < smallest(1, DEATHS_AT_SPAWN):
                    time.sleep(draw.uniform(0.0, SPAWN_S))
                    run.send([slot], signal.SIGKILL)
                    killed.add(one)
            time.sleep(POLL_S)
        if run.ended():
            _take_in(record, run, full_disk=False)
        else:
            record.hangs += 1
            record.failures.append(f"hang: {_where(run)}")
        record.faults["kill at spawn"] = len(killed)
    finally:
        _close(run)
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
        name = "kill the supervisor at spawn"
        record.faults[name] = record.faults.get(name, 0) + 1


def _take_in(record, run, *, full_disk):
    """Note how a run has ended, and account for its tickets."""
    record.orphans += len(run.orphans())
    code, status = run.process.returncode, run.result().get("status")
    if full_disk and (code, status) == (3, "unsaved"):  # what it promises on a full disk
        record.unsaved += 1
    elif (code, status) != (0, "done"):
        record.failures.append(f"exit code {code}, {status}: {run.words()}")
    audit = run.audit(ordered=any(name in record.strategy for name in ORDERED))
    record.tickets += audit.handed_out
    record.torn += audit.torn
    record.lost += audit.lost
    record.doubled += audit.doubled
    record.uncounted += audit.uncounted


def _close(run):
    if not run.ended():
        run.abandon()
    run.close()


def _where(run):
    entries = [run.entry(slot) for slot in range(1, run.workers + 1)]
    states = [(entry.pid, entry.state, entry.phase, entry.steps) for entry in entries]
    return f"workers (pid, state, phase, steps) {states}; {run.words()}"


# -- claims ---------------------------------------------------------------------------------------


def promises(records):
    """What faults may not do, over all records."""
    runs = sum(record.runs for record in records)
    tickets = sum(record.tickets for record in records)
    faults = sum(sum(record.faults.values()) for record in records)
    counts = (
        ("runs that hang", sum(record.hangs for record in records), runs),
        ("runs that end otherwise than done", sum(len(one.failures) for one in records), runs),
        ("workers that outlive their run", sum(record.orphans for record in records), runs),
        ("tickets lost", sum(record.lost for record in records), tickets),
        ("tickets computed twice", sum(record.doubled for record in records), tickets),
        ("tickets nobody counted, beyond one a kill", sum(r.uncounted for r in records), tickets),
    )
    checks = [Claim(name, n, "==", 0, timing=False, n=trials) for name, n, trials in counts]
    chaos_s = sum(record.chaos_s for record in records)
    checks.append(Claim("seconds per fault", chaos_s / max(faults, 1), "<=", 5.0, timing=False))
    return checks


def costs(records):
    """What faults may cost in throughput and loss, over all records."""
    both = [one for one in records if one.rates.clear_s and one.undisturbed.clear_s]
    between, before = (
        [rates.clear_tokens / rates.clear_s for rates in every]
        for every in ([one.rates for one in both], [one.undisturbed for one in both])
    )
    name = "throughput between faults / undisturbed"
    checks = [Claim.of(name, Ratio.of(between, before), ">=", THROUGHPUT)]
    for strategy in {record.strategy: None for record in records}:
        checks += _loss_claim(
            strategy, [record for record in records if record.strategy == strategy]
        )
    return checks


def _loss_claim(strategy, records):
    """Whether faults cost less than `NOTICEABLE`; nothing where there is no interval (Welch)."""
    with_faults = [loss for record in records for loss in record.losses if math.isfinite(loss)]
    without = [loss for record in records for loss in record.undisturbed_losses]
    if len(without) < 2 or len(with_faults) < 2:
        print(f"  {strategy}: loss under faults cannot be told from {len(without)} undisturbed and "
              f"{len(with_faults)} disturbed runs")  # fmt: skip
        return
    interval = stats.ttest_ind(with_faults, without, equal_var=False).confidence_interval()
    at_limit = [loss + NOTICEABLE for loss in without]
    yield Claim(
        f"{strategy}: bits per byte lost to faults",
        statistics.mean(with_faults) - statistics.mean(without),
        "<=",
        NOTICEABLE,
        timing=False,
        interval=(float(interval.low), float(interval.high)),
        n=len(with_faults),
        p=float(stats.ttest_ind(with_faults, at_limit, equal_var=False).pvalue),
    )


# -- the command ----------------------------------------------------------------------------------


def main(arguments=None):
    """Run the schedule, print the claims; returns the exit code."""
    parser = flags(__doc__, quick="20 s of faults per strategy")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of faults, per seed")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of one run")
    parser.add_argument("--strategy", nargs="+", choices=tuple(STRATEGIES), metavar="NAME",
                        default=list(STRATEGIES), help=", ".join(STRATEGIES))  # fmt: skip
    parser.add_argument("--records", type=Path, help="append what was measured to this file")
    parser.add_argument("--claims", type=Path, nargs="+", help="only judge these records")
    packages = ("mlx", "torch")
    return measured("chaos", parser.parse_args(arguments), measure, packages=packages)


def measure(findings, options):
    """Run the schedule, or read the records of earlier runs; then judge."""
    if options.claims:
        records = [*_read(options.claims)]
        findings.others_load = 0.0
    else:
        records = planted(findings, options)
    judged = promises(records)
    if options.claims or not options.quick:
        judged += costs(records)
    findings.claims[:0] = judged
    others_s = sum(record.rates.others_s for record in records)
    others_tokens = sum(record.rates.others_tokens for record in records)
    findings.results = {
        "records": [asdict(record) for record in records],
        "tokens_per_s_beside_a_stopped_worker": others_tokens / others_s if others_s else math.nan,
    }


def planted(findings, options):
    """Train every strategy under faults; then post examples, and replay damaged records."""
    minutes, tokens, eval_tokens = options.minutes, options.tokens, 65_536
    examples, replays = 2000, 60
    if options.quick:
        minutes, tokens, eval_tokens = len(options.strategy) / 3, 150_000, 16_384
        examples, replays = 500, 15  # fewer fit into a block of a full disk, and none is refused
    if options.tiny:
        options.strategy = options.strategy[:1]
        minutes, tokens, eval_tokens, replays = 1 / 60, 2_000, 2048, 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # so that nothing stays behind
    records, loads = [], []

    def paced(record, out, words):
        watch = LoadWatch()
        undisturbed(record, out, words)
        loads.append(watch.stop())

    for seed in options.seed:
        for number, strategy in enumerate(options.strategy):
            record = Record(strategy, seed)
            records.append(record)
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
                paced(record, out, words(0))
                while_starting(record, schedule.random, out, words(2))
                seconds = 60 * minutes / len(options.strategy)
                disturbed(record, schedule, out, words, seconds)
                if not options.tiny:
                    paced(record, out, words(1))
            print(_line(record), flush=True)
            if options.records:
                with options.records.open("a") as file:
                    file.write(json.dumps(asdict(record)) + "\n")
    # Workers whose supervisor was killed are not ours to wait for and would count as others.
    findings.others_load = max(loads)
    if not options.tiny:  # feeding.py runs so by itself
        feeding.measure(findings, examples)
    damaged_records.measure(findings, replays, options.seed[0])
    return records


def _line(record):
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(record.faults.items()))
    text = (
        f"{record.strategy}, seed {record.seed}: {record.chaos_s:.0f} s, {record.runs} runs, "
        f"{record.tickets} tickets ({record.torn} torn), lost {record.lost}, doubled "
        f"{record.doubled}, hangs {record.hangs}, orphans {record.orphans}, "
        f"unsaved {record.unsaved}; {faults}"
    )
    return "\n".join([text, *(f"  FAILED: {failure}" for failure in record.failures)])


def _read(files):
    for file in files:
        for line in file.read_text().splitlines():
            fields = json.loads(line)
            for name in ("rates", "undisturbed"):
                fields[name] = Rates(**fields[name])
            yield Record(**fields)


if __name__ == "__main__":
    raise SystemExit(main())
