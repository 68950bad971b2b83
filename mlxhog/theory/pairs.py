"""Two trainings against each other, in pairs of runs that differ in nothing but their settings.

The runs of a pair have one seed: the same initial values for the same model, and the same order of
batches for the same text. They follow each other directly, A first in the first pair, B in the
second, so that neither always has the warmer machine. Both get the same time or the same tokens,
are not evaluated meanwhile, and are scored afterwards, by one process, on the same held-out text.
`paired_test` decides after each pair whether another follows. Finished pairs are kept in a folder:

FOLDER/comparison.json   identity of the comparison; written before the first pair
FOLDER/pairs.jsonl       one line for each pair that is whole; a torn last line is ignored
FOLDER/runs/             the runs, without their checkpoints once they are scored
FOLDER/lock              held while pairs are run
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlxhog.arena.child import Child, Failed
from mlxhog.base import durable, plain_json, typed
from mlxhog.base.durable import disk_errors
from mlxhog.base.quantities import format_duration, format_share
from mlxhog.checkpoint import run as runs
from mlxhog.checkpoint.creation import default_name
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.config.sources import specs_of, spelt_values_of
from mlxhog.data import heldout
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import ConfigError, DataError, EnvironmentLacks, RunError, WorkerFailed
from mlxhog.models import families
from mlxhog.report.metrics import Progress, Result
from mlxhog.report.views import TellStep
from mlxhog.theory import CompareConfig, paired_test
from mlxhog.theory.paired_test import PairedResult
from mlxhog.theory.short_runs import score, settings_for
from mlxhog.training.plan import Plan, make_plan
from mlxhog.training.run import train

SCORING_S = 3600.0
UNEQUAL = 0.02  # part of the training time; a larger difference within a pair gives a warning
WORST_BITS = 8.0
"""Bits per byte of a uniform guess; the score of a diverged run."""

SAME_FOR_BOTH = ("seed", "out", "name")
"""Options that the comparison sets, so that they do not differ between its sides."""

ENDS = ("budget", "epochs and early stopping")
"""Groups of options that end a run; a comparison sets them by its terms."""


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        letter: "a" or "b".
        title: for people.
        config: its options; the comparison sets seed, budget and output of each run.
    """

    letter: str
    title: str
    config: TrainConfig


@dataclass(frozen=True)
class TrainedRun:
    """One run, and its result.

    Attributes:
        run: its name in the folder of runs.
        status: as `Result.status`.
        bits_per_byte: on the held-out text of the comparison.
        steps: of training.
        tokens: in these steps.
        seconds: of training.
    """

    run: str
    status: str
    bits_per_byte: float
    steps: int
    tokens: int
    seconds: float

    @property
    def numbers(self) -> tuple[float, ...]:
        """Those of which each is above zero."""
        return self.bits_per_byte, self.tokens, self.seconds


@dataclass(frozen=True)
class Pair:
    """Two runs that differ in their side only.

    Attributes:
        seed: of both.
        first: letter of the side that ran first.
        a: the run of side A.
        b: the run of side B.
    """

    seed: int
    first: str
    a: TrainedRun
    b: TrainedRun

    @property
    def difference(self) -> float:
        """Bits per byte of B minus those of A: above zero if A is better."""
        return self.b.bits_per_byte - self.a.bits_per_byte

    @property
    def log_speed(self) -> float:
        """Logarithm of A's tokens per second over B's."""
        speeds = [one.tokens / one.seconds for one in (self.a, self.b)]
        return math.log(speeds[0] / speeds[1])


