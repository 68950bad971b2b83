"""The Python API `parity`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base import float32
from mlxhog.base.paths import expanded
from mlxhog.config import plugins
from mlxhog.config.components import OPTIMIZERS
from mlxhog.config.options import MAX_SEED, option
from mlxhog.config.sources import of_keywords, resolve
from mlxhog.display.views import TellStep, numbered
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.conformance.compute import ParityReport
    from mlxhog.conformance.sides.foreign import Sides
    from mlxhog.conformance.sides.report import SidesReport

LIMIT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class ParityOptions:
    """Options of the command that `parity` checks, too."""

    backends: str = option(
        "auto", "sides: auto, or some of numpy, torch:cpu, mlx:cpu .., by commas", commas=True
    )
    set: str | None = option(
        None,
        "other values for fields of an architecture, such as hidden_size=64, as in mlxhog train",
        repeats=True,
    )
    seed: int = option(0, "seed of tokens and noise", low=0, high=MAX_SEED)
    batch_size: int = option(2, "sequences", low=1)
    seq_len: int = option(67, "tokens of each", unit="tokens", low=1)
    steps: int = option(3, "steps with each optimizer; 0 for none", low=0, high=1000)
    dtype: str = option(
        "float32", "or bfloat16: gradients in mixed precision", choices=("float32", "bfloat16")
    )


def parity(
    subject: str | Path | None = None,
    *,
    backends: str | Sequence[str] = ParityOptions.backends,
    kernels: str = "all",
    set: Mapping[str, object] | str | None = None,
    seed: int = ParityOptions.seed,
    batch_size: int = ParityOptions.batch_size,
    seq_len: int = ParityOptions.seq_len,
    steps: int = ParityOptions.steps,
    dtype: str = ParityOptions.dtype,
    perturb: str | None = None,
    plugin: str | Path | Sequence[str | Path] | None = None,
    sides: Sides = (),
    limit_s: float = LIMIT_S,
    runs_dir: str | Path = "runs",
    observer: TellStep | None = None,
) -> ParityReport | SidesReport:
    """Compute one model with every backend here, or a cell by other programs; compare all numbers.

        report = parity("7to1-tiny", backends="torch:cpu,mlx:cpu")
        assert report.ok, report.first_bad

        def mine(case):
            q, k, v, log_decay = (case.inputs[name] for name in ("q", "k", "v", "log_decay"))
            return {"h": my_kernel(q, k, v, log_decay)}

        report = parity("gla", sides={"mine": mine})
        assert report.ok, report.first_bad

    A side is called with one test vector after the other, a `Case`: its `inputs` are arrays of
    NumPy by name, float32, `options` the numbers of the equations, `text` the equations. It returns
    arrays by the names of the results, as many as it has: "h", "state.S" after the last position,
    "grad.q", the gradient by an input of the sum of every result times its `case.cotangents`, and
    "steps.h" from one position at a time. What it does not return is not checked, and said
    (`summaries`). It raises NotImplementedError for a case that it does not compute.

    Args:
        subject: an architecture (a name, a YAML file, a line of layers), the directory of a
            checkpoint, or a run, with /best or without. None is "tiny" with an optimizer that a
            plugin adds. With sides: equations of a cell, such as "mlstm", or "small", all of them.
        backends: the sides: "auto", or some of numpy, torch:cpu, mlx:cpu .., a list or by commas.
        kernels: implementations of the operators: all of each backend, or one.
        set: other values for fields of an architecture.
        seed: of tokens and noise.
        batch_size: sequences.
        seq_len: tokens of each sequence.
        steps: optimizer steps with each optimizer; 0 for none.
        dtype: of the gradients; "bfloat16" is mixed precision.
        perturb: a parameter that is changed on one side; then `ok` has to be False.
        plugin: Python files that add layers or optimizers.
        sides: functions by name, called in this process, or "module:function", called in one of
            its own; or texts as of --side: "NAME=module:function", "own" for the kernels of this
            package, "peers" for all packages that are installed, or a peer such as "mlstm_kernels".
            Then `backends`, `kernels`, `set`, `batch_size`, `seq_len`, `steps`, `perturb`,
            `plugin` and `runs_dir` have no effect.
        limit_s: seconds that a side in a process of its own may take for a case.
        runs_dir: the folder that holds the runs.
        observer: called with the name of a side and what is computed of it.

    Returns:
        The report: `ok`, `rows` (one per tensor and pair of sides), `first_bad`, `notes`; with
        sides a `SidesReport`, which also says of every side what was not checked (`summaries`), and
        where two differ, which of them float64 supports (`rulings`).

    Raises:
        ConfigError: a wrong name or number, or a module or function that does not exist.
        CheckpointError: the checkpoint cannot be read.
        EnvironmentLacks: memory, a backend or the package of a side is missing.

    Concurrency: call it in one thread at a time; a side that hangs or dies ends alone.
    """
    asked: dict[str, object] = {"backends": backends, "set": set, "seed": seed, "steps": steps}
    asked |= {"batch_size": batch_size, "seq_len": seq_len}
    if not sides:  # whose cases have tolerances in other types, too
        asked["dtype"] = dtype
    how = resolve(ParityOptions, [of_keywords("parity()", asked)])
    if sides:
        sides = [sides] if isinstance(sides, str) else sides
        return _of_sides(subject, sides, dtype, how.seed, limit_s, observer)
    # These import a framework.
    from mlxhog.conformance.compute import compare_sides
    from mlxhog.conformance.subject import check_memory, choose, open_subject
    from mlxhog.experiments.target import options_of
    from mlxhog.models import families

    plugins.load_all(plugin)
    classes: Any = OPTIMIZERS.known().values()
    own = tuple(choice() for choice in classes if plugins.files_of([choice]))
    where = None if subject is None else str(subject)
    where = where or ("tiny" if own else None)
    if where is None:
        raise ConfigError(
            "parity needs a SUBJECT: an architecture, a checkpoint's directory or a run, for "
            "example `mlxhog parity tiny`"
        )
    kind = "checkpoint" if options_of(where) is None else "config"
    sizes: dict[str, Any] = {"seed": how.seed, "steps": how.steps}
    sizes |= {"shape": (how.batch_size, how.seq_len), "dtype": how.dtype}
    opened = open_subject(kind, where, expanded(runs_dir), how.set, **sizes)
    families.check_length(opened.cfg, how.seq_len)
    chosen, lacks = choose(how.backends, kernels)
    if how.dtype != "float32" and not chosen[0].float64:
        raise ConfigError(
            f"--dtype {how.dtype} needs the side numpy, whose roundings its tolerances are derived "
            "from; add numpy to --backends"
        )
    check_memory(opened, chosen)
    result = compare_sides(
        replace(opened.with_arrays(), plugins=own),
        chosen,
        numbered(observer or (lambda part, step: None), len(chosen)),
        perturb=perturb,
        seed=how.seed,
    )
    stepped = {row.what.split("/")[1] for row in result.rows if row.kind == "step"}
    notes = [*result.subject.notes, *lacks, *filter(None, [float32.user_note()])]
    notes += [f"not compared: {p.name}, which takes no step" for p in own if p.name not in stepped]
    if result.perturbed is not None:
        notes.append("perturbed: " + " of ".join(result.perturbed))
    return replace(result, notes=tuple(notes))


def _of_sides(
    subject: str | Path | None, sides: Sides, dtype: str, seed: int, limit_s: float,
    observer: TellStep | None,
) -> SidesReport:  # fmt: skip
    # They import a framework.
    from mlxhog.conformance.sides import peers
    from mlxhog.conformance.sides.report import compare_cells
    from mlxhog.conformance.vectors.export import chosen, make
    from mlxhog.models.ops.eager.ops_float64 import one_thread

    if subject is None:
        raise ConfigError(
            "a side needs a SUBJECT: equations such as mlstm, or small for all, for example "
            "`mlxhog parity mlstm --side own`"
        )
    equations = chosen(str(subject))
    chosen_sides, notes = peers.choose(sides, [one.name for one in equations])
    with one_thread():
        cases = [make(one, kind, seed) for one in equations for kind in one.own_kinds]
    tell = numbered(observer or (lambda part, step: None), len(chosen_sides))
    return compare_cells(str(subject), chosen_sides, cases, dtype, limit_s, tell, notes)
