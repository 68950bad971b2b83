"""Runs the pairs of a comparison, and keeps finished pairs in a folder.

FOLDER/comparison.json   identity of the comparison; written before the first pair
FOLDER/pairs.jsonl       one line for each pair that is whole; a torn last line is ignored
FOLDER/runs/             the runs, without their checkpoints once they are scored
FOLDER/lock              held while pairs are run
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from mlxhog.arena.child import Child, Failed
from mlxhog.checkpoint import run as runs
from mlxhog.data import heldout
from mlxhog.errors import ConfigError, EnvironmentLacks, RunError, WorkerFailed
from mlxhog.files import durable, plain_json
from mlxhog.files.durable import disk_errors
from mlxhog.files.quantities import format_duration, format_share
from mlxhog.report.metrics import Progress, Result
from mlxhog.report.views import TellStep
from mlxhog.theory import paired_test
from mlxhog.theory.paired_test import PairedResult
from mlxhog.theory.pairs import WORST_BITS, Comparison, Pair, Side, TrainedRun
from mlxhog.theory.short_runs import score
from mlxhog.training import trainer

SCORING_S = 3600.0
UNEQUAL = 0.02  # part of the training time; a larger difference within a pair gives a warning


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
            lock = (self.folder / "lock").open("a+")
        with lock:
            try:
                durable.take_lock(lock)
            except durable.LockHeld as error:
                raise RunError(
                    f"process {error.holder} runs the comparison in {self.folder}; wait for it, "
                    "or stop it"
                ) from error
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
                pairs.append(Pair.read(entry))
        except (OSError, ValueError, LookupError, TypeError) as error:
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
        MlxhogError: as `mlxhog.training.trainer.train`.
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
    result = trainer.train(
        record.comparison.settings(side, number, record.folder),
        observer=lambda now: tell(part, how_far(now, runs_after)),
        whole_time=True,
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
