"""`mlxhog analyze`: conflicts and staleness of updates, and the theorems about them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.base.paths import expanded
from mlxhog.cli.flags import Part, Written, plugin_flag, quiet_flag
from mlxhog.cli.frame import Report, command, told
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import argument, option, switch
from mlxhog.errors import ConfigError
from mlxhog.report.table import Section
from mlxhog.theory.analysis import AnalyzeConfig

if TYPE_CHECKING:
    from mlxhog.theory.analysis.report import Analysis

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


@dataclass(frozen=True, kw_only=True)
class Words:
    """Flags beside the options of the analysis."""

    subject: str = argument("CONFIG_OR_RUN", "see above")
    plugin: tuple[str, ...] = plugin_flag()
    all: bool = switch("all tables, not only answer and advice")
    json: bool = switch("one JSON object with everything")
    plot: str | None = option(None, "write a figure of every block into this folder", metavar="DIR")
    quiet: bool = quiet_flag()


@command(
    "analyze",
    ABOUT,
    EXAMPLES,
    Words,
    AnalyzeConfig,
    Part(TrainConfig, TRAINING, "training", merged=True),
    main=MAIN,
    otherwise="; other options of train are read from a YAML file or a run",
)
def run(words: Words, config: AnalyzeConfig, training: Written) -> Report:
    """Measure conflicts and staleness, and judge them by the theorems."""
    # The rest imports NumPy and the native module: wrong flags are reported before.
    from mlxhog.theory.analysis.analyze import analyze
    from mlxhog.theory.analysis.report import sections
    from mlxhog.theory.target import find_target

    training.checked()
    folder = None if words.plot is None else _folder(expanded(words.plot))
    root = Path(training.read(TrainConfig).out)
    target = find_target(words.subject, training.values, root)
    with told(quiet=words.quiet) as tell:
        analysis = analyze(target, config, tell)
    paths = [] if folder is None else _draw(analysis, folder)
    plots = {} if folder is None else {"plots": [str(path) for path in paths]}

    def text() -> Iterable[str | Section]:
        drawn = [Section("", notes=list(map(str, paths)))] if paths else []
        return [*sections(analysis, everything=words.all), *drawn]

    return Report(analysis.to_json() | plots, text)


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
