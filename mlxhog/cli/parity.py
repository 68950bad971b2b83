"""`mlxhog parity`: do all backends compute the same?"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base import float32
from mlxhog.base.paths import expanded
from mlxhog.cli.flags import Flags
from mlxhog.cli.output import ended_by_signal, print_json, print_sections
from mlxhog.config import plugin_file
from mlxhog.config.choices import OPTIMIZERS
from mlxhog.config.options import option
from mlxhog.errors import ConfigError
from mlxhog.report.table import AnswerNote, FailureNote, Section

if TYPE_CHECKING:
    from mlxhog.config.optimizer import OptimizerChoice
    from mlxhog.parity.compare import ComparedTensor
    from mlxhog.parity.comparison import ParityReport

SUBJECT = "SUBJECT"
MOST_NAMES = 50  # characters of the sides' names in the answer
MOST_FAILURES = 4  # of a kind in the table; the JSON has all
ABOUT = """\
Compute one model with every backend here and compare every number: loss, logits, hidden states,
gradients, states, parameters after some steps of SGD, momentum and AdamW, and one token at a time
against the whole sequence. The steps of an optimizer that --plugin adds are compared with float64.
SUBJECT is an architecture (a name, a YAML file or a line of layers) or a checkpoint's directory;
with such a plugin, it may be left out.
The answer comes first, then each disagreement; --all has the worst of each kind and a line for each
tensor. Exit code 1 if anything disagrees; stderr names the first tensor that does."""
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
class ParityConfig:
    """Options of `mlxhog parity`."""

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
    out: str = option("runs", "folder that holds the runs")
    save: str | None = option(None, "write every array to this .npz file, as BACKEND/NAME")


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("parity", ABOUT, EXAMPLES, (f"[{SUBJECT}]",))
    flags.argument("subject", nargs="?", metavar=SUBJECT, help="see above")
    flags.argument("--config", metavar="NAME_OR_FILE", help="an architecture")
    flags.argument("--checkpoint", metavar="DIR", help="a checkpoint, or a run")
    flags.plugin()
    flags.argument("--all", action="store_true", help="the worst of each kind, every tensor")
    flags.argument("--json", action="store_true", help="one JSON object with a row per tensor")
    flags.quiet()
    parsed, config = flags.read(ParityConfig, arguments)
    kind, where = _source(parsed.other, default="tiny" if _plugin_optimizers() else None)
    return _compare(kind, where, config, parsed.other)


def _plugin_optimizers() -> tuple[OptimizerChoice, ...]:
    """Return the optimizers of loaded plugins, with their default numbers."""
    classes: Any = OPTIMIZERS.known().values()
    return tuple(choice() for choice in classes if plugin_file.files_of([choice]))


def _source(arguments: Any, *, default: str | None) -> tuple[str, str]:
    """Return the kind of the subject that the command line names, and its name.

    Args:
        arguments: of the command line.
        default: an architecture in place of no subject; None if a subject is needed.

    Raises:
        ConfigError: the command line names no subject, or more than one.
    """
    named = {kind: getattr(arguments, kind) for kind in ("config", "checkpoint")}
    subjects = [(kind, where) for kind, where in named.items() if where is not None]
    if arguments.subject is not None:
        kind = "checkpoint" if Path(arguments.subject).is_dir() else "config"
        subjects.append((kind, arguments.subject))
    if not subjects and default is not None:
        return "config", default
    if len(subjects) != 1:
        what = " and ".join(where for _, where in subjects) or "nothing"
        raise ConfigError(
            f"parity wants one subject and got {what}; give an architecture or a "
            "checkpoint's directory, for example `mlxhog parity --config tiny`"
        )
    return subjects[0]


def _compare(kind: str, where: str, config: ParityConfig, how: Any) -> int:
    # These import NumPy and the native module; wrong flags are refused before.
    from mlxhog.parity.comparison import compare_sides
    from mlxhog.parity.sources import TrialSettings, check_memory, open_source
    from mlxhog.parity.subject import choose
    from mlxhog.report.views import PartLine, Stages

    save = None if config.save is None else expanded(config.save)
    if save is not None and (save.is_dir() or not os.access(save.parent, os.W_OK | os.X_OK)):
        raise ConfigError(f"--save {save}: name a file in a directory that can be written")
    sizes = TrialSettings(
        seed=config.seed,
        batch_size=config.batch_size,
        seq_len=config.seq_len,
        steps=config.steps,
    )
    source = open_source(kind, where, sizes, Path(config.out), config.set)
    chosen, lacks = choose(config.backends, config.kernels)
    check_memory(source, chosen)
    with (
        ended_by_signal(),
        PartLine(sys.stderr, quiet=how.quiet) as tell,
    ):
        subject, plugins = source.make(), _plugin_optimizers()
        subject = replace(subject, plan=replace(subject.plan, plugins=plugins))
        comparison = compare_sides(
            subject,
            chosen,
            Stages(tell, len(chosen)),
            perturb=config.perturb,
            seed=config.seed,
            save=save,
        )
    tf32 = filter(None, [float32.user_note()])
    notes = [*comparison.subject.notes, *lacks, *tf32]
    stepped = {row.what.split("/")[1] for row in comparison.rows if row.kind == "step"}
    notes += [
        f"not compared: {p.name}, which takes no step" for p in plugins if p.name not in stepped
    ]
    if comparison.perturbation is not None:
        notes.append(f"perturbed: {comparison.perturbation.name} of {comparison.perturbation.side}")
    _print(comparison, notes, how)
    if comparison.first_bad is not None:
        print(f"disagree: {_describe(comparison.first_bad)}", file=sys.stderr)
        if why := float32.user_note():
            print(why, file=sys.stderr)
    elif comparison.missed:
        print(f"{config.perturb} was perturbed, but no comparison failed", file=sys.stderr)
    return 0 if comparison.ok else 1


def _print(comparison: ParityReport, notes: list[str], how: Any) -> None:
    if how.json:
        print_json(comparison.to_json() | {"notes": notes})
        return
    if how.quiet:
        return
    print_sections(_sections(comparison, notes, everything=how.all))


def _sections(
    comparison: ParityReport, notes: Sequence[str], *, everything: bool
) -> Iterator[Section]:
    """Yield the tables of a comparison for `mlxhog.report.table.show`.

    Args:
        comparison: the result.
        notes: lines below the tables.
        everything: whether to show the worst of each kind, over all sides that are compared with
            the same one, and then every tensor; else the failures, up to `MOST_FAILURES` of a kind.
    """
    rows = comparison.rows
    groups: dict[tuple[str, str], list[ComparedTensor]] = {}
    for row in rows:
        groups.setdefault((_reference_of(row), _group(row)), []).append(row)
    lines: list[tuple[str, ...]] = []
    for group in groups.values():
        lines += map(_line, group if everything else _worst_failures(group))
    yield Section("", notes=[_answer(comparison)])
    header = ("", "what", "side", "against", "max abs", "max rel", "allowed", "at")
    if everything:
        worst = [_line(_worst(group), len(group)) for group in groups.values()]
        yield Section("the worst of each kind", header, worst)
    hint = [] if everything else ["--all has the worst of each kind, and a line for every tensor"]
    yield Section(comparison.subject.title, header, lines, [*notes, *_closest(rows), *hint])


def _answer(comparison: ParityReport) -> str:
    """Return a line that says whether all agree."""
    rows, names = comparison.rows, [side.name for side in comparison.sides]
    failed = sum(not row.ok for row in rows)
    if failed:
        return FailureNote(f"FAILED: {failed} of {len(rows)} disagree")
    if comparison.missed:
        return FailureNote("FAILED: a parameter was perturbed, but no comparison failed")
    sides = ", ".join(names)
    if len(sides) > MOST_NAMES:
        sides = f"{len(names)} sides"
    return AnswerNote(f"Yes: all {len(rows):,} agree ({sides})")


def _closest(rows: Sequence[ComparedTensor]) -> Iterator[str]:
    """Yield a note on the agreement that is closest to its limit."""
    good = [row for row in rows if row.ok and row.max_abs is not None]
    if good:
        row = max(good, key=lambda row: row.pressure)
        yield (
            f"closest to its limit: {row.what} of {row.a} against {_against(row)}, at "
            f"{row.pressure:.0%} of the tolerance"
        )


def _worst_failures(group: Sequence[ComparedTensor]) -> list[ComparedTensor]:
    bad = [row for row in group if not row.ok]
    return sorted(bad, key=lambda row: -row.pressure)[:MOST_FAILURES]


def _worst(group: Sequence[ComparedTensor]) -> ComparedTensor:
    """Return the tensor that is farthest beyond its limit, or else closest to it."""
    return max(group, key=lambda row: (not row.ok, row.pressure))


def _reference_of(row: ComparedTensor) -> str:
    """Return the side that a tensor is compared with; the forms of a backend count as one."""
    return _against(row).partition("+")[0]


def _against(row: ComparedTensor) -> str:
    return "itself" if row.a == row.b else row.b


def _group(row: ComparedTensor) -> str:
    """Return the kind of a tensor, with its form or optimizer."""
    words = row.what.split("/")[:2]
    if row.kind in ("after", "step"):
        return "/".join(words)
    return "/".join(word for word in words if word in ("stepwise", row.kind)) or row.kind


def _line(row: ComparedTensor, count: int = 1) -> tuple[str, ...]:
    """Return the cells of a line, which stands for `count` tensors."""
    place = f"[{', '.join(map(str, row.where))}]" if row.where else ""
    tensor = row.what.removeprefix(_group(row)).lstrip("/")
    at = f"{tensor}{place}"
    return (
        "PASS" if row.ok else "FAIL",
        f"{_group(row)} x{count}" if count > 1 else _group(row),
        row.a,
        _against(row),
        _number(row.max_abs),
        _number(row.max_rel),
        _number(row.tolerance),
        at if row.max_abs is not None else f"{at} {row.reason}",
    )


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.1e}"


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
