"""`mlxhog compare`: which of two ways to train is better, by a sequential test of pairs."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.cli.flags import Flags, Part, Plugins, Quiet, Written
from mlxhog.cli.frame import Report, command
from mlxhog.config.config import TrainConfig, train_config
from mlxhog.config.options import argument, option, options
from mlxhog.config.sources import Layer, read_stored
from mlxhog.errors import ConfigError
from mlxhog.report.views import StatusLine
from mlxhog.theory import CompareConfig

if TYPE_CHECKING:
    from mlxhog.theory.pairs import PairLog, Side

ABOUT = """\
Find out which of two ways to train is better. The command trains them in pairs with one seed and
one order of the text, in turns, each with the same time, tokens or steps, and scores them on the
same held-out text. It stops at a clear answer, by a sequential test that calls either side better
by chance at most once in a hundred comparisons. Without one it answers: cannot be told.
A and B are each an architecture (a name or a file), a YAML file of train's options, or a run, of
which the options count and not the weights. --a and --b add train's flags to one side, the flags
below to both. One subject, or none (train's defaults), stands for both. Finished pairs are kept:
after Ctrl-C the same command continues, and once all are done it only prints the answer."""
EXAMPLES = (
    'compare tiny --a "--optimizer muon" --b "--optimizer adamw"',
    "compare mine.yaml theirs.yaml --time 5m",
    "compare latest 20260102-101500-sotu --tokens 1M",
    'compare 7to1-tiny --b "--lr 2e-3 --warmup 0.1" --pairs 8 --json',
    'compare --a "--workers 2 --strategy hogwild" --b "--strategy serial --threads 2"',
)
BOTH = (
    "data", "tokenizer", "text_key", "strict_data", "skip_machine_data", "val", "loss_on",
    "seq_len", "batch_size", "kernels", "workers", "threads", "strategy", "optimizer", "lr",
    "schedule",
)  # fmt: skip
"""Options of train that are flags for both sides; the others belong in --a and --b."""

NOT_OF_A_SIDE = {
    "seed": "--seed beside them numbers the pairs",
    "out": "--out is the folder of runs for both",
    "name": "the runs of a comparison have their own names",
    "resume": "every run of a comparison begins anew",
    "reset_optimizer": "every run of a comparison begins anew",
    "follow": "both sides train on the same text",
    "plugin": "--plugin beside them is for both",
}
UNTOLD = "cannot be told"
MAIN = (
    "a", "b", "pairs", "time", "tokens", "steps", "eval_tokens", "data", "workers", "seed",
    "folder", "out", "json", "quiet",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Words(Plugins, Quiet):
    """Flags beside the options of the comparison."""

    subjects: tuple[str, ...] = argument("[A [B]]", "see above", metavar="A B", many=True)
    a: str = option("", "flags of train for A alone, in quotes", metavar='"FLAGS"')
    b: str = option("", "flags of train for B alone, in quotes", metavar='"FLAGS"')


@command(
    "compare",
    ABOUT,
    EXAMPLES,
    Words,
    CompareConfig,
    Part(TrainConfig, BOTH, "of both sides", merged=True),
    main=MAIN,
    otherwise='; other options of train go to one side, as in --b "--clip 1", or into YAML',
)
def run(words: Words, config: CompareConfig, both: Written) -> Report | int:
    """Train both sides in pairs until one is better."""
    if both.problems:
        raise ConfigError("\n".join(both.problems))
    subjects = words.subjects
    of_side = {letter: _flags_of(letter, getattr(words, letter)) for letter in "ab"}
    if len(subjects) > 2:
        raise ConfigError(f"compare takes two subjects and got {len(subjects)}: {[*subjects]}")
    # The rest imports NumPy and the native module: wrong flags are reported before.
    from mlxhog.theory.pairs import Comparison, PairLog

    named = {"a": (*subjects, None)[0], "b": (None, *subjects)[-1]}
    a, b = (
        find_side(letter, subject, [both.values, of_side[letter]], Path(config.out))
        for letter, subject in named.items()
    )
    comparison = Comparison((a, b), terms_of(config, (a, b)))
    folder = Path("comparisons") / comparison.folder_name()
    record = PairLog(folder if config.folder is None else Path(config.folder), comparison)
    if not _carry_out(record, quiet=words.quiet):
        return 130
    return report(record)


# -- the sides -------------------------------------------------------------------------------------


def _flags_of(letter: str, text: str) -> Layer:
    """The options in the flags of one side.

    Raises:
        ConfigError: a flag is unknown, or belongs to the comparison.
    """
    flags = Flags(f"compare --{letter}", "", (), [Part(TrainConfig, merged=True)])
    try:
        (parsed,) = flags.parse(shlex.split(text))
    except (ConfigError, ValueError) as error:
        problem = str(error)
        if "expected one argument" in problem and len(text.split()) == 1:
            problem = f'no value; quotes go around all flags of a side: --{letter} "{text} VALUE"'
        raise ConfigError(f"--{letter} {text!r}: {problem}") from error
    from mlxhog.theory.pairs import ENDS

    budgets = {one.name for one in options(TrainConfig).values() if one.group in ENDS}
    problems = [f"--{letter} {text!r}: {problem}" for problem in parsed.problems]
    for name, (_, origin) in parsed.values.items():
        if name in NOT_OF_A_SIDE:
            problems.append(f"--{letter} {text!r}: {origin}: {NOT_OF_A_SIDE[name]}")
        elif name in budgets:
            problems.append(
                f"--{letter} {text!r}: {origin}: both sides get the same budget; say --time, "
                "--tokens or --steps outside the quotes"
            )
    if problems:
        raise ConfigError("\n".join(problems))
    return {
        name: (value, f"--{letter} {origin}") for name, (value, origin) in parsed.values.items()
    }


def find_side(letter: str, subject: str | None, overrides: Sequence[Layer], root: Path) -> Side:
    """Return a side: the options of a subject, with the overrides.

    Raises:
        ConfigError: it is not an architecture, file or run, or its options are wrong.
    """
    from mlxhog.theory.pairs import Side

    title, values = "defaults", Layer()
    if subject is not None:
        title, values = _options_of(subject, root)
    config = train_config([values, *overrides])
    if config.resume is not None or config.follow is not None:
        name = "resume" if config.resume is not None else "follow"
        raise ConfigError(f"{subject}: {name}: {NOT_OF_A_SIDE[name]}; take it out of the file")
    return Side(letter, title, config)


def _options_of(subject: str, root: Path) -> tuple[str, Layer]:
    """Return the title of a subject, and its options; of a run those, and not its weights."""
    from mlxhog.checkpoint import run as runs
    from mlxhog.errors import RunError
    from mlxhog.models.registry import architectures
    from mlxhog.theory.target import not_found, options_of

    known = options_of(subject)
    if known is not None:
        return known
    try:
        run = runs.find(subject, root)
    except RunError as error:
        raise not_found(subject, root, error) from error
    values = read_stored(run.config_path)
    named = values.get("model", ("",))[0]
    if run.model.is_dir() and named not in architectures():
        values = {**values, "model": (str(run.model), str(run.config_path))}
    return run.name, values


def terms_of(config: CompareConfig, sides: Sequence[Side]) -> CompareConfig:
    """Return the options with the budget of both sides.

    Raises:
        ConfigError: there are two budgets, or the sides have different budgets, or one in passes.
    """
    from mlxhog.theory.pairs import ENDS

    units = ("time", "tokens", "steps")
    budgets = [f"--{one}" for one in units if getattr(config, one) is not None]
    if len(budgets) > 1:
        raise ConfigError(
            f"{' and '.join(budgets)} are {len(budgets)} budgets; choose one for both sides"
        )
    if budgets:
        return config
    ends = {name: spec.default for name, spec in options(TrainConfig).items() if spec.group in ENDS}
    chosen = [
        {name: x for name, usual in ends.items() if (x := getattr(side.config, name)) != usual}
        for side in sides
    ]
    if chosen[0] != chosen[1] or len(chosen[0]) != 1 or not chosen[0].keys() <= {*units}:
        a, b = (" and ".join(f"{name} {x}" for name, x in one.items()) for one in chosen)
        raise ConfigError(
            f"A has a budget of {a or 'nothing'}, B of {b or 'nothing'}; a comparison needs equal "
            "time, tokens or steps: set --time, --tokens or --steps for both"
        )
    return replace(config, **chosen[0])


# -- execution and report --------------------------------------------------------------------------


def _carry_out(record: PairLog, *, quiet: bool) -> bool:
    """Run the missing pairs; False after an interruption by the user."""
    from mlxhog.theory.pairs import Pair, run_pairs

    with StatusLine(sys.stderr, quiet=quiet) as tell, record.open():

        def report(number: int, pair: Pair) -> None:
            tell.tell(
                f"pair {number}: A {pair.a.bits_per_byte:.4f}  B {pair.b.bits_per_byte:.4f}  "
                f"B - A {pair.difference:+.4f} bits per byte"
            )

        if record.pairs:
            tell.tell(f"{len(record.pairs)} pairs are done already, in {record.folder}")
        try:
            run_pairs(record, tell, report)
        except KeyboardInterrupt:
            tell.tell(
                f"interrupted; {len(record.pairs)} of {record.comparison.terms.pairs} pairs "
                f"are kept in {record.folder}: the same command continues"
            )
            return False
    return True


def answer(record: PairLog) -> str:
    """Return the verdict in one line."""
    outcome = record.outcome
    low, high, sign = outcome.low, outcome.high, outcome.sign
    after = f"after {outcome.pairs} of {outcome.planned} pairs"
    if sign:
        ends = sorted((sign * low, sign * high))
        return (
            f"{'A' if sign > 0 else 'B'} is better by {abs(outcome.mean):.4f} bits per byte "
            f"({ends[0]:.4f} to {ends[1]:.4f}), {after}"
        )
    if low == high == 0:
        return f"{UNTOLD}: A and B ended equal in every pair, {after}"
    return (
        f"{UNTOLD}: B - A {outcome.mean:+.4f} bits per byte ({low:+.4f} to {high:+.4f}), "
        f"{outcome.pairs} of {outcome.planned} pairs"
    )


def report(record: PairLog) -> Report:
    """Return the answer and its reasons."""
    from mlxhog.theory import paired_test

    comparison, outcome, terms = record.comparison, record.outcome, record.comparison.terms
    speed, low, high = map(math.exp, (record.speed.mean, record.speed.low, record.speed.high))
    facts: dict[str, Any] = {
        "answer": answer(record),
        "verdict": {1: "a", -1: "b", 0: UNTOLD}[outcome.sign],
        "difference": outcome.mean,
        "interval": [outcome.low, outcome.high],
        "p": outcome.p,
        "error_rate": paired_test.ERROR,
        "pairs_told_from": outcome.pairs,
        "pairs_planned": outcome.planned,
        "budget": {"time_s": terms.time, "tokens": terms.tokens, "steps": terms.steps},
        "speed": {"a_over_b": speed, "interval": [low, high]},
        "a": comparison.sides[0].title,
        "b": comparison.sides[1].title,
        "differing": comparison.differing(),
        "held_out": {
            "sha256": comparison.held_out_sha256,
            "tokens": comparison.eval_tokens,
            "seq_len": comparison.seq_len,
        },
        "notes": [*comparison.notes, *record.warnings()],
        "pairs": [{**asdict(pair), "difference": pair.difference} for pair in record.pairs],
        "folder": str(record.folder),
    }
    pairs = [
        {
            "pair": number,
            "seed": pair.seed,
            "A": f"{pair.a.bits_per_byte:.4f}",
            "B": f"{pair.b.bits_per_byte:.4f}",
            "B - A": f"{pair.difference:+.4f}",
            "A tok/s": f"{pair.a.tokens / pair.a.seconds:,.0f}",
            "B tok/s": f"{pair.b.tokens / pair.b.seconds:,.0f}",
        }
        for number, pair in enumerate(record.pairs[: outcome.pairs], start=1)
    ]
    differing = [
        {"option": k, "A": str(a), "B": str(b)} for k, (a, b) in facts["differing"].items()
    ]
    sure = "few pairs, no interval" if high > MOST_UNSURE * low else f"{low:.3f} to {high:.3f}"
    words = {
        "pairs": pairs,
        "what differs": differing,
        **{name.upper(): facts[name] for name in "ab"},
        "each run": terms.each,
        "speed": f"A trains {speed:.3f} times as fast as B ({sure})",
        "p": "" if math.isnan(outcome.p) else f"{outcome.p:.2g}, over all looks at the pairs",
        "intervals": "99 % sure, whenever the comparison stops",
        "kept in": str(record.folder),
        "notes": facts["notes"],
    }
    return Report(facts, facts["answer"], words=words)


MOST_UNSURE = 100
"""Ratio of the ends of an interval of speeds above which it is not shown."""
