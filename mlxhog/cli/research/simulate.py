"""Predict throughput and staleness of each strategy by simulation, without training.

It predicts gradients per second, staleness, and the waiting times of workers. With --run the times
of gradients are those of a recorded run. With --objective a small problem with a known minimum is
trained. With --machines and --link the workers are on several machines: rounds of cluster by the
clock, beside strategies whose every step or merge waits for the link.

Examples:
    research simulate --workers 16 --inject-stragglers 1=10
    research simulate --times pareto:50ms:1.5 --strategies hogwild,sync
    research simulate --times markov:20ms:200ms:0.01:0.1 --kill 1=30s:10s
    research simulate --run latest --json
    research simulate --machines 2 --link 100Mbit:50ms --params 4M

Main options:
    run workers times inject_stragglers kill strategies machines link params round_every
    objective updates seed json
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlxhog.base.quantities import format_bytes, format_share
from mlxhog.cli.frame import CommandResult, Json, OptionGroup, RunsDirectory, command, option, table
from mlxhog.config.sources import ConfigSource, resolve
from mlxhog.display.table import Section
from mlxhog.errors import RunError
from mlxhog.research.simulator.what_if import TARGET, SimulateConfig, compare

if TYPE_CHECKING:
    from mlxhog.research.simulator.machine import Worker

RECORDED = ("workers", "times", "read", "apply")
"""Options that --run sets."""


@dataclass(frozen=True, kw_only=True)
class _SimulateOptions(RunsDirectory, Json):
    run: str | None = option(
        None, "take times and number of workers from a run", metavar="RUN", excludes=RECORDED
    )


@command(overrides=OptionGroup(SimulateConfig, merged=True))
def run(args: _SimulateOptions, overrides: ConfigSource) -> CommandResult:
    values, recorded = dict(overrides), None
    if args.run is not None:
        from mlxhog.research.simulator.machine import worker_of

        run = args.find(args.run)
        recorded = [worker_of(times) for times in run.read_times()]
        if not recorded:
            raise RunError(
                f"the run {run.directory} recorded no times of steps; train it on (--resume) to "
                "have them, or name another run"
            )
        values["workers"] = (len(recorded), "--run")
    config = resolve(SimulateConfig, [values])
    workers, rows = compare(config, recorded)
    payload = {"answer": _answer(rows), "options": asdict(config), "strategies": rows}
    source = config.times if args.run is None else f"recorded by {args.run}"
    return CommandResult(payload, [payload["answer"], _table(config, workers, source, rows)])


def _answer(rows: Sequence[Mapping[str, Any]]) -> str:
    timed = sorted(
        (row["target_s"], row["strategy"]) for row in rows if row["target_s"] is not None
    )
    if timed:
        (first_s, first), *others = timed
        text = f"{first} reaches the target first, after {first_s:.3g} s"
        if others and first_s:
            text += f"; {others[0][1]} takes {others[0][0] / first_s:.2f} times as long"
        return text
    rate = {row["strategy"]: row["prediction"]["gradients_per_s"] for row in rows}
    best = max(rate, key=lambda name: rate[name])
    text = f"{best} computes most: {rate[best]:.4g} gradients/s"
    if "sync" in rate and best != "sync":
        text += f", {rate[best] / rate['sync']:.2f} times sync"
    return text


def _table(
    config: SimulateConfig, workers: "Sequence[Worker]", source: str, rows: Sequence[Any]
) -> Section:
    best = sum(1 / worker.step_s for worker in workers)
    steps_ms = [1e3 * worker.step_s for worker in workers]
    took = " to ".join(dict.fromkeys(f"{ms:.4g}" for ms in (min(steps_ms), max(steps_ms))))
    notes = [
        f"predicted, not measured: {len(workers)} workers, a step takes {took} ms ({source})",
        "of ideal: over gradients/s of workers that never wait and share nothing; staleness: "
        "updates by others between read and write; idle: waiting for others",
    ]
    lines = []
    for row in rows:
        one = row["prediction"]
        cells = {
            "strategy": row["strategy"],
            "gradients/s": one["gradients_per_s"],
            "of ideal": format_share(one["gradients_per_s"] / best),
            "staleness": one["staleness"]["mean"],
            "largest": one["staleness"]["max"],
            "idle": format_share(one["waiting_share"]),
            "wasted": format_share(one["wasted_share"]),
        }
        if config.objective != "none":
            cells["target_s"] = "never" if row["target_s"] is None else row["target_s"]
        if config.machines > 1:
            cells["sent/s"] = format_bytes(row["sent_bytes_per_s"])
        if (used := row["rounds"]) is not None:
            notes.append(
                f"cluster: {used['rounds']} rounds, {used['share']:.0%} of the time on the link "
                f"({config.link}); a tenth with --round-every {used['tenth_every_s']:g}s"
            )
        lines.append(cells)
    if config.objective != "none":
        notes.append(
            f"target: time to {TARGET:.0%} of the first suboptimality gap, {config.objective}"
        )
    return table("", lines, notes)
