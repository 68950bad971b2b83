"""`mlxhog parity`: do all backends compute the same?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base import float32
from mlxhog.cli.flags import Plugins, Quiet, RunFolder
from mlxhog.cli.frame import Report, command, writable
from mlxhog.config import plugins
from mlxhog.config.choices import OPTIMIZERS
from mlxhog.config.options import argument, option, switch
from mlxhog.errors import ConfigError
from mlxhog.report.table import AnswerNote, FailureNote, Section
from mlxhog.report.views import StatusLine

if TYPE_CHECKING:
    from mlxhog.config.optimizer import OptimizerChoice
    from mlxhog.parity.compare import ComparedTensor
    from mlxhog.parity.compute import ParityReport

MOST_NAMES = 50  # characters of the sides' names in the answer
MOST_FAILURES = 30  # in the table; the JSON has all
ABOUT = """\
Compute one model with every backend here and compare every number: loss, logits, hidden states,
gradients, states, parameters after some steps of SGD, momentum and AdamW, and one token at a time
against the whole sequence. The steps of an optimizer that --plugin adds are compared with float64.
SUBJECT is an architecture (a name, a YAML file or a line of layers) or a checkpoint's directory;
with such a plugin, it may be left out.
The answer comes first, then the worst disagreements; --all has a line for each tensor. Exit code 1
if anything disagrees; stderr names the first tensor that does."""
EXAMPLES = (
    "parity --config tiny",
    "parity --checkpoint latest",
    "parity tiny --json",
    'parity "my_layer swiglu" --plugin examples/my_layer.py',
    "parity --plugin examples/my_optimizer.py",
    "parity tiny --set hidden_size=96 --set num_heads=3",
    "parity tiny --perturb lm_head.weight; test $? -eq 1",
)


@dataclass(frozen=True, kw_only=True)
class ParityConfig(RunFolder, Plugins, Quiet):
    """Options of `mlxhog parity`."""

    subject: str | None = argument("[SUBJECT]", "see above")
    config: str | None = option(None, "an architecture", metavar="NAME_OR_FILE")
    checkpoint: str | None = option(None, "a checkpoint, or a run", metavar="DIR")
    all: bool = switch("every tensor")
    backends: str = option(
        "auto", "sides: auto, or some of numpy, torch:cpu, mlx:cpu .., by commas"
    )
    kernels: str = option(
        "all",
        "forms of the operators: all of each backend, or one",
        choices=("all", "auto", "reference", "native", "metal", "metal-emulated"),
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
    save: str | None = option(None, "write every array to this .npz file, as BACKEND/NAME")


@command("parity", ABOUT, EXAMPLES, ParityConfig)
def run(config: ParityConfig) -> Report:
    """Compare the numbers of all backends."""
    kind, where = _source(config)
    # These import NumPy and the native module; wrong flags are refused before.
    from mlxhog.parity.compute import compare_sides
    from mlxhog.parity.subject import check_memory, choose, open_subject
    from mlxhog.report.views import numbered

    save = None if config.save is None else writable("--save", config.save)
    sizes: dict[str, Any] = {"seed": config.seed, "steps": config.steps}
    sizes["shape"] = config.batch_size, config.seq_len
    subject = open_subject(kind, where, Path(config.out), config.set, **sizes)
    chosen, lacks = choose(config.backends, config.kernels)
    check_memory(subject, chosen)
    with StatusLine(sys.stderr, quiet=config.quiet) as tell:
        plugins = _plugin_optimizers()
        comparison = compare_sides(
            replace(subject.made(), plugins=plugins),
            chosen,
            numbered(tell, len(chosen)),
            perturb=config.perturb,
            seed=config.seed,
            save=save,
        )
    tf32 = list(filter(None, [float32.user_note()]))
    notes = [*comparison.subject.notes, *lacks, *tf32]
    stepped = {row.what.split("/")[1] for row in comparison.rows if row.kind == "step"}
    notes += [
        f"not compared: {p.name}, which takes no step" for p in plugins if p.name not in stepped
    ]
    if comparison.perturbed is not None:
        notes.append("perturbed: " + " of ".join(comparison.perturbed))
    remarks = list[str]()
    if comparison.first_bad is not None:
        remarks = [f"disagree: {_describe(comparison.first_bad)}", *tf32]
    elif comparison.missed:
        remarks = [f"{config.perturb} was perturbed, but no comparison failed"]

    def text() -> list[Section]:
        table = _table(comparison, notes, everything=config.all)
        return [Section("", notes=[_answer(comparison)]), table]

    facts = comparison.to_json() | {"notes": notes}
    return Report(facts, text=text, code=int(not comparison.ok), remarks=remarks)


def _plugin_optimizers() -> tuple[OptimizerChoice, ...]:
    """Return the optimizers of loaded plugins, with their default numbers."""
    classes: Any = OPTIMIZERS.known().values()
    return tuple(choice() for choice in classes if plugins.files_of([choice]))


def _source(config: ParityConfig) -> tuple[str, str]:
    """Return the kind of the subject that the command line names, and its name.

    Raises:
        ConfigError: the command line names more than one; or none, and no optimizer of a plugin.
    """
    subjects = {"config": config.config, "checkpoint": config.checkpoint}
    named = [(kind, where) for kind, where in subjects.items() if where is not None]
    if config.subject is not None:
        is_folder = Path(config.subject).is_dir()
        named.append(("checkpoint" if is_folder else "config", config.subject))
    if not named and _plugin_optimizers():
        return "config", "tiny"
    if len(named) != 1:
        what = " and ".join(where for _, where in named) or "nothing"
        raise ConfigError(
            f"parity wants one subject and got {what}; give an architecture or a "
            "checkpoint's directory, for example `mlxhog parity --config tiny`"
        )
    return named[0]


def _table(comparison: ParityReport, notes: Sequence[str], *, everything: bool) -> Section:
    """Return the failures, the worst first and at most `MOST_FAILURES`; or every tensor."""
    rows = comparison.rows
    failed = sorted((row for row in rows if not row.ok), key=lambda row: -row.pressure)
    shown = rows if everything else failed[:MOST_FAILURES]
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
        for row in shown
    ]
    good = [row for row in rows if row.ok and row.max_abs is not None]
    closest = max(good, key=lambda row: row.pressure, default=None)
    notes = [*notes]
    if closest is not None:
        notes.append(
            f"closest to its limit: {closest.what} of {closest.a} against {closest.b}, at "
            f"{closest.pressure:.0%} of the tolerance"
        )
    if not everything:
        notes.append("--all has a line for every tensor")
    return Section(comparison.subject.title, header, cells, notes)


def _answer(comparison: ParityReport) -> str:
    """Return a line that says whether all agree."""
    rows, sides = comparison.rows, ", ".join(side.name for side in comparison.sides)
    failed = sum(not row.ok for row in rows)
    if failed:
        return FailureNote(f"FAILED: {failed} of {len(rows)} disagree")
    if comparison.missed:
        return FailureNote("FAILED: a parameter was perturbed, but no comparison failed")
    if len(sides) > MOST_NAMES:
        sides = f"{len(comparison.sides)} sides"
    return AnswerNote(f"Yes: all {len(rows):,} agree ({sides})")


def _describe(row: ComparedTensor) -> str:
    """Return a line that names a disagreement."""
    where = f"[{', '.join(map(str, row.where))}]" if row.where else ""
    against = "itself over the whole sequence" if row.b == row.a else row.b
    if row.max_abs is None:
        values = f" ({row.got} and {row.wanted})" if row.where else ""
        return f"{row.what}{where}: {row.a} and {against}: {row.reason}{values}"
    unit = f" {row.unit}" if row.unit else ""
    return (
        f"{row.what}{where}: {row.a} has {row.got:.9g} and {against} {row.wanted:.9g}, "
        f"{row.max_abs:.2g}{unit} apart, allowed {row.tolerance:.2g}"
    )
