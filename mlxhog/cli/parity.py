"""Compute one model with every backend, and compare every number.

These are loss, logits, hidden states, gradients, states, parameters after some steps of SGD,
momentum, AdamW and an optimizer that --plugin adds, and one token at a time against the whole
sequence. SUBJECT is an architecture (a name, a YAML file or a line of layers), a checkpoint's
directory, a run, or hf:OWNER/NAME; with such a plugin, it may be left out. Exit code 1
if anything disagrees; stderr names the first tensor that does. `mlxhog parity export` writes test
vectors for implementations in any language, `mlxhog parity judge` compares their results.

With --side SUBJECT is as for parity export, such as mlstm, gla or small, and every side computes
the test vectors: a function `module:function` of yours, which gets a case and returns arrays by
name; own, the kernels of this package; peers, every package that is installed, or one of them, such
as mlstm_kernels or fla/naive_chunk_kda. Where two sides differ, the float64 reference says which is
right.

Examples:
    parity latest
    parity "my_layer swiglu" --plugin examples/my_layer.py
    parity --plugin examples/my_optimizer.py
    parity tiny --set hidden_size=96 --set num_heads=3
    parity tiny --perturb lm_head.weight; test $? -eq 1
    parity gla --side mine=my_kernels:gla --side own
    parity export mlstm vectors/
    parity judge vectors/ results/
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from mlxhog.base import float32
from mlxhog.cli.frame import (
    CommandResult,
    Download,
    Json,
    Plugins,
    Quiet,
    RunsDirectory,
    argument,
    command,
    option,
)
from mlxhog.config.options import is_set, option_of
from mlxhog.conformance.api import ParityOptions
from mlxhog.display.table import AnswerNote, FailureNote, Section
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.conformance.compare import ComparedTensor
    from mlxhog.conformance.sides.report import SidesReport

MAX_NAMES = 50  # characters of the sides' names in the answer
MAX_FAILURES = 30  # in the table; the JSON has all
KERNELS = ("all", "auto", "eager", "native", "metal", "metal-emulated")


@dataclass(frozen=True, kw_only=True)
class _Parity(RunsDirectory, Plugins, Download, Quiet):
    subject: str | None = argument("[SUBJECT]", "see above")
    verbose: bool = option(False, "every tensor")
    backends: str = option_of(ParityOptions, "backends")
    kernels: str = option(
        "all", "kernel implementations: all of each backend, or one", choices=KERNELS
    )
    set: str | None = option_of(ParityOptions, "set")
    seed: int = option_of(ParityOptions, "seed")
    batch_size: int = option_of(ParityOptions, "batch_size")
    seq_len: int = option_of(ParityOptions, "seq_len", unit="tokens")
    steps: int = option_of(ParityOptions, "steps")
    dtype: str = option_of(ParityOptions, "dtype")
    perturb: str | None = option(
        None, "self-test: change this parameter on one side; the comparison must then fail"
    )
    side: tuple[str, ...] = option(
        (), "a side that computes test vectors: NAME=module:function, own, peers, or a peer",
        many=True, metavar="SIDE",
        excludes=("backends", "kernels", "set", "batch_size", "seq_len", "steps", "perturb"),
    )  # fmt: skip
    side_limit: float = option(60.0, "for a case of a side", unit="s", above=0)


_COMPUTED = "backends kernels set seed batch_size seq_len steps dtype perturb runs_dir".split()


@command()
def run(config: _Parity) -> CommandResult:
    # It imports NumPy and the native module; wrong flags are refused before.
    from mlxhog.conformance.api import parity as compute
    from mlxhog.conformance.sides.report import SidesReport

    if is_set(config, "side_limit") and not config.side:
        raise ConfigError("--side-limit is the time of a case of a side; give --side, too")
    how = {name: getattr(config, name) for name in _COMPUTED}
    with config.status() as status:
        result = compute(
            config.subject, **how, sides=config.side, limit_s=config.side_limit, observer=status
        )
    messages = [f"{config.perturb} was perturbed, but no comparison failed"] * result.missed
    if result.first_bad is not None:
        messages = [f"disagree: {_describe(result.first_bad)}"]
        messages += filter(None, [float32.user_note()])
    text = _text(
        result.rows, result.names, result.title, result.notes, everything=config.verbose,
        missed=result.missed,
    )  # fmt: skip
    if isinstance(result, SidesReport):
        text = chain(text, [_by_side(result)])
    return CommandResult(result.to_json(), text, int(not result.ok), messages)


def _by_side(result: "SidesReport") -> Section:
    """Return a row for each side, and the rulings of the arbiter."""
    header = ("side", "agree", "worst", "error / tolerance", "not checked")
    rows = []
    for one in result.summaries:
        agree = f"{sum(row.ok for row in one.rows)} of {len(one.rows)}"
        rows.append((one.side.name, agree, one.worst.what, f"{one.worst.tolerance_ratio:.2g}",
                     "; ".join(one.not_checked)))  # fmt: skip
    alike: dict[tuple[str, ...], list[str]] = {}
    for ruling in result.rulings:
        alike.setdefault(ruling.names, []).append(str(ruling))
    rulings = [
        first + f"; likewise in {len(more)} more tensors" * bool(more)
        for first, *more in alike.values()
    ]
    perhaps = [
        FailureNote(f"{one.side.name}: perhaps {guess}")
        for one in result.summaries
        for guess in one.guesses
    ]
    return Section("Sides", header, rows, [*perhaps, *rulings])


def _text(
    rows: Sequence["ComparedTensor"], names: Sequence[str], title: str, notes: Iterable[str], *,
    everything: bool, missed: bool = False,
) -> Iterator[Section]:  # fmt: skip
    sides = ", ".join(names)
    failed = sorted((row for row in rows if not row.ok), key=lambda row: -row.tolerance_ratio)
    sides = sides if len(sides) <= MAX_NAMES else f"{len(names)} sides"
    answer: str = AnswerNote(f"Yes: all {len(rows):,} agree ({sides})")
    if failed:
        answer = FailureNote(f"FAILED: {len(failed)} of {len(rows)} disagree")
    elif missed:
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
    yield Section(title, header, cells, [*notes, *closest, *more])


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
class _Judge(Json):
    folder: str = argument("DIR", "the test vectors, as parity export wrote them")
    results: str = argument("RESULTS", "results.json and the tensors of an implementation")
    verbose: bool = option(False, "every tensor")


@command()
def judge(config: _Judge) -> CommandResult:
    """Compare an implementation's results with test vectors; README.md there has the format.

    Every claim of results.json is checked, the rest listed. Where a tensor departs, the kind of
    fault is guessed. Exit code 1 if any departs; stderr names the first one. The last line is a
    badge for a README.

    Examples:
        parity judge vectors/ results/
        parity judge vectors/ results/ --json
    """
    from mlxhog.base.paths import expanded
    from mlxhog.conformance.vectors.judge import judge as compare

    result = compare(expanded(config.folder), expanded(config.results))
    sides = [result.claims.implementation, "reference"]
    first, messages = result.first_bad, list[str]()
    if first is not None:
        apart = first.reason if first.max_abs is None else f"up to {first.max_abs:.2g} apart"
        where = f"[{', '.join(map(str, first.where))}]" if first.where else ""
        messages = [
            f"departs: {first.what}{where} is {first.got:.9g}, expected {first.wanted:.9g}; "
            f"{apart}, allowed {first.tolerance:.2g}"
        ]
    guesses = [FailureNote(f"perhaps {guess}") for guess in result.guesses]
    notes = [*guesses, *result.notes(), f"dtype: {result.claims.dtype}"]
    text = [*_text(result.rows, sides, result.title, notes, everything=config.verbose)]
    text.append(Section("", notes=[result.badge]))
    return CommandResult(result.to_json(), text, int(first is not None), messages)


@dataclass(frozen=True, kw_only=True)
class _Export(Quiet):
    subject: str = argument(
        "SUBJECT", "equations, such as mlstm; small: all cells and layers; all: models, too"
    )
    folder: str = argument("DIR", "a new or empty folder; an earlier export is replaced")


@command(writes=True)
def export(config: _Export) -> CommandResult:
    """Write test vectors: inputs, exact results and gradients, tolerances; README.md explains them.

    A program in any language reads them: JSON and safetensors, no Python.

    Examples:
        parity export mlstm vectors/
        parity export small vectors/ --json
    """
    from mlxhog.base.durable import disk_bytes
    from mlxhog.base.paths import expanded
    from mlxhog.base.quantities import format_bytes
    from mlxhog.conformance.vectors.export import export as write

    folder = expanded(config.folder)
    with config.status() as status:
        names = write(config.subject, folder, status)
    n_bytes = disk_bytes(folder)
    payload = {"folder": str(folder), "bytes": n_bytes, "cases": names}
    return CommandResult(payload, [f"{len(names)} cases, {format_bytes(n_bytes)}: {folder}"])
