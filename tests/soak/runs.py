"""Many runs of this process: clocks of ssp beside deaths, replays, equal bits."""

import json
import random
import tempfile
import threading
from itertools import cycle, islice, product
from pathlib import Path

from mlxhog import train
from mlxhog.arena import Arena, event_log
from mlxhog.arena.requests import socket_path
from mlxhog.errors import ArenaError
from mlxhog.strategies import SSP
from tests.processes import python
from tests.soak import Counts
from tests.soak.killer import Killer
from tests.training.small import identical, parameters, small_config

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


def gates(n, say):
    """Runs of ssp with a slack from 0 to 3, one worker slow now and then, two kills at random."""
    counts, kills, reads, worst = Counts(), 0, 0, 0
    for seed in range(n):
        slack = random.Random(seed).randrange(4)
        with tempfile.TemporaryDirectory(prefix="mlxhog-soak-") as name:
            config = small_config(
                Path(name), strategy="ssp", slack=slack, seed=seed, steps=STEPS,
                workers=f"mlx:cpu*{WORKERS}", inject_stragglers="1=random:0.2:4",
            )  # fmt: skip
            killer, clocks = Killer(KILLS, seed=seed, holds=False), Clocks(Path(config.runs_dir))
            clocks.start()
            result = killer.train(config)
            clocks.ended.set()
            clocks.join()
        late = max(worker.max_staleness for worker in result.workers)
        is_done = (result.status, result.steps) == ("done", STEPS)
        counts.always("runs that reached their last step", is_done)
        within = clocks.spread <= slack + 1
        counts.always("runs whose clocks were within slack + 1 whenever read", within)
        too_late = late > (WORKERS - 1) * (2 * slack + 1)
        counts.never("runs with a gradient later than (P - 1)(2 s + 1)", too_late)
        kills, reads = kills + KILLS - killer.left, reads + clocks.reads
        worst = max(worst, clocks.spread - slack)
        say(
            f"run {seed}: slack {slack}, {result.status} after {result.steps} steps, clocks "
            f"differ by {clocks.spread} at most, staleness up to {late}"
        )
    counts.facts |= {"kills": kills, "reads": reads, "largest spread less slack": worst}
    return counts


MIXES = ("mlx:cpu,torch:cpu", "mlx:cpu*2,torch:cpu", "mlx:cpu*2,torch:cpu*2")
RULES = ("muon", "adamw", "momentum", "muon")


def recorded(folder, workers=MIXES[0], optimizer="muon", kills=0, seed=1):
    """One recorded run of the default model, of which some workers are killed; its folder."""
    config = small_config(
        folder, model="minute", data="sotu", workers=workers, optimizer=optimizer, seed=seed,
        determinism="record", steps=150, seq_len=128,
    )  # fmt: skip
    return Path(Killer(kills, seed=seed).train(config).run)


def replayed(run, *words):
    """How `mlxhog replay` ends; one that waits for turns that never come is stopped."""
    return python("-m", "mlxhog", "replay", str(run), *words)


def replays(n, say):
    """Recorded runs of 2 to 4 workers, up to three of them killed, replayed in fresh processes."""
    counts, outcomes, torn = Counts(), [], 0
    with tempfile.TemporaryDirectory(prefix="mlxhog-soak-") as name:
        folder = Path(name)
        kinds = islice(zip(cycle(MIXES), cycle(RULES), strict=False), n)
        for k, (workers, rule) in enumerate(kinds):
            run = recorded(folder, workers, rule, (k + 1) % 4, k)
            logs = sorted((run / event_log.FOLDER).glob("worker-*.log"))
            torn += sum(isinstance(e, event_log.Torn) for log in logs for e in event_log.read(log))
            done = replayed(run, "--json")
            outcome = {"equal": False, "difference": done.stderr.strip(), "deaths": 0}
            if done.returncode in (0, 1):
                outcome = json.loads(done.stdout.splitlines()[-1])
            outcomes.append({"workers": workers, "optimizer": rule, **outcome})
            counts.always("recorded runs that replay to their hashes", outcome["equal"])
            difference = outcome["difference"] or "equal"
            say(f"{k + 1:3}  {workers:22} {rule:9} {outcome['deaths']} deaths: {difference}")
        again = [event_log.load(event_log.End, recorded(folder)).sha256 for _ in range(2)]
        # Else nothing was asynchronous.
        same = again[0]["params"] == again[1]["params"]
        counts.never("two recorded runs of one configuration with one end", same)
    deaths = sum(one["deaths"] for one in outcomes)
    counts.facts |= {"runs": outcomes, "deaths": deaths, "torn_steps": torn}
    return counts


EXACT = ("sync", "round_robin", "avg_runs", "serial")


def repeats(n, say):
    """Two trainings of each strategy that promises to repeat, and one of another seed."""
    counts = Counts()
    for optimizer, strategy in islice(cycle(product(("muon", "adamw"), EXACT)), n):
        workers = "torch:cpu" if strategy == "serial" else "mlx:cpu,torch:cpu"
        ends = []
        for seed in (1, 1, 2):
            with tempfile.TemporaryDirectory(prefix="mlxhog-soak-") as name:
                config = small_config(
                    Path(name), strategy=strategy, optimizer=optimizer, workers=workers, seed=seed,
                    steps=60,
                )  # fmt: skip
                ends.append(parameters(train(config, observer=None)))
        equal, other = identical(*ends[:2]), not identical(*ends[1:])
        counts.always("trainings that a second run repeats bit for bit", equal)
        counts.always("trainings with other bits by another seed", other)
        say(f"{strategy}, {optimizer}: {'equal' if equal else 'DIFFERS'}")
    return counts
