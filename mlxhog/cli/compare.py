"""`mlxhog compare`: which of two ways to train is better, by a sequential test of pairs."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.cli.flags import Flags, OptionGroup, Plugins, Quiet, Tabular
from mlxhog.cli.frame import INTERRUPTED, Report, command, table, tabular
from mlxhog.config.config import TrainConfig, train_config
from mlxhog.config.options import argument, option, options
from mlxhog.config.sources import ConfigSource, read_yaml
from mlxhog.errors import ConfigError, RunError
from mlxhog.experiments import ENDS, CompareConfig

if TYPE_CHECKING:
    from mlxhog.experiments.paired_test import PairedResult
    from mlxhog.experiments.pairs import Comparison, Side

BOTH = """data tokenizer text_key document_separator strict_data skip_machine_data val loss_on
seq_len batch_size kernels workers threads strategy optimizer lr schedule"""
"""Options of train that are flags for both sides; the others belong in --a and --b."""

NOT_OF_A_SIDE = ("seed", "runs_dir", "name", "resume", "reset_optimizer", "follow", "plugin")
"""Options of train that a comparison sets for both sides, beside the budget."""

BUDGETS = {one.name: one.default for one in options(TrainConfig).values() if one.group in ENDS}

UNTOLD = "inconclusive"
NO_P_VALUE = "there is no p-value, which would count only for a number of pairs fixed before"
MAX_UNSURE = 100  # ratio of the ends of an interval of speeds above which it is not shown
OTHERWISE = '; other options of train go to one side, as in --b "--clip 1", or into YAML'


@dataclass(frozen=True, kw_only=True)
class _CompareOptions(Plugins, Quiet, Tabular):
    first: str | None = argument("[A]", "see above")
    second: str | None = argument("[B]", "see above")
    a: str = option("", "flags of train for A alone, in quotes", metavar='"FLAGS"')
    b: str = option("", "flags of train for B alone, in quotes", metavar='"FLAGS"')


@command(
    "compare",
    OTHERWISE,
    both=OptionGroup(TrainConfig, BOTH, "of both sides", merged=True),
    writes=True,
)
def run(words: _CompareOptions, config: CompareConfig, both: ConfigSource) -> Report | int:
    """Find out which of two ways to train is better.

    The command trains them in pairs with one seed and one order of the text, each with the same
    time, tokens or steps, and scores them on the same validation text. It stops at a clear answer,
    by a sequential test that calls either side better by chance at most once in a hundred
    comparisons. Without one it answers: inconclusive.

    A and B are each an architecture, a YAML file of train's options, or a run, of which the options
    count and not the weights; one, or none (train's defaults), stands for both. --a and --b add
    train's flags to one side, the flags below to both. After Ctrl-C the same command continues.

    Examples:
        compare tiny --a "--optimizer muon" --b "--optimizer adamw"
        compare mine.yaml theirs.yaml --time 5m
        compare latest 20260102-101500-sotu --tokens 1M

    Main options:
        a b pairs time tokens steps val_subset_tokens data workers seed folder runs_dir json quiet
    """
    flags = {letter: _flags_of(letter, getattr(words, letter)) for letter in "ab"}
    # The rest imports NumPy and the native module: wrong flags are reported before.
    from mlxhog.experiments.pairs import Comparison

    subjects = {"a": words.first, "b": words.second or words.first}
    a, b = (
        find_side(subject, [both, flags[letter]], Path(config.runs_dir))
        for letter, subject in subjects.items()
    )
    folder = None if config.folder is None else Path(config.folder)
    comparison = Comparison(a, b, _with_budget(config, (a, b)), folder)
    pairs, folder = comparison.pairs, comparison.folder
    with words.status() as tell, comparison.open():
        if pairs:
            tell.tell(f"{len(pairs)} pairs are done already, in {folder}")
        try:
            while not comparison.outcome.ended:
                pair = comparison.run_next(tell)
                tell.tell(
                    f"pair {len(pairs)}: A {pair.a.bits_per_byte:.4f}  B "
                    f"{pair.b.bits_per_byte:.4f}  B - A {pair.difference:+.4f} bits per byte"
                )
        except KeyboardInterrupt:
            tell.tell(
                f"interrupted; {len(pairs)} of {comparison.terms.pairs} pairs are kept in "
                f"{folder}: the same command continues"
            )
            return INTERRUPTED
    return _report(comparison, words.format)


def _flags_of(letter: str, text: str) -> ConfigSource:
    """The options in the flags of one side; a ConfigError if the comparison sets one itself."""
    flags = Flags(f"compare --{letter}", "", [OptionGroup(TrainConfig, merged=True)])
    try:
        (layer,) = flags.parse(shlex.split(text))
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"--{letter} {text!r}: {error}") from error
    problems = [
        f"{origin} is not for one side of a comparison; give --seed, --runs-dir, --plugin and the "
        "same budget for both outside the quotes, and leave out the others"
        for name, (_, origin) in layer.items()
        if name in (*NOT_OF_A_SIDE, *BUDGETS)
    ]
    if problems:
        raise ConfigError("\n".join(f"--{letter} {text!r}: {problem}" for problem in problems))
    return {name: (one, f"--{letter} {flag}") for name, (one, flag) in layer.items()}


def find_side(subject: str | None, overrides: Sequence[ConfigSource], root: Path) -> "Side":
    """Return a side: the options of a subject, with the overrides; of a run without its weights."""
    from mlxhog.checkpoint import checkpoint
    from mlxhog.checkpoint import run as runs
    from mlxhog.experiments.pairs import Side
    from mlxhog.experiments.target import not_found, options_of
    from mlxhog.models.registry import architectures

    title, values = "defaults", ConfigSource()
    if subject is not None and (known := options_of(subject)) is not None:
        title, values = known
    elif subject is not None:
        try:
            run = runs.find(subject, root)
        except RunError as error:
            raise not_found(subject, root, error) from error
        title, values = run.name, read_yaml(run.config_path)
        if run.model.is_dir() and values.get("model", ("",))[0] not in architectures():
            values = {**values, "model": (str(run.model), str(run.config_path))}
    config = train_config([values, *overrides])
    if name := next((one for one in ("resume", "follow") if getattr(config, one)), None):
        raise ConfigError(
            f"{subject}: {name}: both sides start from the beginning, on the same text; take "
            "it out of the file"
        )
    if config.init_from is not None:  # the runs of a comparison stand in another folder
        config = config.having(init_from=str(checkpoint.locate(config.init_from, root).absolute()))
    return Side(title, config)


def _with_budget(config: CompareConfig, sides: "Sequence[Side]") -> CompareConfig:
    """Return the options with the budget of both sides, which have one, and the same."""
    units = ("time", "tokens", "steps")
    if any(getattr(config, one) is not None for one in units):
        return config
    a, b = (
        {name: x for name, usual in BUDGETS.items() if (x := getattr(one.config, name)) != usual}
        for one in sides
    )
    if a != b or len(a) != 1 or not a.keys() <= {*units}:
        of_a, of_b = (" and ".join(f"{name} {x}" for name, x in one.items()) for one in (a, b))
        raise ConfigError(
            f"A has a budget of {of_a or 'nothing'}, B of {of_b or 'nothing'}; a comparison needs "
            "equal time, tokens or steps: set --time, --tokens or --steps for both"
        )
    return replace(config, **a)


def _answer(outcome: "PairedResult") -> str:
    low, high, sign = outcome.low, outcome.high, outcome.sign
    after = f"after {outcome.pairs} of {outcome.planned} pairs"
    if sign:
        low, high = sorted((sign * low, sign * high))
        by = f"{abs(outcome.mean):.4f} bits per byte ({low:.4f} to {high:.4f})"
        return f"{'A' if sign > 0 else 'B'} is better by {by}, {after}"
    if low == high == 0:
        return f"{UNTOLD}: A and B ended equal in every pair, {after}"
    return f"{UNTOLD}: B - A {outcome.mean:+.4f} bits per byte ({low:+.4f} to {high:+.4f}), {after}"


def _report(comparison: "Comparison", kind: str) -> Report:
    from mlxhog.data.validation_set import n_labels
    from mlxhog.experiments import paired_test

    outcome, terms, by_speed = comparison.outcome, comparison.terms, comparison.speed
    logs = (by_speed.mean, by_speed.low, by_speed.high)  # the bound of few pairs may be large
    speed, low, high = (math.exp(one) if one < 700 else math.inf for one in logs)
    facts: dict[str, Any] = {
        "answer": _answer(outcome),
        "verdict": {1: "a", -1: "b", 0: UNTOLD}[outcome.sign],
        "difference": outcome.mean,
        "interval": [outcome.low, outcome.high],
        "error_rate": paired_test.ERROR,
        "p_value": None,
        "p_value_reason": NO_P_VALUE,
        "pairs_told_from": outcome.pairs,
        "pairs_planned": outcome.planned,
        "budget": {"time_s": terms.time, "tokens": terms.tokens, "steps": terms.steps},
        "speed": {"a_over_b": speed, "interval": [low, high]},
        **{letter: side.title for letter, side in comparison.sides.items()},
        "differing": comparison.differing(),
        "validation": {
            "sha256": comparison.validation[0].digest,
            "tokens": {
                letter: n_labels(file, comparison.seq_len, comparison.val_subset_tokens)
                for letter, file in zip("ab", comparison.validation, strict=True)
            },
            "seq_len": comparison.seq_len,
        },
        "notes": [*comparison.notes()],
        "pairs": [{**asdict(pair), "difference": pair.difference} for pair in comparison.pairs],
        "folder": str(comparison.folder),
    }
    pairs = [
        {
            "seed": pair.seed,
            "A": f"{pair.a.bits_per_byte:.4f}",
            "B": f"{pair.b.bits_per_byte:.4f}",
            "B - A": f"{pair.difference:+.4f}",
            "A tok/s": pair.a.tokens / pair.a.seconds,
            "B tok/s": pair.b.tokens / pair.b.seconds,
        }
        for pair in comparison.pairs[: outcome.pairs]
    ]
    if kind != "text":
        return tabular(facts, table("", pairs, [facts["answer"]]), kind)
    sure = "few pairs, no interval" if high > MAX_UNSURE * low else f"{low:.3f} to {high:.3f}"
    words = {
        "pairs": pairs,
        "what differs": {name: f"A {a}, B {b}" for name, (a, b) in facts["differing"].items()},
        **{letter: facts[letter] for letter in "ab"},
        "each run": terms.each,
        "speed": f"A trains {speed:.3f} times as fast as B ({sure})",
        "intervals": f"99 % sure, whenever the comparison stops; {NO_P_VALUE}",
        "kept in": facts["folder"],
        "notes": facts["notes"],
    }
    return Report(facts, [facts["answer"], words])
