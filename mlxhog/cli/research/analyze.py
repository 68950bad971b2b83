"""Find out whether lock-free training is sound for a model and a text.

Samples gradients and measures, for every block of the model, the quantities of the Hogwild paper
(docs/parallel-training.md), and staleness and lost updates of a short lock-free run. Then it prints
the theorems at these numbers, and advice; with --verbose every table.

CONFIG_OR_RUN is an architecture (a name or a YAML file), a YAML file with options of train, a run
(its path, its name, or latest), RUN/best or a checkpoint.

Examples:
    research analyze tiny
    research analyze conf.yaml --batch-size 8 --samples 1000 --verbose

Main options:
    samples time backend data workers batch_size seq_len optimizer lr verbose json quiet
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.quantities import format_count
from mlxhog.cli.frame import CommandResult, argument, command, format_value, option, table
from mlxhog.cli.frame.flags import OptionGroup, Plugins, Quiet
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import ConfigSource, resolve
from mlxhog.display.table import Section
from mlxhog.research import AnalyzeConfig

if TYPE_CHECKING:
    from mlxhog.experiments.target import AnalysisTarget

TRAINING = """data tokenizer text_key document_separator strict_data skip_machine_data val loss_on
context seq_len batch_size grad_accumulation recompute kernels compute_dtype workers threads
strategy predict async_after write sampled_softmax blocks optimizer lr clip ngram_lr weight_decay
seed runs_dir"""

OTHERWISE = "; other options of train are read from a YAML file or a run"


@dataclass(frozen=True, kw_only=True)
class SubjectOptions(Plugins, Quiet):
    """Options of a command on a model and its training."""

    subject: str = argument("CONFIG_OR_RUN", "see above")

    def target(self, training: ConfigSource) -> "AnalysisTarget":
        """Return the model and its training."""
        root = Path(resolve(TrainConfig, [training]).runs_dir)
        # It imports NumPy and the native module: wrong flags are reported before.
        from mlxhog.experiments.target import find_target

        return find_target(self.subject, training, root)


@dataclass(frozen=True, kw_only=True)
class _AnalyzeOptions(SubjectOptions):
    verbose: bool = option(False, "all tables, not only answer and advice")


@command(OTHERWISE, training=OptionGroup(TrainConfig, TRAINING, "training", merged=True))
def run(args: _AnalyzeOptions, config: AnalyzeConfig, training: ConfigSource) -> CommandResult:
    target = args.target(training)
    from mlxhog.research.analysis.analyze import analyze

    with args.status() as status:
        payload = analyze(target, config, status)
    return CommandResult(payload, _sections(payload, everything=args.verbose))


def _sections(payload: Mapping[str, Any], *, everything: bool) -> Iterator[str | Section]:
    yield payload["answer"]
    yield table(
        f"{payload['subject']}: {format_count(payload['parameters'])} parameters, "
        f"{payload['backend']}, {payload['samples']} gradients at {payload['at']}",
        [],
        [
            f"an update is one batch of {payload['sequences_per_update']} x {payload['seq_len']} "
            f"tokens; an epoch has {payload['updates_per_epoch']:,}",
            *payload["notes"],
        ],
    )
    advice = []
    for one in payload["advice"]:
        flags = f"  [{one['flags']}]" if one["flags"] else ""
        advice.append(f"- {one['topic']}: {one['recommend']}{flags}")
        advice += [f"    because {one['because']}"] * everything
    if everything:
        yield from _tables(payload)
    else:
        advice.append("--verbose shows the measurements, the theorems' bounds, and reasons")
    yield table("advice", [], advice)


def _tables(payload: Mapping[str, Any]) -> Iterator[Section]:
    names = ("name", "parameters", "mean", "omega", "delta", "rho", "p_conf", "interval")
    yield table(
        "do two updates overlap? elements that updates touch",
        ({name: one[name] for name in names} for one in payload["blocks"]),
        [
            "mean: elements that an update touches; interval: 95 % of p_conf",
            "Delta = rho = p_conf = 1: any two updates met, so nothing about the block is sparse",
        ],
    )
    yield table(
        "do two updates overlap? rows of the embedding",
        [{name: x for name, x in payload["embedding"].items() if name not in ("name", "hottest")}],
    )
    staleness, notes = payload["staleness"], []
    assumed = f"{payload['assumed_staleness']['largest']:g}"
    gradients = payload["gradients"]["stale"]
    stale = ", ".join(f"{one['delay']}: {one['cosine']:.2f}" for one in gradients)
    if staleness is not None:
        about = ("workers", "source", "write", "lost_update_rate", "increments")
        notes = [format_value("", {name: staleness[name] for name in about})]
    yield table(
        "how stale are updates? counted in updates by others",
        [] if staleness is None else [staleness["all"], *staleness["by_worker"]],
        [*notes, f"cosine of a batch's gradient with its own some full steps later: {stale}"],
    )
    rows = defaultdict[str, dict[str, Any]](dict)  # by block
    missing = defaultdict[str, dict[str, None]](dict)  # assumption -> the blocks of which it fails
    for one in payload["bounds"]:
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
