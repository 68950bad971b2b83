"""`mlxhog advise`: the best strategy for a model on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

from mlxhog.cli.flags import Flags
from mlxhog.cli.output import ended_by_signal, print_json, print_sections
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import resolve

SUBJECT = "CONFIG_OR_RUN"
ABOUT = """\
Which strategy for this model on this machine? Measures three short runs and some gradients (half
a minute): the times of gradients and their variation, the cost of a round, the slowdown of workers
by each other, the frequency of conflicting updates. Predicts every strategy but locked, aig, sim
and avg_runs by simulation, applies a table of rules, trains the two best in pairs for --try seconds
each, and decides by held-out loss at equal time. On a machine that is busy with other programs the
answer is only a guess, and says so.
CONFIG_OR_RUN is as for analyze: an architecture, options of train, a run or a checkpoint."""
EXAMPLES = (
    "advise 7to1-tiny",
    "advise tiny --workers torch:cpu*2 --no-try",
    "advise conf.yaml --try 5m --json",
    "advise tiny --slow 1=4 --try 20",
    "advise tiny --reproducible",
)
TRAINING = (
    "data", "tokenizer", "text_key", "strict_data", "skip_machine_data", "val", "loss_on",
    "seq_len", "batch_size", "grad_accumulation", "kernels", "compute_dtype", "workers", "threads",
    "write", "sampled_head", "optimizer", "lr", "clip", "weight_decay", "slow", "seed", "out",
)  # fmt: skip

MAIN = (
    "try_time", "no_try", "measure", "reproducible", "data", "workers", "threads",
    "batch_size", "seq_len", "optimizer", "lr", "slow", "json", "quiet",
)  # fmt: skip


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    from mlxhog.theory.advisor import AdviseConfig

    flags = Flags("advise", ABOUT, EXAMPLES, (SUBJECT,), MAIN)
    flags.argument("subject", metavar=SUBJECT, help="see above")
    flags.plugin()
    flags.argument("--json", action="store_true", help="one JSON object with everything")
    flags.argument("--no-try", action="store_true", help="predict only")
    flags.quiet()
    flags.options(AdviseConfig)
    flags.options(TrainConfig, TRAINING, group="training")
    flags.otherwise("; other options of train are read from a YAML file or a run")
    parsed = flags.parse(arguments)
    config, training = parsed.split(AdviseConfig)
    # The rest imports NumPy and the native module: wrong flags are reported before.
    from mlxhog.report.views import PartLine
    from mlxhog.theory.advisor.advise import advise_on
    from mlxhog.theory.target import find_target

    checked = resolve(TrainConfig, [training])
    target = find_target(parsed.other.subject, training, Path(checked.out))
    with (
        ended_by_signal(),
        PartLine(sys.stderr, quiet=parsed.other.quiet) as tell,
    ):
        advice = advise_on(target, config, tries=not parsed.other.no_try, tell=tell)
    if parsed.other.json:
        print_json(advice.to_json())
        return 0
    if not parsed.other.quiet:
        print_sections(advice.sections())
    return 0
