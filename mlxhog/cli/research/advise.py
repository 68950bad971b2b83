"""Find the best strategy for a model on this machine: measured, predicted, tried.

Measures three short runs and some gradients (half a minute), predicts strategies by simulation,
applies a table of rules, trains the two best in pairs for a minute each, and decides by validation
loss at equal time. On a machine that is busy with other programs the answer is only a guess, and
says so.

CONFIG_OR_RUN is as for analyze: an architecture, options of train, a run or a checkpoint.

Examples:
    research advise tiny --workers 'torch:cpu*2' --no-trial
    research advise conf.yaml --json

Main options:
    trial measure reproducible data workers threads batch_size seq_len optimizer lr
    inject_stragglers json quiet
"""

from dataclasses import dataclass

from mlxhog.base.quantities import format_duration
from mlxhog.cli.frame import CommandResult, OptionGroup, command, option
from mlxhog.cli.research.analyze import OTHERWISE, SubjectOptions
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import ConfigSource
from mlxhog.display.streams import wrapped
from mlxhog.research import AdviseConfig

ADVISE_TRAINING = """data tokenizer text_key document_separator strict_data skip_machine_data val
loss_on seq_len batch_size grad_accumulation recompute kernels dtype workers threads write
sampled_softmax optimizer lr clip weight_decay inject_stragglers seed runs_dir"""


@dataclass(frozen=True, kw_only=True)
class _AdviseOptions(SubjectOptions):
    trial: bool = option(True, "train the two best strategies in pairs, not only predict")


@command(OTHERWISE, training=OptionGroup(TrainConfig, ADVISE_TRAINING, "training", merged=True))
def run(args: _AdviseOptions, config: AdviseConfig, training: ConfigSource) -> CommandResult:
    target = args.target(training)
    from mlxhog.research.advise import advise_on

    with args.status() as status:
        advice = advise_on(target, config, tries=args.trial, tell=status)
    profile, trial = advice["profile"], advice["trial"]
    why: dict[str, object] = {
        "why": f"{advice['rule']}: {advice['because']}",
        "what would change it": advice["otherwise"],
    }
    if trial is not None:
        scores = zip(trial["names"], trial["bits_per_byte"], strict=True)
        why["tried in pairs"] = [
            *(f"{name} {bits:.3f} bits per byte" for name, bits in scores),
            f"difference {trial['difference']:+.3f} ({trial['low']:+.3f} to {trial['high']:+.3f})",
            *[f"a tie, so {trial['winner']}"] * trial["tie"],
        ]
    expected = [
        {name: x for name, x in one.items() if name != "flags"} for one in advice["expected"]
    ]
    workers = [{k: one[k] for k in ("name", "mean_s", "cv", "p99_s")} for one in profile["workers"]]
    measured = {
        "synchronous steps cost": f"{profile['gain']:.1%}: the slowest gradient takes "
        f"{format_duration(profile['slowest_s'])}, barrier and average "
        f"{format_duration(profile['sync_s'])}",
        "together": f"{profile['scaling']:.2f} times the gradients of one worker",
        "p_conf": profile["p_conf"],
        "density": f"{profile['density']:.0%} of the elements are in an update",
    }
    about = "predicted; samples to a loss: over those of one worker; time to it: over that of sync"
    text = [*wrapped(advice["answer"]), why, about, expected, "measured", workers, measured]
    return CommandResult(advice, text)
