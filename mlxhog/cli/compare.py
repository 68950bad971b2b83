"""`mlxhog compare`: which of two ways to train is better, by a sequential test of pairs."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.cli.flags import Flags
from mlxhog.cli.output import ended_by_signal, print_json, print_sections
from mlxhog.config.config import TrainConfig, train_config
from mlxhog.config.options import options
from mlxhog.config.sources import Assignment, read_stored
from mlxhog.errors import ConfigError
from mlxhog.theory import CompareConfig

if TYPE_CHECKING:
    from mlxhog.report.table import Section
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


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("compare", ABOUT, EXAMPLES, ("[A [B]]",), MAIN)
    flags.argument("subjects", metavar="A B", nargs="*", help="see above")
    for letter in "ab":
        flags.argument(
            f"--{letter}",
            metavar='"FLAGS"',
            default="",
            help=f"flags of train for {letter.upper()} alone, in quotes",
        )
    flags.plugin()
    flags.argument("--json", action="store_true", help="one JSON object with everything")
    flags.quiet()
    flags.options(CompareConfig)
    flags.options(TrainConfig, BOTH, group="of both sides")
    flags.otherwise('; other options of train go to one side, as in --b "--clip 1", or into YAML')
    parsed = flags.parse(_with_quoted(arguments))
    config, both = parsed.split(CompareConfig)
    subjects = parsed.other.subjects
    of_side = {letter: _flags_of(letter, getattr(parsed.other, letter)) for letter in "ab"}
    if len(subjects) > 2:
        raise ConfigError(f"compare takes two subjects and got {len(subjects)}: {subjects}")
    # The rest imports NumPy and the native module: wrong flags are reported before.
    from mlxhog.theory.pairs import Comparison, PairLog

    sides = tuple(
        find_side(letter, (subjects or [None])[-1 if letter == "b" else 0],
                  [both, of_side[letter]], Path(config.out))
        for letter in "ab"
    )  # fmt: skip
    comparison = Comparison((sides[0], sides[1]), terms_of(config, sides))
    folder = Path("comparisons") / comparison.folder_name()
    record = PairLog(folder if config.folder is None else Path(config.folder), comparison)
    if not _carry_out(record, quiet=parsed.other.quiet):
        return 130
    if parsed.other.json:
        print_json(to_json(record))
        return 0
    if not parsed.other.quiet:
        print_sections(sections(record))
    return 0


# -- the sides -------------------------------------------------------------------------------------


def _with_quoted(arguments: Sequence[str]) -> list[str]:
    """Join --a and --b with the next word, which begins with a dash."""
    words = list(arguments)
    for at in range(len(words) - 1, 0, -1):
        if words[at - 1] in ("--a", "--b"):
            words[at - 1 : at + 1] = [f"{words[at - 1]}={words[at]}"]
    return words


def _flags_of(letter: str, text: str) -> list[Assignment]:
    """The options in the flags of one side.

    Raises:
        ConfigError: a flag is unknown, or belongs to the comparison.
    """
    flags = Flags(f"compare --{letter}", "", ())
    flags.options(TrainConfig)
    try:
        parsed = flags.parse(shlex.split(text))
    except (ConfigError, ValueError) as error:
        problem = str(error)
        if "expected one argument" in problem and len(text.split()) == 1:
            problem = f'no value; quotes go around all flags of a side: --{letter} "{text} VALUE"'
        raise ConfigError(f"--{letter} {text!r}: {problem}") from error
    from mlxhog.theory.pairs import ENDS

    budgets = {one.name for one in options(TrainConfig).values() if one.group in ENDS}
    problems = [f"--{letter} {text!r}: {problem}" for problem in parsed.problems]
    for one in parsed.values:
        if one.name in NOT_OF_A_SIDE:
            problems.append(f"--{letter} {text!r}: {one.origin}: {NOT_OF_A_SIDE[one.name]}")
        elif one.name in budgets:
            problems.append(
                f"--{letter} {text!r}: {one.origin}: both sides get the same budget; say --time, "
                "--tokens or --steps outside the quotes"
            )
    if problems:
        raise ConfigError("\n".join(problems))
    return [Assignment(one.name, one.value, f"--{letter} {one.origin}") for one in parsed.values]


def find_side(
    letter: str, subject: str | None, overrides: Sequence[Sequence[Assignment]], root: Path
) -> Side:
    """Return a side: the options of a subject, with the overrides.

    Raises:
        ConfigError: it is not an architecture, file or run, or its options are wrong.
    """
    from mlxhog.theory.pairs import Side

    title, values = "defaults", list[Assignment]()
    if subject is not None:
        title, values = _options_of(subject, root)
    config = train_config([values, *overrides])
    if config.resume is not None or config.follow is not None:
        name = "resume" if config.resume is not None else "follow"
        raise ConfigError(f"{subject}: {name}: {NOT_OF_A_SIDE[name]}; take it out of the file")
    return Side(letter, title, config)


def _options_of(subject: str, root: Path) -> tuple[str, list[Assignment]]:
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
    named = [one.value for one in values if one.name == "model"]
    if run.model.is_dir() and not set(named) & set(architectures()):
        values = [one for one in values if one.name != "model"]
        values.append(Assignment("model", str(run.model), str(run.config_path)))
    return run.name, values


def terms_of(config: CompareConfig, sides: Sequence[Side]) -> CompareConfig:
    """Return the options with the budget of both sides.

    Raises:
        ConfigError: there are two budgets, or the sides have different budgets, or one in passes.
    """
    units = ("time", "tokens", "steps")
    given = [f"--{one}" for one in units if getattr(config, one) is not None]
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join(given)} are {len(given)} budgets; choose one for both sides"
        )
    if given:
        return config
    set_a, set_b = (_budget(side.config) for side in sides)
    if set_a != set_b:
        raise ConfigError(
            f"A has a budget of {_spelt(set_a)}, B of {_spelt(set_b)}; set one for both with "
            "--time, --tokens or --steps"
        )
    if len(set_a) != 1 or not set_a.keys() <= {*units}:
        raise ConfigError(
            f"both sides have a budget of {_spelt(set_a)}; a comparison needs equal time, "
            "tokens or steps, set --time, --tokens or --steps"
        )
    return replace(config, **set_a)


def _budget(config: TrainConfig) -> dict[str, Any]:
    """Return the budget options with other values than the defaults."""
    from mlxhog.theory.pairs import ENDS

    return {
        name: getattr(config, name)
        for name, spec in options(TrainConfig).items()
        if spec.group in ENDS and getattr(config, name) != spec.default
    }


def _spelt(budget: dict[str, Any]) -> str:
    return " and ".join(f"{name} {value}" for name, value in budget.items()) or "nothing"


# -- execution and report --------------------------------------------------------------------------


def _carry_out(record: PairLog, *, quiet: bool) -> bool:
    """Run the missing pairs; False after an interruption by the user."""
    from mlxhog.report.views import PartLine
    from mlxhog.theory.pairs import Pair, run_pairs

    with PartLine(sys.stderr, quiet=quiet) as tell:

        def report(number: int, pair: Pair) -> None:
            tell.tell(
                f"pair {number}: A {pair.a.bits_per_byte:.4f}  B {pair.b.bits_per_byte:.4f}  "
                f"B - A {pair.difference:+.4f} bits per byte"
            )

        with ended_by_signal(), record.open():
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


def sections(record: PairLog) -> list[Section]:
    """Return the report as sections."""
    from mlxhog.report.table import Section

    comparison, pairs = record.comparison, record.pairs[: record.outcome.pairs]
    rows = [
        (
            str(number),
            str(pair.seed),
            f"{pair.a.bits_per_byte:.4f}",
            f"{pair.b.bits_per_byte:.4f}",
            f"{pair.difference:+.4f}",
            f"{pair.a.tokens / pair.a.seconds:,.0f}",
            f"{pair.b.tokens / pair.b.seconds:,.0f}",
        )
        for number, pair in enumerate(pairs, start=1)
    ]
    header = ("pair", "seed", "A", "B", "B - A", "A tok/s", "B tok/s")
    differing = [(name, str(a), str(b)) for name, (a, b) in comparison.differing().items()]
    parts = [Section(answer(record)), Section("", header, rows)]
    if differing:
        parts.append(Section("what differs", ("option", "A", "B"), differing))
    return [*parts, Section("", notes=[*_facts(record), *comparison.notes, *record.warnings()])]


def _facts(record: PairLog) -> list[str]:
    comparison, speed, p = record.comparison, _times_as_fast(record), record.outcome.p
    a, b = (side.title for side in comparison.sides)
    return [
        f"A: {a}",
        f"B: {b}",
        f"each run: {comparison.terms.each}",
        _speed(*speed),
        *([] if math.isnan(p) else [f"p {p:.2g}, over all looks at the pairs"]),
        "intervals: 99 % sure, whenever the comparison stops",
        f"kept in {record.folder}",
    ]


def _speed(times: float, low: float, high: float) -> str:
    mean = f"A trains {times:.3f} times as fast as B"
    if high > MOST_UNSURE * low:
        return f"{mean} in these pairs, too few for an interval"
    return f"{mean} ({low:.3f} to {high:.3f})"


MOST_UNSURE = 100
"""Ratio of the ends of an interval of speeds above which it is not shown."""


def _times_as_fast(record: PairLog) -> tuple[float, float, float]:
    """Return the ratio of the speeds of A and B, and its interval."""
    speed = record.speed
    return math.exp(speed.mean), math.exp(speed.low), math.exp(speed.high)


def to_json(record: PairLog) -> dict[str, Any]:
    """Return the report as plain values."""
    from mlxhog.theory import paired_test

    comparison, outcome = record.comparison, record.outcome
    speed, low, high = _times_as_fast(record)
    return {
        "answer": answer(record),
        "verdict": {1: "a", -1: "b", 0: UNTOLD}[outcome.sign],
        "difference": outcome.mean,
        "interval": [outcome.low, outcome.high],
        "p": outcome.p,
        "error_rate": paired_test.ERROR,
        "pairs_told_from": outcome.pairs,
        "pairs_planned": outcome.planned,
        "budget": {
            "time_s": comparison.terms.time,
            "tokens": comparison.terms.tokens,
            "steps": comparison.terms.steps,
        },
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
