"""`mlxhog analyze`: conflicts and staleness, and the theorems; `mlxhog advise`: which strategy."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from mlxhog.cli.flags import Part, Plugins, Quiet, Written
from mlxhog.cli.frame import Report, command
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import argument, switch
from mlxhog.report.views import StatusLine
from mlxhog.theory.advisor import AdviseConfig
from mlxhog.theory.analysis import AnalyzeConfig

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
    "analyze tiny --all",
)
TRAINING = (
    "data", "tokenizer", "text_key", "strict_data", "skip_machine_data", "val", "loss_on",
    "context", "seq_len", "batch_size", "grad_accumulation", "kernels", "compute_dtype", "workers",
    "threads", "strategy", "predict", "async_after", "write", "sparsify", "error_feedback",
    "sampled_head", "blocks", "optimizer", "lr", "clip", "ngram_lr", "weight_decay", "seed", "out",
)  # fmt: skip
MAIN = (
    "samples", "seconds", "backend", "data", "workers", "batch_size", "seq_len",
    "optimizer", "lr", "sparsify", "all", "json", "quiet",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Words(Plugins, Quiet):
    """Flags beside the options of the analysis."""

    subject: str = argument("CONFIG_OR_RUN", "see above")
    all: bool = switch("all tables, not only answer and advice")


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
    from mlxhog.theory.analysis import report
    from mlxhog.theory.analysis.analyze import analyze
    from mlxhog.theory.target import find_target

    root = Path(training.read(TrainConfig).out)
    target = find_target(words.subject, training.values, root)
    with StatusLine(sys.stderr, quiet=words.quiet) as tell:
        analysis = analyze(target, config, tell)
    return Report(
        report.to_json(analysis), text=lambda: report.sections(analysis, everything=words.all)
    )


# -- which strategy --------------------------------------------------------------------------------

ADVISE_ABOUT = """\
Which strategy for this model on this machine? Measures three short runs and some gradients (half
a minute): the times of gradients and their variation, the cost of a round, the slowdown of workers
by each other, the frequency of conflicting updates. Predicts every strategy but locked, aig, sim
and avg_runs by simulation, applies a table of rules, trains the two best in pairs for --try seconds
each, and decides by held-out loss at equal time. On a machine that is busy with other programs the
answer is only a guess, and says so.
CONFIG_OR_RUN is as for analyze: an architecture, options of train, a run or a checkpoint."""
ADVISE_EXAMPLES = (
    "advise 7to1-tiny",
    "advise tiny --workers torch:cpu*2 --no-try",
    "advise conf.yaml --try 5m --json",
    "advise tiny --slow 1=4 --try 20",
    "advise tiny --reproducible",
)
ADVISE_TRAINING = (
    "data", "tokenizer", "text_key", "strict_data", "skip_machine_data", "val", "loss_on",
    "seq_len", "batch_size", "grad_accumulation", "kernels", "compute_dtype", "workers", "threads",
    "write", "sampled_head", "optimizer", "lr", "clip", "weight_decay", "slow", "seed", "out",
)  # fmt: skip
ADVISE_MAIN = (
    "try_time", "no_try", "measure", "reproducible", "data", "workers", "threads",
    "batch_size", "seq_len", "optimizer", "lr", "slow", "json", "quiet",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AdviseWords(Plugins, Quiet):
    """Flags beside the options of the advice."""

    subject: str = argument("CONFIG_OR_RUN", "see above")
    no_try: bool = switch("predict only")


@command(
    "advise",
    ADVISE_ABOUT,
    ADVISE_EXAMPLES,
    AdviseWords,
    AdviseConfig,
    Part(TrainConfig, ADVISE_TRAINING, "training", merged=True),
    main=ADVISE_MAIN,
    otherwise="; other options of train are read from a YAML file or a run",
)
def advise(words: AdviseWords, config: AdviseConfig, training: Written) -> Report:
    """Measure, predict and try."""
    # The rest imports NumPy and the native module: wrong flags are reported before.
    from mlxhog.theory.advisor.advise import advise_on, sections
    from mlxhog.theory.target import find_target

    root = Path(training.read(TrainConfig).out)
    target = find_target(words.subject, training.values, root)
    with StatusLine(sys.stderr, quiet=words.quiet) as tell:
        advice = advise_on(target, config, tries=not words.no_try, tell=tell)
    return Report(advice, text=lambda: sections(advice))
