"""What a run found, as a table beside the serial reference, and in plain words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlxhog.classic.result import ClassicResult
from mlxhog.config.quantities import format_count
from mlxhog.report.table import Section

NEAR = 0.005  # of serial's objective: what the spec calls the same
BUSY = 0.3  # load average per core from which on speeds say little


def table(
    about: str, result: ClassicResult, serial: ClassicResult | None, notes: Sequence[str]
) -> Section:
    """The numbers of a run, beside serial's where there is a serial run of its own.

    Args:
        about: what the data are.
        result: of the run.
        serial: the reference, or None.
        notes: from `meaning`.
    """
    runs = [result] if serial is None or serial is result else [serial, result]
    rows: list[tuple[str, ...]] = [
        (name.replace("_", " "), *(f"{run.measures[name]:.6g}" for run in runs))
        for name in result.measures
    ]
    rows += [(name, *map(spell, runs)) for name, spell in _ROWS.items()]
    header = ("", *(label(run) for run in runs))
    return Section(f"{result.problem}: {about}", header, rows, ["", *notes] if notes else ())


def label(run: ClassicResult) -> str:
    """The scheme of a run and how many work in it."""
    write = f" {run.write}" if run.write else ""
    return f"{run.scheme}{write}, {run.workers} worker{'s' * (run.workers > 1)}"


def _lost(run: ClassicResult) -> str:
    return f"{run.lost_updates:,} of {run.probe_updates:,}" if run.probe_updates else "-"


_ROWS: dict[str, Callable[[ClassicResult], str]] = {
    "epochs": lambda run: str(len(run.epochs)),
    "seconds": lambda run: f"{run.seconds:.3f}",
    "examples/s": lambda run: format_count(run.examples_per_s),
    "start-up, seconds": lambda run: f"{run.start_s:.2f}",
    "lost updates": _lost,
}


def meaning(
    result: ClassicResult, serial: ClassicResult | None, load: float, cores: int
) -> Sequence[str]:
    """Sentences that say what the numbers mean.

    Args:
        result: of the run.
        serial: the reference, or None.
        load: processes that wanted to run when the command began, the load average of a minute.
        cores: cores that they share.
    """
    quiet = result.workers <= cores and load <= BUSY * cores
    said = []
    if result.epochs and result.objective > result.initial["objective"]:
        said.append(
            f"The objective rose from {result.initial['objective']:.4g}: the step size is too "
            f"large; try --lr {result.epochs[0].lr / 10:g}."
        )
    if serial is not None and serial is not result and serial.epochs and result.epochs:
        said += [*_objective(result, serial), *_speed(result, serial, quiet=quiet)]
    if result.probe_updates:
        said.append(_updates(result))
    if result.missed:
        said.append(f"{result.missed:,} examples were done by nobody, because workers died.")
    if result.workers > cores:
        said.append(
            f"{result.workers} workers share {cores} core{'s' * (cores > 1)}: no speedup can show."
        )
    elif not quiet:
        said.append(
            f"Busy machine (load {load:.1f} on {cores} cores): the speeds say little; try again "
            "when it is quiet."
        )
    return said


def _objective(result: ClassicResult, serial: ClassicResult) -> list[str]:
    reference = serial.epochs[len(result.epochs) - 1].objective
    if not reference:
        return []
    if result.objective == reference:
        return ["The objective is serial's, to the last digit."]
    apart = result.objective / reference - 1
    side = "above" if apart > 0 else "below"
    if abs(apart) <= NEAR:
        return [f"The objective is serial's, {abs(apart):.2%} {side} it, after equal epochs."]
    if apart < 0:
        return [f"The objective is {-apart:.1%} below serial's after equal epochs."]
    why = {
        "sync": f": a mean of {result.workers} gradients is one step, so it takes fewer of them; "
        "a larger --lr may make up for it",
        "avg_runs": ": each worker sees only its share, and averaging copies is not the same as "
        "going on from one",
    }.get(result.scheme, f": with {result.workers} workers each step begins from older values")
    return [f"The objective is {apart:.1%} above serial's after equal epochs{why}."]


def _speed(result: ClassicResult, serial: ClassicResult, *, quiet: bool) -> list[str]:
    speedup = result.speedup(serial)
    if speedup is None or result.workers == 1:
        return []
    said = f"{result.workers} workers did {speedup:.2f} x the examples per second of serial"
    if speedup >= 1 or not quiet:
        return [f"{said}."]
    return [f"{said}: waiting and moving shared cache lines costs more here than it gains."]


def _updates(result: ClassicResult) -> str:
    if not result.lost_updates:
        return f"No update was lost, of {result.probe_updates:,} that were counted."
    rate = result.lost_updates / result.probe_updates
    return (
        f"Lost updates: {rate:.2%} of those of a counter that is raised as often as the busiest "
        "coordinate that workers share is touched; others lose less."
    )
