"""`mlxhog doctor`, `parity` and `replay`: checks that end with exit code 1 if something differs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlxhog.base import float32
from mlxhog.cli.flags import OneRun, Plugins, Quiet, RunsDirectory
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import argument, option, switch
from mlxhog.display.table import AnswerNote, FailureNote, Section
from mlxhog.errors import EnvironmentLacks

if TYPE_CHECKING:
    from mlxhog.conformance.compare import ComparedTensor
    from mlxhog.conformance.compute import ParityReport


@dataclass(frozen=True, kw_only=True)
class _Doctor(Quiet):
    quick: bool = switch("a little of everything; the result is not stored")
    report: str | None = option(
        None,
        "also measure speeds, train by default for 20 s, and write all results and logs to a zip "
        "archive, for an issue",
        metavar="FILE",
    )


@command("doctor")
def doctor(config: _Doctor) -> Report:
    """Test what mlxhog relies on here.

    That is shared memory, a gradient of every backend beside the reference, every pair of writers
    at once, readers beside a writer; on a Mac every Metal kernel, and whether torch:mps beside
    mlx:gpu makes runs faster. This takes half a minute, on a Mac up to three. The result is stored
    for this machine and these versions, and `mlxhog train` uses it. A check that other programs
    leave too little processor time is inconclusive, not a failure. Exit code 1 if a promise of
    mlxhog does not hold here.

    Examples:
        doctor
        doctor --json > doctor.json
        doctor --quick
        doctor --report mac.zip
    """
    # These import NumPy and the native module; wrong input is refused before.
    from mlxhog.base import machine
    from mlxhog.display.views import numbered
    from mlxhog.doctor import report
    from mlxhog.doctor.record import STAGES, examine, sections

    target = None if config.report is None else report.target(config.report)
    here = machine.here()
    with config.status() as status:
        tell = numbered(status, STAGES - config.quick + report.STAGES * bool(target))
        try:
            record = examine(config.quick, tell)
        except Exception:
            if target:  # a report is of use just then
                report.write(target, report.of_fault(config.quick), here, tell)
                status.tell(f"{target} has this error and what else is known")
            raise
        record |= _consequences(record, quick=config.quick)
        if target:
            report.write(target, record, here, tell)
    failed = record["failed"]
    short = config.quiet and failed and not config.json
    remarks = [f"FAILED: {', '.join(failed)}"] if short else []
    return Report(record, sections(record), int(bool(failed)), remarks)


def _consequences(record: dict[str, Any], *, quick: bool) -> dict[str, Any]:
    """Store a record, and return where it is and what follows for runs."""
    from mlxhog.base import capabilities as verdicts
    from mlxhog.base import machine
    from mlxhog.doctor.record import option_values

    stored, not_stored = None, "--quick is not stored; run `mlxhog doctor`"
    if not quick:
        try:
            stored = str(verdicts.save(record, verdicts.Identity(**record["identity"])))
        except EnvironmentLacks as error:
            not_stored = str(error)
    known = verdicts.load()  # as a run would
    if not known.usable:
        known = verdicts.CapabilityRecord(known.path, None, record)
    options = option_values(known, machine.here())
    return {"stored": stored, "not_stored": None if stored else not_stored, "options": options}


MAX_NAMES = 50  # characters of the sides' names in the answer
MAX_FAILURES = 30  # in the table; the JSON has all
KERNELS = ("all", "auto", "eager", "native", "metal", "metal-emulated")


@dataclass(frozen=True, kw_only=True)
class _Parity(RunsDirectory, Plugins, Quiet):
    subject: str | None = argument("[SUBJECT]", "see above")
    verbose: bool = switch("every tensor")
    backends: str = option(
        "auto", "sides: auto, or some of numpy, torch:cpu, mlx:cpu .., by commas"
    )
    kernels: str = option(
        "all", "forms of the operators: all of each backend, or one", choices=KERNELS
    )
    set: str | None = option(
        None,
        "other values for fields of an architecture, such as hidden_size=64, as in mlxhog train",
        repeats=True,
    )
    seed: int = option(0, "seed of tokens and noise", low=0, high=2**32 - 1)
    batch_size: int = option(2, "sequences", low=1)
    seq_len: int = option(67, "tokens of each", unit="tokens", low=1)
    steps: int = option(3, "steps with each optimizer; 0 for none", low=0, high=1000)
    perturb: str | None = option(None, "change this parameter on one side; must end with 1")


_COMPUTED = "backends kernels set seed batch_size seq_len steps perturb runs_dir".split()


@command("parity")
def parity(config: _Parity) -> Report:
    """Compute one model with every backend here and compare every number.

    These are loss, logits, hidden states, gradients, states, parameters after some steps of SGD,
    momentum, AdamW and an optimizer that --plugin adds, and one token at a time against the whole
    sequence. SUBJECT is an architecture (a name, a YAML file or a line of layers), a checkpoint's
    directory, or a run (its whole name, or latest); with such a plugin, it may be left out. Exit
    code 1 if anything disagrees; stderr names the first tensor that does.

    Examples:
        parity latest
        parity "my_layer swiglu" --plugin examples/my_layer.py
        parity --plugin examples/my_optimizer.py
        parity tiny --set hidden_size=96 --set num_heads=3
        parity tiny --perturb lm_head.weight; test $? -eq 1
    """
    # It imports NumPy and the native module; wrong flags are refused before.
    from mlxhog.conformance.api import parity as compute

    with config.status() as tell:
        result = compute(
            config.subject, **{name: getattr(config, name) for name in _COMPUTED}, observer=tell
        )
    remarks = [f"{config.perturb} was perturbed, but no comparison failed"] * result.missed
    if result.first_bad is not None:
        remarks = [f"disagree: {_describe(result.first_bad)}"]
        remarks += filter(None, [float32.user_note()])
    text = _text(result, everything=config.verbose)
    return Report(result.to_json(), text, int(not result.ok), remarks)


def _text(result: "ParityReport", *, everything: bool) -> Iterator[Section]:
    rows, sides = result.rows, ", ".join(side.name for side in result.sides)
    failed = sorted((row for row in rows if not row.ok), key=lambda row: -row.tolerance_ratio)
    sides = sides if len(sides) <= MAX_NAMES else f"{len(result.sides)} sides"
    answer: str = AnswerNote(f"Yes: all {len(rows):,} agree ({sides})")
    if failed:
        answer = FailureNote(f"FAILED: {len(failed)} of {len(rows)} disagree")
    elif result.missed:
        answer = FailureNote("FAILED: a parameter was perturbed, but no comparison failed")
    yield Section("", notes=[answer])
    header = ("", "tensor", "side", "against", "max abs", "max rel", "allowed", "at")
    cells = [
        (
            "PASS" if row.ok else "FAIL",
            row.what,
            row.a,
            "itself" if row.a == row.b else row.b,
            *("-" if x is None else f"{x:.1e}" for x in (row.max_abs, row.max_rel, row.tolerance)),
            f"[{', '.join(map(str, row.where))}]" if row.max_abs is not None else row.reason,
        )
        for row in (rows if everything else failed[:MAX_FAILURES])
    ]
    good = [row for row in rows if row.ok and row.max_abs is not None]
    closest = [
        f"closest to its limit: {row.what} of {row.a} against {row.b}, at "
        f"{row.tolerance_ratio:.0%} of the tolerance"
        for row in sorted(good, key=lambda row: -row.tolerance_ratio)[:1]
    ]
    more = ["--verbose has a line for every tensor"] * (not everything)
    yield Section(result.subject.title, header, cells, [*result.notes, *closest, *more])


def _describe(row: "ComparedTensor") -> str:
    where = f"[{', '.join(map(str, row.where))}]" if row.where else ""
    sides = f"{row.a} and {'itself over the whole sequence' if row.b == row.a else row.b}"
    if row.max_abs is None:
        values = f" ({row.got} and {row.wanted})" if row.where else ""
        return f"{row.what}{where}: {sides}: {row.reason}{values}"
    unit = f" {row.unit}" if row.unit else ""
    return (
        f"{row.what}{where}: {sides} have {row.got:.9g} and {row.wanted:.9g}, "
        f"{row.max_abs:.2g}{unit} apart, allowed {row.tolerance:.2g}"
    )


@dataclass(frozen=True, kw_only=True)
class _Replay(OneRun, Plugins):
    ignore_versions: bool = option(
        False, "continue although versions or the processor differ from those of the run"
    )


@command("replay")
def replay(config: _Replay) -> Report:
    """Repeat a recorded run and compare it bit for bit.

    train --determinism record keeps a log of the order in which its lock-free workers read and
    wrote every stripe of the parameters. The replay starts the same workers, delays each access
    until its turn, and checks the weights of each step and the norm of each gradient. Exit code 1:
    they differ; the output names worker, step and stripe of the first difference.

    Examples:
        train --determinism record --workers mlx:cpu,torch:cpu --steps 100
        replay latest
    """
    from mlxhog.training.supervisor.replay import replay

    outcome = replay(config.find(config.run), ignore_versions=config.ignore_versions)
    facts, difference = outcome.to_json(), outcome.difference
    if difference is None:
        return Report(facts, [f"equal bit for bit: {outcome.hashes} hashes", facts])
    return Report(facts, [f"differs first at {difference}", facts], code=1)
