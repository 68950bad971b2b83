"""`mlxhog advise`: which strategy for this model on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

from mlxhog.cli.flags import Flags
from mlxhog.cli.parity import ended_by_signal
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.config.sources import resolve
from mlxhog.errors import ConfigError
from mlxhog.report.views import may_redraw

SUBJECT = "CONFIG_OR_RUN"
ABOUT = """\
Which strategy for this model on this machine? Measures three short runs and some gradients (half
a minute): times of gradients and how they vary, what a round costs, how workers slow each other,
how often updates meet. Predicts every strategy by simulation, applies a table of rules, trains the
two best in turns for --try seconds each, and decides by held-out loss at equal time. What it
measured, predicted and found is remembered: --history says how often a prediction came out.
CONFIG_OR_RUN is as for analyze: an architecture, options of train, a run or a checkpoint."""
EXAMPLES = (
    "advise 7to1-tiny",
    "advise tiny --workers torch:cpu*2 --no-try",
    "advise conf.yaml --try 5m --json",
    "advise tiny --slow 1=4 --try 20",
    "advise tiny --reproducible",
    "advise --history",
)
TRAINING = (
    "data", "tokenizer", "text_key", "val", "seq_len", "batch_size", "grad_accumulation",
    "kernels", "compute_dtype", "workers", "threads", "write", "sampled_head", "optimizer", "lr",
    "clip", "weight_decay", "slow", "seed", "out",
)  # fmt: skip

MAIN = (
    "try_time", "no_try", "measure", "reproducible", "history", "data", "workers", "threads",
    "batch_size", "seq_len", "optimizer", "lr", "slow", "json", "quiet",
)  # fmt: skip


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    from mlxhog.theory.advisor import AdviseConfig

    flags = Flags("advise", ABOUT, EXAMPLES, (SUBJECT,), MAIN)
    flags.argument("subject", metavar=SUBJECT, nargs="?", help="see above")
    flags.argument("--json", action="store_true", help="one JSON object with everything")
    flags.argument("--no-try", action="store_true", help="predict only")
    flags.argument("--history", action="store_true", help="earlier advice and how it came out")
    flags.argument(
        "--quiet", action="store_true", help="nothing but errors, and the JSON of --json"
    )
    flags.options(AdviseConfig)
    flags.options(TrainConfig, TRAINING, group="training")
    flags.otherwise("; other options of train are read from a YAML file or a run")
    parsed = flags.parse(arguments)
    own = [option for option in parsed.given if option.name in (*options(AdviseConfig), "try")]
    config = resolve(AdviseConfig, [own], parsed.problems)
    if parsed.other.history:
        return _show_history(as_json=parsed.other.json)
    if parsed.other.subject is None:
        raise ConfigError(f"the following arguments are required: {SUBJECT} (or --history)")
    training = [option for option in parsed.given if option not in own]
    # The rest imports NumPy and the native module: wrong flags are answered before.
    from mlxhog.report.views import PartLine
    from mlxhog.theory.advisor.advise import advise_on
    from mlxhog.theory.analysis.target import find_target

    checked = resolve(TrainConfig, [training])
    named = find_target(parsed.other.subject, training, Path(checked.out))
    with (
        ended_by_signal(),
        PartLine(sys.stderr, quiet=parsed.other.quiet) as tell,
    ):
        advice = advise_on(named, config, tries=not parsed.other.no_try, tell=tell)
    if parsed.other.json:
        from mlxhog.files import plain_json

        print(plain_json.dumps(advice.to_json()).decode())
        return 0
    if not parsed.other.quiet:
        from mlxhog.report.table import show

        show(advice.sections(), sys.stdout, plain=not may_redraw(sys.stdout))
    return 0


def _show_history(*, as_json: bool) -> int:
    from mlxhog.report.table import show
    from mlxhog.theory.advisor import history

    entries = history.read()
    if as_json:
        from mlxhog.files import plain_json

        tried, right = history.score(entries)
        print(plain_json.dumps({"tried": tried, "as_predicted": right, "advice": entries}).decode())
        return 0
    show(history.sections(entries), sys.stdout, plain=not may_redraw(sys.stdout))
    return 0
