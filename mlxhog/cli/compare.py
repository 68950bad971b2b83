"""Find out which of two ways to train is better, with a sequential test.

The command trains them in pairs with one seed and one order of the text, each with the same time,
tokens or steps, and scores them on the same validation text. It stops at a clear answer, by a
sequential test that calls either side better by chance at most once in a hundred comparisons.
Without one it answers: inconclusive.

A and B are each an architecture, a YAML file of train's options, or a run, of which the options
count and not the weights; one, or none (train's defaults), stands for both. --a and --b add train's
flags to one side, the flags below to both. After Ctrl-C the same command continues.

Examples:
    compare tiny --a "--optimizer muon" --b "--optimizer adamw"
    compare mine.yaml theirs.yaml --time 5m
    compare latest 20260102-101500-sotu --tokens 1M

Main options:
    a b pairs time tokens steps val_subset_tokens data workers seed folder runs_dir json quiet
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.cli.frame import CommandResult, argument, command, option, table, tabular
from mlxhog.cli.frame.flags import Flags, OptionGroup, Plugins, Quiet, Tabular
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import ConfigSource
from mlxhog.errors import INTERRUPTED, ConfigError
from mlxhog.experiments import BUDGETS, CompareConfig

if TYPE_CHECKING:
    from mlxhog.experiments.pairs import Comparison

BOTH = """data tokenizer text_key document_separator strict_data skip_machine_data val loss_on
seq_len batch_size kernels workers threads strategy optimizer lr schedule"""
"""Options of train that are flags for both sides; the others belong in --a and --b."""

NOT_OF_A_SIDE = ("seed", "runs_dir", "name", "resume", "reset_optimizer", "follow", "plugin")
"""Options of train that a comparison sets for both sides, beside the budget."""

MAX_UNSURE = 100  # ratio of the ends of an interval of speeds above which it is not shown
OTHERWISE = '; other options of train go to one side, as in --b "--clip 1", or into YAML'


@dataclass(frozen=True, kw_only=True)
class _CompareOptions(Plugins, Quiet, Tabular):
    first: str | None = argument("[A]", "see above")
    second: str | None = argument("[B]", "see above")
    a: str = option("", "flags of train for A alone, in quotes", metavar='"FLAGS"')
    b: str = option("", "flags of train for B alone, in quotes", metavar='"FLAGS"')


@command(OTHERWISE, both=OptionGroup(TrainConfig, BOTH, "of both sides", merged=True), writes=True)
def run(args: _CompareOptions, config: CompareConfig, both: ConfigSource) -> CommandResult | int:
    flags = {letter: _flags_of(letter, getattr(args, letter)) for letter in "ab"}
    # The rest imports NumPy and the native module: wrong flags are reported before.
    from mlxhog.experiments.api import find_side, with_budget
    from mlxhog.experiments.pairs import Comparison

    subjects = {"a": args.first, "b": args.second or args.first}
    a, b = (
        find_side(subject, [both, flags[letter]], Path(config.runs_dir))
        for letter, subject in subjects.items()
    )
    folder = None if config.folder is None else Path(config.folder)
    comparison = Comparison(a, b, with_budget(config, (a, b)), folder)
    pairs, folder = comparison.pairs, comparison.folder
    with args.status() as status, comparison.open():
        if pairs:
            status.tell(f"{len(pairs)} pairs are done already, in {folder}")
        try:
            while not comparison.outcome.ended:
                pair = comparison.run_next(status)
                status.tell(
                    f"pair {len(pairs)}: A {pair.a.bits_per_byte:.4f}  B "
                    f"{pair.b.bits_per_byte:.4f}  B - A {pair.difference:+.4f} bits per byte"
                )
        except KeyboardInterrupt:
            status.tell(
                f"interrupted; {len(pairs)} of {comparison.terms.pairs} pairs are kept in "
                f"{folder}: the same command continues"
            )
            return INTERRUPTED
    return _report(comparison, args.format)


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


def _report(comparison: "Comparison", kind: str) -> CommandResult:
    from mlxhog.experiments.api import NO_P_VALUE, result_of

    payload = result_of(comparison).to_json()
    pairs = [
        {
            "seed": pair.seed,
            "A": f"{pair.a.bits_per_byte:.4f}",
            "B": f"{pair.b.bits_per_byte:.4f}",
            "B - A": f"{pair.difference:+.4f}",
            "A tok/s": pair.a.tokens / pair.a.seconds,
            "B tok/s": pair.b.tokens / pair.b.seconds,
        }
        for pair in comparison.pairs[: payload["pairs_used"]]
    ]
    if kind != "text":
        return tabular(payload, table("", pairs, [payload["answer"]]), kind)
    speed, (low, high) = payload["speed"]["a_over_b"], payload["speed"]["interval"]
    sure = "few pairs, no interval" if high > MAX_UNSURE * low else f"{low:.3f} to {high:.3f}"
    text = {
        "pairs": pairs,
        "what differs": {name: f"A {a}, B {b}" for name, (a, b) in payload["differing"].items()},
        **{letter: payload[letter] for letter in "ab"},
        "each run": comparison.terms.each,
        "speed": f"A trains {speed:.3f} times as fast as B ({sure})",
        "intervals": f"99 % sure, whenever the comparison stops; {NO_P_VALUE}",
        "kept in": payload["folder"],
        "notes": payload["notes"],
    }
    return CommandResult(payload, [payload["answer"], text])
