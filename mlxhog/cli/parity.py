"""`mlxhog parity`: do all backends compute the same?"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.cli.flags import Flags
from mlxhog.config_sources import resolve
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.options import option

if TYPE_CHECKING:
    from mlxhog.parity.compare import Row
    from mlxhog.parity.run import Spoilt
    from mlxhog.parity.sides import Side
    from mlxhog.parity.subject import Subject

SUBJECT = "SUBJECT"
ABOUT = """\
Compute one thing with every backend here, and compare every number: loss, logits, hidden states,
gradients, states, parameters after some steps of each optimizer, one token at a time against the
whole sequence. SUBJECT is an architecture (a name or a YAML file), a checkpoint's directory, or a
recorded case (NAME.safetensors with NAME.json beside it).
Exit code 1 if anything disagrees; the first tensor that does is named on stderr."""
EXAMPLES = (
    "parity --config tiny",
    "parity --checkpoint runs/latest",
    "parity --case golden/xlstm/hf_a.safetensors --json",
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
    steps: int = option(3, "steps of each optimizer; 0 for none", low=0, high=1000)
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
    flags.argument("--all", action="store_true", help="a line for every tensor, not the worst")
    flags.argument("--json", action="store_true", help="one JSON object with a row per tensor")
    flags.argument("--quiet", action="store_true", help="plain lines instead of a live one")
    flags.options(ParityConfig)
    parsed = flags.parse(arguments)
    config = resolve(ParityConfig, [parsed.given], parsed.problems)
    kind, where = _source(parsed.other)
    return _compare(_subject(kind, where, config), config, parsed.other)


def _source(given: Any) -> tuple[str, str]:
    """Return which kind of subject was given, and its name.

    Raises:
        ConfigError: none, or more than one.
    """
    named = {kind: getattr(given, kind) for kind in ("config", "checkpoint", "case")}
    found = [(kind, where) for kind, where in named.items() if where is not None]
    if given.subject is not None:
        path = Path(given.subject)
        kind = "checkpoint" if path.is_dir() else "config"
        found.append(("case" if path.suffix == ".safetensors" else kind, given.subject))
    if len(found) != 1:
        what = " and ".join(where for _, where in found) or "nothing"
        raise ConfigError(
            f"parity wants one subject and got {what}; give an architecture, a checkpoint's "
            "directory or a recorded case, as in `mlxhog parity --config tiny`"
        )
    return found[0]


def _subject(kind: str, where: str, config: ParityConfig) -> "Subject":
    """Read or make the subject; these modules import NumPy, so wrong flags are answered before."""
    from mlxhog.models.registry import load_architecture
    from mlxhog.parity import architectures, cases, subject

    sizes = {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "seq_len": config.seq_len,
        "steps": config.steps,
    }
    if kind == "case":
        made = cases.read(Path(where), steps=config.steps)
    elif kind == "config":
        made = architectures.of_config(where, load_architecture(where), **sizes)
    else:
        from mlxhog import checkpoint

        made = architectures.of_checkpoint(checkpoint.locate(where, Path(config.out)), **sizes)
    subject.check(made)
    return made


def _compare(subject: "Subject", config: ParityConfig, how: Any) -> int:
    from mlxhog.doctor.progress import Progress
    from mlxhog.parity import judge, needs, report, run, sides

    begin = time.perf_counter()
    chosen, notes = sides.choose(config.backends, config.kernels, subject.plan)
    notes = [*subject.notes, *notes]
    if len(chosen) + len(subject.recorded) < 2:
        raise ConfigError(
            f"--backends {config.backends}: {chosen[0].name} alone has nothing to be compared "
            "with; name two, or a recorded case"
        )
    needs.check(subject, chosen)
    spoilt = _spoilt(subject, chosen, config)
    if spoilt is not None:
        notes.append(f"perturbed: {spoilt.name} of {spoilt.side}")
    with (
        Progress(sys.stderr, live=not how.quiet and _live(sys.stderr)) as tell,
        run.computed(subject, chosen, spoilt, tell) as computed,
    ):
        rows = list(judge.rows(subject, chosen, computed))
        bad = judge.first_bad(rows, computed)
        if config.save is not None:
            _save(Path(config.save), computed, subject)
    record = {
        "ok": bad is None,
        "subject": subject.title,
        "backends": [side.name for side in chosen],
        "perturbed": None if spoilt is None else {"name": spoilt.name, "backend": spoilt.side},
        "notes": notes,
        "seconds": round(time.perf_counter() - begin, 3),
        "rows": [row.to_json() for row in rows],
    }
    _print(record, rows, notes, how)
    if bad is not None:
        print(f"disagree: {report.describe(bad)}", file=sys.stderr)
    return 0 if bad is None else 1


def _spoilt(subject: "Subject", sides: "list[Side]", config: ParityConfig) -> "Spoilt | None":
    """Return what `--perturb` spoils: an input of the first side that is not the reference."""
    from mlxhog.parity.run import Spoilt
    from mlxhog.parity.subject import perturbed

    if config.perturb is None:
        return None
    value = perturbed(subject.inputs, config.perturb, config.seed)
    return Spoilt(sides[min(1, len(sides) - 1)].name, config.perturb, value)


def _save(path: Path, computed: Any, subject: "Subject") -> None:
    from mlxhog.parity import report

    try:
        report.save(path, computed, subject.recorded)
    except OSError as error:
        raise EnvironmentLacks(
            f"--save {path}: {error.strerror or error}; choose another place"
        ) from error


def _print(record: dict[str, Any], rows: "list[Row]", notes: list[str], how: Any) -> None:
    if how.json:
        from mlxhog import plain_json

        print(plain_json.dumps(record).decode())
        return
    from mlxhog.doctor.table import show
    from mlxhog.parity import report

    parts = report.sections(record["subject"], rows, notes, everything=how.all)
    show(parts, sys.stdout, plain=how.quiet or not _live(sys.stdout))


def _live(stream: Any) -> bool:
    """Whether a stream is a terminal that wants color."""
    return bool(
        stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )
