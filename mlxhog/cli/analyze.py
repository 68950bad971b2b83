"""`mlxhog analyze`: conflicts and staleness, and the theorems; `mlxhog advise`: which strategy."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.quantities import format_count, format_duration, format_share
from mlxhog.cli.flags import Part, Plugins, Quiet, Written
from mlxhog.cli.frame import Report, command, table
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import argument, switch
from mlxhog.report.table import Section
from mlxhog.theory import AdviseConfig, AnalyzeConfig

if TYPE_CHECKING:
    from mlxhog.theory.target import Target

TRAINING = """data tokenizer text_key strict_data skip_machine_data val loss_on context seq_len
batch_size grad_accumulation kernels compute_dtype workers threads strategy predict async_after
write sparsify error_feedback sampled_head blocks optimizer lr clip ngram_lr weight_decay seed
out"""
ADVISE_TRAINING = """data tokenizer text_key strict_data skip_machine_data val loss_on seq_len
batch_size grad_accumulation kernels compute_dtype workers threads write sampled_head optimizer lr
clip weight_decay slow seed out"""
OTHERWISE = "; other options of train are read from a YAML file or a run"


@dataclass(frozen=True, kw_only=True)
class _Subject(Plugins, Quiet):
    subject: str = argument("CONFIG_OR_RUN", "see above")

    def target(self, training: Written) -> "Target":
        """Return the model and its training."""
        root = Path(training.read(TrainConfig).out)
        # It imports NumPy and the native module: wrong flags are reported before.
        from mlxhog.theory.target import find_target

        return find_target(self.subject, training.values, root)


@dataclass(frozen=True, kw_only=True)
class _Words(_Subject):
    all: bool = switch("all tables, not only answer and advice")


@command("analyze", Part(TrainConfig, TRAINING, "training"), otherwise=OTHERWISE)
def run(words: _Words, config: AnalyzeConfig, training: Written) -> Report:
    """Is lock-free training sound for this model and this text?

    Samples gradients and measures, for every block of the model, the quantities of the Hogwild
    paper: the elements that an update touches (Omega), the probability that two updates meet
    (p_conf), the share of updates at the busiest element (Delta) and the share that one update
    meets (rho). It counts the embedding rows of real batches, and measures staleness and lost
    updates of a short lock-free run. Then it prints the bounds of the theorems, their assumptions,
    and advice; with --all every table.

    CONFIG_OR_RUN is an architecture (a name or a YAML file), a YAML file with options of train, a
    run (its path, its name, or latest), RUN/best or a checkpoint.

    Examples:
        analyze tiny
        analyze models/7to1-tiny.yaml --json
        analyze conf.yaml --batch-size 8 --samples 1000 --all

    Main options:
        samples seconds backend data workers batch_size seq_len optimizer lr sparsify all json quiet
    """
    target = words.target(training)
    from mlxhog.theory.analysis.analyze import analyze

    with words.status() as tell:
        facts = analyze(target, config, tell)
    return Report(facts, _sections(facts, everything=words.all))


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
        advice.append("--all shows the measurements, the theorems' bounds, and reasons")
    yield table("advice", [], advice)


def _tables(facts: Mapping[str, Any]) -> Iterator[Section]:
    names = ("parameters", "omega", "delta", "rho", "p_conf", "interval", "untouched")
    yield table(
        "do two updates meet? elements that updates touch",
        (
            {"block": one["name"], "touched": format_share(one["mean"] / one["parameters"])}
            | {name: one[name] for name in names}
            for one in facts["blocks"]
        ),
        [
            "touched: of the elements, by an update on average; interval: 95 % of p_conf; "
            "untouched: by no sampled update",
            "Delta = rho = p_conf = 1: any two updates met, so nothing about the block is sparse",
        ],
    )
    embedding = facts["embedding"]
    hottest = (f"{one['text']} {one['share']:.0%}" for one in embedding["hottest"])
    yield table(
        "do two updates meet? rows of the embedding",
        [{name: x for name, x in embedding.items() if name not in ("name", "hottest")}],
        [f"hottest rows of the embedding, and their share of the batches: {', '.join(hottest)}"],
    )
    staleness, lag = facts["staleness"], f"{facts['lag']['largest']:g}"
    ageing = ", ".join(f"{one['lag']}: {one['cosine']:.2f}" for one in facts["gradients"]["ageing"])
    notes, workers = [f"bounds are for a lag of {lag}"], []
    if staleness is not None:
        workers = [staleness["all"], *staleness["by_worker"]]
        lost, of = staleness["lost_update_rate"], f"{staleness['increments']:,} counted increments"
        notes.append(
            f"of {staleness['workers']} workers ({staleness['source']}, write "
            f"{staleness['write']}); lost updates: "
            + ("not measured" if lost is None else f"{lost:.3g} of {of}")
        )
    notes.append(f"cosine of a batch's gradient with its own some full steps later: {ageing}")
    yield table("how late are updates? counted in updates by others", workers, notes)
    yield _theorems(facts["bounds"], lag)


def _theorems(bounds: Iterable[Mapping[str, Any]], lag: str) -> Section:
    rows, missing = defaultdict[str, dict[str, Any]](dict), defaultdict[str, list[str]](list)
    for one in bounds:
        block, values, row = one["block"], one["values"], rows[one["block"]]
        row["block"] = block
        if one["name"] != "proposition 4.1":
            row[one["name"]] = values["largest_tau"]
            continue
        row[f"penalty at {lag}"] = values["penalty"]
        for each in one["assumptions"]:
            if each["holds"] is not True:
                fails = "is unknown" if each["holds"] is None else f"does not hold, {each['why']}"
                missing[f"{each['needs']}: {fails}"].append(block)
    notes = [
        "penalty: updates over those of serial SGD, by Proposition 4.1; it orders problems. The "
        "loss of a neural network is not strongly convex, so there is no bound; other columns: the "
        "largest lag of that theorem",
    ]
    for text, blocks in missing.items():
        notes.append(text + f" (in {', '.join(blocks)})" * (len(blocks) < len(rows)))
    return table("bounds of the theorems", rows.values(), notes)


@dataclass(frozen=True, kw_only=True)
class _AdviseWords(_Subject):
    no_try: bool = switch("predict only")


@command("advise", Part(TrainConfig, ADVISE_TRAINING, "training"), otherwise=OTHERWISE)
def advise(words: _AdviseWords, config: AdviseConfig, training: Written) -> Report:
    """Which strategy for this model on this machine?

    Measures three short runs and some gradients (half a minute): the times of gradients and their
    variation, the cost of a round, the slowdown of workers by each other, the frequency of
    conflicting updates. Predicts every strategy but locked, aig, sim and avg_runs by simulation,
    applies a table of rules, trains the two best in pairs for --try seconds each, and decides by
    held-out loss at equal time. On a machine that is busy with other programs the answer is only a
    guess, and says so.

    CONFIG_OR_RUN is as for analyze: an architecture, options of train, a run or a checkpoint.

    Examples:
        advise 7to1-tiny
        advise tiny --workers torch:cpu*2 --no-try
        advise conf.yaml --try 5m --json
        advise tiny --slow 1=4 --try 20

    Main options:
        try_time no_try measure reproducible data workers threads batch_size seq_len optimizer lr
        slow json quiet
    """
    target = words.target(training)
    from mlxhog.theory.advise import advise_on

    with words.status() as tell:
        advice = advise_on(target, config, tries=not words.no_try, tell=tell)
    return Report(advice, _advised(advice))


def _advised(advice: Mapping[str, Any]) -> Iterator[str | Section]:
    profile, trial = advice["profile"], advice["trial"]
    yield advice["answer"]
    why = [f"{advice['rule']}: {advice['because']}", f"what would change it: {advice['otherwise']}"]
    if trial is not None:
        scores = zip(trial["names"], trial["bits_per_byte"], strict=True)
        why.append(
            f"tried in pairs of runs: {', '.join(f'{k} {v:.3f}' for k, v in scores)} bits per "
            f"byte, difference {trial['difference']:+.3f} ({trial['low']:+.3f} to "
            f"{trial['high']:+.3f})" + f": a tie, so {trial['winner']}" * trial["tie"]
        )
    yield table("why", [], why)
    yield table(
        "predicted",
        ({name: x for name, x in one.items() if name != "flags"} for one in advice["expected"]),
        [
            "idle: share of the time; samples: to a loss, over those of one worker, a rule of "
            "thumb before a trial; time: to that loss, over that of sync"
        ],
    )
    yield table(
        "measured",
        ({k: one[k] for k in ("name", "mean_s", "cv", "p99_s")} for one in profile["workers"]),
        [
            f"rounds cost {profile['gain']:.1%}: the slowest gradient takes "
            f"{format_duration(profile['slowest_s'])}, barrier and average "
            f"{format_duration(profile['sync_s'])}",
            f"{len(profile['workers'])} workers compute {profile['scaling']:.2f} times as much as "
            f"one; p_conf {profile['p_conf']:.2g}, {profile['density']:.0%} of the elements in an "
            "update",
        ],
    )
