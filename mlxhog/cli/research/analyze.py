"""`mlxhog research analyze` (overlap, staleness, theorems) and `advise` (which strategy)."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.quantities import format_count, format_duration
from mlxhog.cli.flags import OptionGroup, Plugins, Quiet
from mlxhog.cli.frame import Report, command, spelt_value, table
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import argument, switch
from mlxhog.config.sources import ConfigSource, resolve
from mlxhog.display.streams import wrapped
from mlxhog.display.table import Section
from mlxhog.research import AdviseConfig, AnalyzeConfig

if TYPE_CHECKING:
    from mlxhog.experiments.target import AnalysisTarget

TRAINING = """data tokenizer text_key document_separator strict_data skip_machine_data val loss_on
context seq_len batch_size grad_accumulation kernels compute_dtype workers threads strategy predict
async_after write sampled_softmax blocks optimizer lr clip ngram_lr weight_decay seed runs_dir"""
ADVISE_TRAINING = """data tokenizer text_key document_separator strict_data skip_machine_data val
loss_on seq_len batch_size grad_accumulation kernels compute_dtype workers threads write
sampled_softmax optimizer lr clip weight_decay inject_stragglers seed runs_dir"""
OTHERWISE = "; other options of train are read from a YAML file or a run"


@dataclass(frozen=True, kw_only=True)
class _Subject(Plugins, Quiet):
    subject: str = argument("CONFIG_OR_RUN", "see above")

    def target(self, training: ConfigSource) -> "AnalysisTarget":
        """Return the model and its training."""
        root = Path(resolve(TrainConfig, [training]).runs_dir)
        # It imports NumPy and the native module: wrong flags are reported before.
        from mlxhog.experiments.target import find_target

        return find_target(self.subject, training, root)


@dataclass(frozen=True, kw_only=True)
class _AnalyzeOptions(_Subject):
    verbose: bool = switch("all tables, not only answer and advice")


@command(
    "research analyze",
    OTHERWISE,
    training=OptionGroup(TrainConfig, TRAINING, "training", merged=True),
)
def run(words: _AnalyzeOptions, config: AnalyzeConfig, training: ConfigSource) -> Report:
    """Is lock-free training sound for this model and this text?

    Samples gradients and measures, for every block of the model, the quantities of the Hogwild
    paper (docs/simulator.md), and staleness and lost updates of a short lock-free run. Then it
    prints the theorems at these numbers, and advice; with --verbose every table.

    CONFIG_OR_RUN is an architecture (a name or a YAML file), a YAML file with options of train, a
    run (its path, its name, or latest), RUN/best or a checkpoint.

    Examples:
        research analyze tiny
        research analyze conf.yaml --batch-size 8 --samples 1000 --verbose

    Main options:
        samples seconds backend data workers batch_size seq_len optimizer lr verbose json quiet
    """
    target = words.target(training)
    from mlxhog.research.analysis.analyze import analyze

    with words.status() as tell:
        facts = analyze(target, config, tell)
    return Report(facts, _sections(facts, everything=words.verbose))


def _sections(facts: Mapping[str, Any], *, everything: bool) -> Iterator[str | Section]:
    yield facts["answer"]
    yield table(
        f"{facts['subject']}: {format_count(facts['parameters'])} parameters, {facts['backend']}, "
        f"{facts['samples']} gradients at {facts['at']}",
        [],
        [
            f"an update is one batch of {facts['sequences_per_update']} x {facts['seq_len']} "
            f"tokens; an epoch has {facts['updates_per_epoch']:,}",
            *facts["notes"],
        ],
    )
    advice = []
    for one in facts["advice"]:
        flags = f"  [{one['flags']}]" if one["flags"] else ""
        advice.append(f"- {one['topic']}: {one['recommend']}{flags}")
        advice += [f"    because {one['because']}"] * everything
    if everything:
        yield from _tables(facts)
    else:
        advice.append("--verbose shows the measurements, the theorems' bounds, and reasons")
    yield table("advice", [], advice)


def _tables(facts: Mapping[str, Any]) -> Iterator[Section]:
    names = ("name", "parameters", "mean", "omega", "delta", "rho", "p_conf", "interval")
    yield table(
        "do two updates overlap? elements that updates touch",
        ({name: one[name] for name in names} for one in facts["blocks"]),
        [
            "mean: elements that an update touches; interval: 95 % of p_conf",
            "Delta = rho = p_conf = 1: any two updates met, so nothing about the block is sparse",
        ],
    )
    yield table(
        "do two updates overlap? rows of the embedding",
        [{name: x for name, x in facts["embedding"].items() if name not in ("name", "hottest")}],
    )
    staleness, assumed, notes = facts["staleness"], f"{facts['assumed_staleness']['largest']:g}", []
    stale = ", ".join(f"{one['delay']}: {one['cosine']:.2f}" for one in facts["gradients"]["stale"])
    if staleness is not None:
        about = ("workers", "source", "write", "lost_update_rate", "increments")
        notes = [spelt_value("", {name: staleness[name] for name in about})]
    yield table(
        "how stale are updates? counted in updates by others",
        [] if staleness is None else [staleness["all"], *staleness["by_worker"]],
        [*notes, f"cosine of a batch's gradient with its own some full steps later: {stale}"],
    )
    rows = defaultdict[str, dict[str, Any]](dict)  # by block
    missing = defaultdict[str, dict[str, None]](dict)  # assumption -> the blocks of which it fails
    for one in facts["bounds"]:
        row = rows[one["block"]]
        row["block"] = one["block"]
        row[one["name"]] = one["values"].get("penalty", one["values"].get("largest_tau"))
        for each in one["assumptions"]:
            if each["holds"] is not True:
                fails = "is unknown" if each["holds"] is None else f"does not hold, {each['why']}"
                missing[f"{each['needs']}: {fails}"][one["block"]] = None
    yield table(
        "bounds of the theorems",
        rows.values(),
        [
            f"bounds are for a staleness of {assumed}",
            "proposition 4.1: updates over those of serial SGD; it orders problems. The loss of a "
            "neural network is not strongly convex, so there is no bound; other columns: the "
            "largest staleness of that theorem",
            *(f"{text} (in {', '.join(blocks)})" for text, blocks in missing.items()),
        ],
    )


@dataclass(frozen=True, kw_only=True)
class _AdviseWords(_Subject):
    no_try: bool = switch("predict only")


@command(
    "research advise",
    OTHERWISE,
    training=OptionGroup(TrainConfig, ADVISE_TRAINING, "training", merged=True),
)
def advise(words: _AdviseWords, config: AdviseConfig, training: ConfigSource) -> Report:
    """Which strategy for this model on this machine?

    Measures three short runs and some gradients (half a minute), predicts strategies by simulation,
    applies a table of rules, trains the two best in pairs for a minute each, and decides by
    validation loss at equal time. On a machine that is busy with other programs the answer is only
    a guess, and says so.

    CONFIG_OR_RUN is as for analyze: an architecture, options of train, a run or a checkpoint.

    Examples:
        research advise tiny --workers torch:cpu*2 --no-try
        research advise conf.yaml --json

    Main options:
        no_try measure reproducible data workers threads batch_size seq_len optimizer lr
        inject_stragglers json quiet
    """
    target = words.target(training)
    from mlxhog.research.advise import advise_on

    with words.status() as tell:
        advice = advise_on(target, config, tries=not words.no_try, tell=tell)
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
        "rounds cost": f"{profile['gain']:.1%}: the slowest gradient takes "
        f"{format_duration(profile['slowest_s'])}, barrier and average "
        f"{format_duration(profile['sync_s'])}",
        "together": f"{profile['scaling']:.2f} times the gradients of one worker",
        "p_conf": profile["p_conf"],
        "density": f"{profile['density']:.0%} of the elements are in an update",
    }
    about = "predicted; samples to a loss: over those of one worker; time to it: over that of sync"
    text = [*wrapped(advice["answer"]), why, about, expected, "measured", workers, measured]
    return Report(advice, text)
