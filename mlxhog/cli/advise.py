"""`mlxhog advise`: the best strategy for a model on this machine."""

from dataclasses import dataclass
from pathlib import Path

from mlxhog.cli.flags import Part, Written, plugin_flag, quiet_flag
from mlxhog.cli.frame import Report, command, told
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import argument, switch
from mlxhog.theory.advisor import AdviseConfig

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


@dataclass(frozen=True, kw_only=True)
class Words:
    """Flags beside the options of the advice."""

    subject: str = argument("CONFIG_OR_RUN", "see above")
    plugin: tuple[str, ...] = plugin_flag()
    json: bool = switch("one JSON object with everything")
    no_try: bool = switch("predict only")
    quiet: bool = quiet_flag()


@command(
    "advise",
    ABOUT,
    EXAMPLES,
    Words,
    AdviseConfig,
    Part(TrainConfig, TRAINING, "training", merged=True),
    main=MAIN,
    otherwise="; other options of train are read from a YAML file or a run",
)
def run(words: Words, config: AdviseConfig, training: Written) -> Report:
    """Measure, predict and try."""
    # The rest imports NumPy and the native module: wrong flags are reported before.
    from mlxhog.theory.advisor.advise import advise_on
    from mlxhog.theory.target import find_target

    root = Path(training.read(TrainConfig).out)
    target = find_target(words.subject, training.values, root)
    with told(quiet=words.quiet) as tell:
        advice = advise_on(target, config, tries=not words.no_try, tell=tell)
    return Report(advice.to_json(), advice.sections)