class Comparison:
    """Two sides, checked before any training.

    Attributes:
        sides: A and B.
        terms: of both.
        plans: of their first runs.
        seq_len: length of the sequences on which both are scored, the longer of theirs.
        eval_tokens: of the held-out text; None is all of it, for tokenizers that differ.
        notes: remarks for the user on differences of the sides.
    """

    def __init__(self, sides: tuple[Side, Side], terms: CompareConfig) -> None:
        """Check both sides.

        Raises:
            ConfigError, DataError, CheckpointError: bad input, or different held-out texts.
            EnvironmentLacks: memory or a backend is missing.
        """
        self.sides, self.terms = sides, terms
        self.plans: dict[str, Plan] = {}
        for side in sides:
            try:
                self.plans[side.letter] = make_plan(self.settings(side, 1, Path()))
            except (ConfigError, DataError) as error:
                raise type(error)(f"{side.letter.upper()} ({side.title}): {error}") from error
        plans = tuple(self.plans.values())
        held_out = [TokenFile.open(plan.data.val) for plan in plans]
        self._check_held_out(held_out)
        self.held_out_sha256 = held_out[0].digest
        same_tokens = held_out[0].digest == held_out[1].digest
        self.eval_tokens = terms.eval_tokens if same_tokens else None
        self.seq_len = max(plan.config.seq_len for plan in plans)
        for plan in plans:
            families.check_length(plan.model, self.seq_len)
        self.notes = list(self._notes(same_tokens))

    def _check_held_out(self, held_out: list[TokenFile]) -> None:
        a, b = (self.plans[letter].data for letter in "ab")
        same_text = (a.corpus_sha256, a.rule) == (b.corpus_sha256, b.rule)
        if held_out[0].digest == held_out[1].digest or same_text:
            return
        texts = [
            f"{side.letter.upper()} ({side.title}) {one.header['bytes']:,} bytes of "
            f"{side.config.data!r} (val {side.config.val}, SHA-256 {one.digest[:12]})"
            for side, one in zip(self.sides, held_out, strict=True)
        ]
        raise ConfigError(
            f"the two sides have different held-out texts: {texts[0]}, {texts[1]}; bits per byte "
            "of different texts cannot be compared: give both the same --data and --val"
        )

    def _notes(self, same_tokens: bool) -> Iterator[str]:
        a, b = self.sides
        if not self.differing() and self.plans["a"].model == self.plans["b"].model:
            yield "A and B are the same settings"
        orders = {
            (
                plan.data.open(plan.config.seq_len)[0].digest,
                plan.config.seq_len,
                plan.config.sequences_per_ticket,
            )
            for plan in self.plans.values()
        }
        if len(orders) > 1:
            yield "pairs share seeds, not batches: text, --seq-len or --batch-size differ"
        a_tokens, b_tokens = (self.plans[letter].mean_tokens_per_step for letter in "ab")
        if self.terms.steps is not None and a_tokens != b_tokens:
            yield f"a step of A has {a_tokens:,.0f} tokens, of B {b_tokens:,.0f}"
        if not same_tokens:
            yield "tokenizers differ: runs are scored on all of the held-out text"
        if a.config.seq_len != b.config.seq_len:
            yield f"both are scored on sequences of {self.seq_len} tokens"

    def differing(self) -> dict[str, tuple[object, object]]:
        """The options that differ, as people write them: name -> (of A, of B)."""
        a, b = (spelt_values_of(side.config) for side in self.sides)
        known = {**specs_of(TrainConfig, b), **specs_of(TrainConfig, a)}
        default = {name: spec.spell(spec.default) for name, spec in known.items()}
        both = {name: (a.get(name, default[name]), b.get(name, default[name])) for name in known}
        return {
            name: (of_a, of_b)
            for name, (of_a, of_b) in both.items()
            if name not in SAME_FOR_BOTH and known[name].group not in ENDS and of_a != of_b
        }

    def settings(self, side: Side, number: int, folder: Path) -> TrainConfig:
        """The options of a side's run in a pair, counted from 1."""
        budget = {unit: getattr(self.terms, unit) for unit in ("time", "tokens", "steps")}
        return settings_for(
            side.config,
            folder / "runs",
            f"pair-{number:02}-{side.letter}",
            **budget,
            seed=(self.terms.seed + number - 1) % 2**32,
            keep_last=1,
        )

    def identity(self) -> dict[str, Any]:
        """Return all that identifies a comparison; it has no pairs of another identity."""
        of_ends = {name for name, one in options(TrainConfig).items() if one.group in ENDS}
        sides = {
            side.letter: {
                "title": side.title,
                "options": {
                    name: value
                    for name, value in spelt_values_of(side.config).items()
                    if name not in (*SAME_FOR_BOTH, "model") and name not in of_ends
                },
                "model": self.plans[side.letter].model.to_dict(),
                "text_sha256": self.plans[side.letter].data.corpus_sha256,
            }
            for side in self.sides
        }
        names = ("time", "tokens", "seed", "eval_tokens", *(["steps"] if self.terms.steps else []))
        terms = {name: getattr(self.terms, name) for name in names}
        return {**sides, **terms, "held_out_sha256": self.held_out_sha256,
                "mlxhog": version("mlxhog")}  # fmt: skip

    def folder_name(self) -> str:
        """Return a name that the same comparison always has, and no other one."""
        identity = plain_json.dumps(self.identity())
        titles = "-vs-".join(default_name(side.title) for side in self.sides)
        return f"{titles[:60]}-{hashlib.sha256(identity).hexdigest()[:8]}"


