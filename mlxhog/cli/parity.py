"""`mlxhog parity`: do all backends compute the same?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

if TYPE_CHECKING:
    from mlxhog.parity.compare import ComparedTensor
    from mlxhog.parity.compute import ParityReport

MOST_NAMES = 50  # characters of the sides' names in the answer
MOST_FAILURES = 30  # in the table; the JSON has all
KERNELS = ("all", "auto", "reference", "native", "metal", "metal-emulated")


@dataclass(frozen=True, kw_only=True)
class _Words(RunFolder, Plugins, Quiet):
    subject: str | None = argument("[SUBJECT]", "see above")
    config: str | None = option(None, "an architecture", metavar="NAME_OR_FILE")
    checkpoint: str | None = option(None, "a checkpoint, or a run", metavar="DIR")
    all: bool = switch("every tensor")
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
    save: str | None = option(None, "write every array to this .npz file, as BACKEND/NAME")


@command("parity")
def run(config: _Words) -> Report:
    """Compute one model with every backend here and compare every number.

    These are loss, logits, hidden states, gradients, states, parameters after some steps of SGD,
    momentum and AdamW, and one token at a time against the whole sequence. The steps of an
    optimizer that --plugin adds are compared with float64. SUBJECT is an architecture (a name, a
    YAML file or a line of layers) or a checkpoint's directory; with such a plugin, it may be left
    out.

    The answer comes first, then the worst disagreements; --all has a line for each tensor. Exit
    code 1 if anything disagrees; stderr names the first tensor that does.

    Examples:
        parity --config tiny
        parity --checkpoint latest
        parity tiny --json
        parity "my_layer swiglu" --plugin examples/my_layer.py
        parity --plugin examples/my_optimizer.py
        parity tiny --set hidden_size=96 --set num_heads=3
        parity tiny --perturb lm_head.weight; test $? -eq 1
    """
    classes: Any = OPTIMIZERS.known().values()
    own = tuple(choice() for choice in classes if plugins.files_of([choice]))
    kind, where = _subject(config, "tiny" if own else None)
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
    with config.status() as tell:
        result = compare_sides(
            replace(subject.made(), plugins=own),
            chosen,
            numbered(tell, len(chosen)),
            perturb=config.perturb,
            seed=config.seed,
            save=save,
        )
    tf32 = list(filter(None, [float32.user_note()]))
    stepped = {row.what.split("/")[1] for row in result.rows if row.kind == "step"}
    idle = [f"not compared: {p.name}, which takes no step" for p in own if p.name not in stepped]
    notes = [*result.subject.notes, *lacks, *tf32, *idle]
    if result.perturbed is not None:
        notes.append("perturbed: " + " of ".join(result.perturbed))
    remarks = [f"{config.perturb} was perturbed, but no comparison failed"] * result.missed
    if result.first_bad is not None:
        remarks = [f"disagree: {_describe(result.first_bad)}", *tf32]
    text = _text(result, notes, everything=config.all)
    return Report(result.to_json() | {"notes": notes}, text, int(not result.ok), remarks)


def _subject(config: _Words, otherwise: str | None) -> tuple[str, str]:
    """Return the kind of the subject that the command line names, and its name.

    Raises:
        ConfigError: the command line names more than one; or none, and there is no other.
    """
    named = [("config", config.config), ("checkpoint", config.checkpoint)]
    if config.subject is not None:
        is_folder = Path(config.subject).is_dir()
        named.append(("checkpoint" if is_folder else "config", config.subject))
    subjects = [(kind, where) for kind, where in named if where is not None]
    if not subjects and otherwise is not None:
        return "config", otherwise
    if len(subjects) != 1:
        what = " and ".join(where for _, where in subjects) or "nothing"
        raise ConfigError(
            f"parity wants one subject and got {what}; give an architecture or a "
            "checkpoint's directory, for example `mlxhog parity --config tiny`"
        )
    return subjects[0]


def _text(result: ParityReport, notes: Sequence[str], *, everything: bool) -> Iterator[Section]:
    """Yield the answer, and the failures, the worst first and at most `MOST_FAILURES`; or all."""
    rows, sides = result.rows, ", ".join(side.name for side in result.sides)
    failed = sorted((row for row in rows if not row.ok), key=lambda row: -row.pressure)
    sides = sides if len(sides) <= MOST_NAMES else f"{len(result.sides)} sides"
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
        for row in (rows if everything else failed[:MOST_FAILURES])
    ]
    good = [row for row in rows if row.ok and row.max_abs is not None]
    closest = [
        f"closest to its limit: {row.what} of {row.a} against {row.b}, at {row.pressure:.0%} of "
        "the tolerance"
        for row in sorted(good, key=lambda row: -row.pressure)[:1]
    ]
    more = ["--all has a line for every tensor"] * (not everything)
    yield Section(result.subject.title, header, cells, [*notes, *closest, *more])


def _describe(row: ComparedTensor) -> str:
    where = f"[{', '.join(map(str, row.where))}]" if row.where else ""
    against = "itself over the whole sequence" if row.b == row.a else row.b
    if row.max_abs is None:
        values = f" ({row.got} and {row.wanted})" if row.where else ""
        return f"{row.what}{where}: {row.a} and {against}: {row.reason}{values}"
    return (
        f"{row.what}{where}: {row.a} has {row.got:.9g} and {against} {row.wanted:.9g}, "
        f"{row.max_abs:.2g}{f' {row.unit}' if row.unit else ''} apart, allowed {row.tolerance:.2g}"
    )
