"""`mlxhog analyze`: conflicts and staleness of updates, and the theorems about them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.base.paths import expanded
from mlxhog.cli.flags import Flags
from mlxhog.cli.output import ended_by_signal, print_json, print_sections
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import resolve
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.theory.analysis.report import Analysis

SUBJECT = "CONFIG_OR_RUN"
ABOUT = """\
Is lock-free training sound for this model and this text? Samples gradients and measures, for every
block of the model, the quantities of the Hogwild paper: the elements that an update touches
(Omega), the probability that two updates meet (p_conf), the share of updates at the busiest element
(Delta) and the share that one update meets (rho). It counts the embedding rows of real batches, and
measures staleness and lost updates of a short lock-free run. Then it prints the bounds of the
theorems, their assumptions, and advice; with --all every table.
CONFIG_OR_RUN is an architecture (a name or a YAML file), a YAML file with options of train, a run
(its path, its name, or latest), RUN/best or a checkpoint."""
EXAMPLES = (
    "analyze tiny",
    "analyze models/7to1-tiny.yaml --json",
    "analyze conf.yaml --batch-size 8 --samples 1000",
    "analyze latest --plot figures",
    "analyze tiny --all --parts",
)
TRAINING = (
    "data", "tokenizer", "text_key", "strict_data", "skip_machine_data", "val", "loss_on",
    "context", "seq_len", "batch_size", "grad_accumulation", "kernels", "compute_dtype", "workers",
    "threads", "strategy", "predict", "async_after", "write", "sparsify", "error_feedback",
    "sampled_head", "blocks", "optimizer", "lr", "clip", "ngram_lr", "weight_decay", "seed", "out",
)  # fmt: skip

MAIN = (
    "samples", "seconds", "parts", "backend", "data", "workers", "batch_size", "seq_len",
    "optimizer", "lr", "sparsify", "plot", "all", "json", "quiet",
)  # fmt: skip


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    from mlxhog.theory.analysis import AnalyzeConfig

    flags = Flags("analyze", ABOUT, EXAMPLES, (SUBJECT,), MAIN)
    flags.argument("subject", metavar=SUBJECT, help="see above")
    flags.plugin()
    flags.argument("--all", action="store_true", help="all tables, not only answer and advice")
    flags.argument("--json", action="store_true", help="one JSON object with everything")
    flags.argument("--plot", metavar="DIR", help="write a figure of every block into this folder")
    flags.quiet()
    flags.options(AnalyzeConfig)
    flags.options(TrainConfig, TRAINING, group="training")
    flags.otherwise("; other options of train are read from a YAML file or a run")
    parsed = flags.parse(arguments)
    config, training = parsed.split(AnalyzeConfig)
    # The rest imports NumPy and the native module: wrong flags are reported before.
    from mlxhog.report.views import PartLine
    from mlxhog.theory.analysis.analyze import analyze
    from mlxhog.theory.target import find_target

    folder = None if parsed.other.plot is None else _folder(expanded(parsed.other.plot))
    checked = resolve(TrainConfig, [training])
    target = find_target(parsed.other.subject, training, Path(checked.out))
    with (
        ended_by_signal(),
        PartLine(sys.stderr, quiet=parsed.other.quiet) as tell,
    ):
        analysis = analyze(target, config, tell)
    paths = [] if folder is None else _draw(analysis, folder)
    if parsed.other.json:
        plots = {} if folder is None else {"plots": [str(path) for path in paths]}
        print_json(analysis.to_json() | plots)
        return 0
    if parsed.other.quiet:
        return 0
    from mlxhog.theory.analysis.report import sections

    print_sections(sections(analysis, everything=parsed.other.all))
    for path in paths:
        print(path)
    return 0


def _folder(path: Path) -> Path:
    """Create the folder of the plots, before the measurements.

    Raises:
        EnvironmentLacks: matplotlib is not installed.
        ConfigError: it cannot be created.
    """
    from mlxhog.report import charts

    charts.require("the tables need nothing: leave out --plot")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot create {path}: {error.strerror}; choose another --plot"
        ) from error
    return path


def _draw(analysis: Analysis, folder: Path) -> list[Path]:
    from mlxhog.base.durable import replace_file
    from mlxhog.theory.analysis.report import plots

    paths = []
    for name, png in plots(analysis):
        paths.append(folder / f"{name}.png")
        replace_file(paths[-1], png)
    return paths
