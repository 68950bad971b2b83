"""`mlxhog parity`: do all backends compute the same?"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.cli.flags import Flags
from mlxhog.cli.output import ended_by_signal, print_json, print_sections
from mlxhog.config.options import option
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.parity.comparison import Comparison

SUBJECT = "SUBJECT"
ABOUT = """\
Compute one thing with every backend here, and compare every number: loss, logits, hidden states,
gradients, states, parameters after some steps of SGD, momentum and AdamW, one token at a time
against the whole sequence. SUBJECT is an architecture (a name, a YAML file or a line of layers), a
checkpoint's directory, or a recorded case (NAME.safetensors with NAME.json beside it).
The answer comes first, with what disagrees; --all has the worst of each kind, and a line for every
tensor. Exit code 1 if anything disagrees; the first tensor that does is named on stderr."""
EXAMPLES = (
    "parity --config tiny",
    "parity --checkpoint runs/latest",
    "parity --case golden/xlstm/hf_a.safetensors --json",
    'parity "my_layer swiglu" --layers-from examples/my_layer.py',
    "parity tiny --perturb lm_head.weight; test $? -eq 1",
)


@dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """Options of `mlxhog parity`."""

    backends: str = option(
        "auto", "who computes: auto, or some of numpy, torch:cpu, mlx:cpu, xlstm .., by commas"
    )
    kernels: str = option(
        "all",
        "forms of the operators: all of each backend, or one",
        choices=("all", "auto", "reference", "native", "metal", "metal-emulated"),
    )
    seed: int = option(0, "seed of tokens and noise", low=0, high=2**32 - 1)
    batch_size: int = option(2, "sequences; a recorded case has its own", low=1)
    seq_len: int = option(67, "tokens of each; a recorded case has its own", unit="tokens", low=1)
    steps: int = option(3, "steps of SGD, momentum and AdamW each; 0 for none", low=0, high=1000)
    perturb: str | None = option(None, "spoil this parameter on one side; the answer must be 1")
    out: str = option("runs", "folder that holds the runs")
    save: str | None = option(None, "write every array to this .npz file, as BACKEND/NAME")


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("parity", ABOUT, EXAMPLES, (f"[{SUBJECT}]",))
    flags.argument("subject", nargs="?", metavar=SUBJECT, help="see above")
    flags.argument("--config", metavar="NAME_OR_FILE", help="an architecture")
    flags.argument("--checkpoint", metavar="DIR", help="a checkpoint, or a run")
    flags.argument("--case", metavar="FILE", help="a recorded case, a .safetensors file")
    flags.layers_from()
    flags.argument("--all", action="store_true", help="the worst of each kind, every tensor")
    flags.argument("--json", action="store_true", help="one JSON object with a row per tensor")
    flags.quiet()
    parsed, config = flags.read(ParityConfig, arguments)
    kind, where = _source(parsed.other)
    parsed.load_layers()
    return _compare(kind, where, config, parsed.other)


def _source(arguments: Any) -> tuple[str, str]:
    """Return the kind of the subject that the command line names, and its name.

    Raises:
        ConfigError: none, or more than one.
    """
    named = {kind: getattr(arguments, kind) for kind in ("config", "checkpoint", "case")}
    subjects = [(kind, where) for kind, where in named.items() if where is not None]
    if arguments.subject is not None:
        path = Path(arguments.subject)
        kind = "checkpoint" if path.is_dir() else "config"
        subjects.append(("case" if path.suffix == ".safetensors" else kind, arguments.subject))
    if len(subjects) != 1:
        what = " and ".join(where for _, where in subjects) or "nothing"
        raise ConfigError(
            f"parity wants one subject and got {what}; give an architecture, a checkpoint's "
            "directory or a recorded case, as in `mlxhog parity --config tiny`"
        )
    return subjects[0]


def _compare(kind: str, where: str, config: ParityConfig, how: Any) -> int:
    # These import NumPy and the native module: wrong flags are answered before.
    from mlxhog.parity.comparison import check_save_path, compare_sides, describe
    from mlxhog.parity.sources import Sizes, check_memory, open_source
    from mlxhog.parity.subject import choose
    from mlxhog.report.views import PartLine

    save = None if config.save is None else Path(config.save).expanduser()
    if save is not None:
        check_save_path(save)
    sizes = Sizes(
        seed=config.seed,
        batch_size=config.batch_size,
        seq_len=config.seq_len,
        steps=config.steps,
    )
    source = open_source(kind, where, sizes, Path(config.out))
    chosen, lacks = choose(config.backends, config.kernels, source.plan)
    check_memory(source, chosen)
    with (
        ended_by_signal(),
        PartLine(sys.stderr, quiet=how.quiet) as tell,
    ):
        comparison = compare_sides(
            source.make(),
            chosen,
            tell,
            perturb=config.perturb,
            seed=config.seed,
            save=save,
        )
    notes = [*comparison.subject.notes, *comparison.unmet, *lacks]
    if comparison.perturbation is not None:
        notes.append(f"perturbed: {comparison.perturbation.name} of {comparison.perturbation.side}")
    _print(comparison, notes, how)
    if comparison.first_bad is not None:
        print(f"disagree: {describe(comparison.first_bad)}", file=sys.stderr)
    elif comparison.missed:
        print(f"nobody noticed that {config.perturb} was perturbed", file=sys.stderr)
    return 0 if comparison.ok else 1


def _print(comparison: "Comparison", notes: list[str], how: Any) -> None:
    if how.json:
        print_json(comparison.to_json() | {"notes": notes})
        return
    if how.quiet:
        return
    from mlxhog.parity.comparison import sections

    parts = sections(comparison, notes, everything=how.all)
    print_sections(parts)