# -- its folder ------------------------------------------------------------------------------------


class PairLog:
    """The folder of a comparison, with all finished pairs."""

    def __init__(self, folder: Path, comparison: Comparison) -> None:
        """Name the folder; `open` makes or reads it."""
        self.folder, self.comparison = folder, comparison
        self.pairs: list[Pair] = []

    @property
    def outcome(self) -> PairedResult:
        """The result of the pairs so far."""
        return paired_test.judge(
            [pair.difference for pair in self.pairs], self.comparison.terms.pairs
        )

    @property
    def speed(self) -> PairedResult:
        """The result of these pairs for the logarithm of A's speed over B's."""
        pairs = self.pairs[: self.outcome.pairs]
        return paired_test.look([pair.log_speed for pair in pairs], self.comparison.terms.pairs)

    def warnings(self) -> Iterator[str]:
        """Yield warnings about the runs."""
        for letter in "ab":
            of_side: list[TrainedRun] = [getattr(pair, letter) for pair in self.pairs]
            if diverged := sum(one.status == "diverged" for one in of_side):
                yield (
                    f"{letter.upper()} diverged in {diverged} of {len(of_side)} runs, each of "
                    f"which counts as {WORST_BITS:g} bits per byte"
                )
        unequal = [
            number
            for number, pair in enumerate(self.pairs, start=1)
            if abs(pair.a.seconds / pair.b.seconds - 1) > UNEQUAL
        ]
        if unequal and self.comparison.terms.time is not None:
            yield (
                f"in {len(unequal)} pairs the runs trained for unequal times (pair {unequal[0]}: "
                f"{self.pairs[unequal[0] - 1].a.seconds:.1f} and "
                f"{self.pairs[unequal[0] - 1].b.seconds:.1f} s): a step is long beside them; give "
                "more --time"
            )

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Lock the folder, and read the pairs of earlier commands.

        Raises:
            RunError: another process holds it, it is another comparison's, or it is damaged.
            ConfigError: it was begun with another number of pairs.
            EnvironmentLacks: it cannot be written.
        """
        with disk_errors(f"making {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)

        def refusal(why: str) -> RunError:
            return RunError(f"the comparison in {self.folder} {why}, or name another --folder")

        with durable.lock(self.folder, refusal):
            self._check_identity()
            self.pairs = self._read()
            self._clear_unfinished()
            yield

    def _check_identity(self) -> None:
        path, terms = self.folder / "comparison.json", self.comparison.terms
        identity = plain_json.loads(plain_json.dumps(self.comparison.identity()))
        if not path.exists():
            if runs.list_runs(self.folder / "runs"):
                raise RunError(
                    f"{self.folder} has runs that no comparison made, and a comparison removes "
                    "unfinished runs from its folder; name an empty one with --folder"
                )
            content = plain_json.dumps({**identity, "pairs": terms.pairs}, indent=1) + b"\n"
            with disk_errors(f"writing {path}"):
                durable.replace_file(path, content)
            return
        try:
            known = plain_json.read(path)
            planned = int(known.pop("pairs"))
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise RunError(
                f"{path} is damaged ({error}); remove {self.folder} to begin anew"
            ) from error
        if known != identity:
            raise RunError(
                f"{self.folder} holds another comparison; name another folder with --folder"
            )
        if planned != terms.pairs:
            raise ConfigError(
                f"this comparison was begun with --pairs {planned}, and its error rate holds for "
                f"that number; leave --pairs at {planned}, or begin another with --seed "
                f"{terms.seed + planned} --pairs {terms.pairs}"
            )

    def _read(self) -> list[Pair]:
        path = self.folder / "pairs.jsonl"
        if not path.exists():
            return []
        pairs: list[Pair] = []
        try:
            for entry in plain_json.objects(path):
                pair = typed.read(Pair, entry)
                if min(x for one in (pair.a, pair.b) for x in one.numbers) <= 0:
                    raise ValueError("a number in it is not above zero")
                pairs.append(pair)
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path} is damaged after {len(pairs)} pairs ({error}); remove {self.folder} to "
                "begin anew"
            ) from error
        return pairs

    def _clear_unfinished(self) -> None:
        """Remove the runs of unfinished pairs."""
        whole = {one.run for pair in self.pairs for one in (pair.a, pair.b)}
        for run in runs.list_runs(self.folder / "runs"):
            if run.name not in whole:
                durable.remove(run.directory)

    def add(self, pair: Pair) -> None:
        """Append a pair.

        Raises:
            EnvironmentLacks: it cannot be written; the pairs before are untouched.
        """
        path = self.folder / "pairs.jsonl"
        durable.append_lines(path, plain_json.dumps(asdict(pair)) + b"\n", synced=True)
        self.pairs.append(pair)


def run_pairs(record: PairLog, tell: TellStep, report: Callable[[int, Pair], None]) -> PairedResult:
    """Run pairs until the test decides, or the planned number is reached.

    Args:
        record: open; its pairs count.
        tell: called with (part, step).
        report: called with the number of each pair and the pair.

    Raises:
        KeyboardInterrupt: a signal asked to end; finished pairs are in the record.
        MlxhogError: as `mlxhog.training.run.train`.
        WorkerFailed: a run took no step, or cannot be scored.
    """
    while not record.outcome.ended:
        number = len(record.pairs) + 1
        pair = run_pair(record, number, tell)
        record.add(pair)
        report(number, pair)
    return record.outcome


def run_pair(record: PairLog, number: int, tell: TellStep) -> Pair:
    """Train and score both sides once; the caller adds the pair to the record."""
    comparison = record.comparison
    order = comparison.sides if number % 2 else comparison.sides[::-1]
    results: dict[str, Result] = {}
    runs_after = 2 * (comparison.terms.pairs - number + 1)
    for side in order:
        runs_after -= 1
        results[side.letter] = _train(record, side, number, runs_after, tell)
    trained = {}
    tell(f"pair {number} of {comparison.terms.pairs}", "scoring both")
    with Child() as child:
        for letter, result in results.items():
            trained[letter] = TrainedRun(
                run=Path(result.run).name,
                status=result.status,
                bits_per_byte=_score(child, comparison, letter, result),
                steps=result.steps,
                tokens=result.tokens,
                seconds=result.seconds,
            )
    for result in results.values():
        durable.remove(Path(result.run) / "checkpoints")
    seed = comparison.settings(order[0], number, record.folder).seed
    return Pair(seed, order[0].letter, trained["a"], trained["b"])


def _train(record: PairLog, side: Side, number: int, runs_after: int, tell: TellStep) -> Result:
    terms = record.comparison.terms
    part = f"pair {number} of {terms.pairs}, {side.letter.upper()}"
    tell(part, "starting")
    result = train(
        record.comparison.settings(side, number, record.folder),
        observer=lambda now: tell(part, how_far(now, runs_after)),
    )
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if result.status == "unsaved":
        raise EnvironmentLacks(f"{part} cannot be scored: {result.error}")
    if result.status == "diverged" and result.tokens:
        return result
    if not result.steps or result.checkpoint is None:
        raise WorkerFailed(
            f"{side.letter.upper()} ({side.title}) took no step with {terms.each}; give more, "
            "as in --time 5m"
        )
    return result


def how_far(now: Progress, runs_after: int) -> str:
    """Return a run's progress, and the most time that it and all runs after it take.

    Args:
        now: progress of the run.
        runs_after: most runs that follow, each taken to be as long.
    """
    share = format_share(now.budget_fraction)
    if now.eta_s is None:
        return share
    all_s = now.eta_s + runs_after * (now.elapsed_s + now.eta_s)
    left = format_duration(now.eta_s)
    return f"{share}, {left} left; all pairs: at most {format_duration(all_s)}"


def _score(child: Child, comparison: Comparison, letter: str, result: Result) -> float:
    if result.status == "diverged":
        return WORST_BITS
    plan = comparison.plans[letter]
    try:
        nats, n_bytes = child.call(
            SCORING_S,
            score,
            comparison.plans["a"].workers[0].backend,
            Path(str(result.checkpoint)),
            plan.data.val,
            comparison.seq_len,
            comparison.eval_tokens,
        )
    except Failed as failure:
        raise WorkerFailed(f"{result.run} cannot be scored: {failure}") from failure
    bits = heldout.bits_per_byte(float(nats.sum()), int(n_bytes.sum()))
    return bits if math.isfinite(bits) else WORST_BITS
