"""Two trainings against each other, in pairs of runs that differ in nothing but their settings.

The runs of a pair have one seed, so the same initial values where the model is the same, and the
same order of batches where the text is. They follow each other directly, A first in the first pair,
B in the second, so that neither always has the warmer machine. Both get the same time or the same
tokens, are not evaluated meanwhile, and are scored afterwards, by one process, on the same held-out
text. `paired_test` says after each pair whether there has to be another.

    FOLDER/comparison.json   what is compared; written before the first pair
    FOLDER/pairs.jsonl       one line for each pair that is whole; a torn last line is ignored
    FOLDER/runs/             the runs, without their checkpoints once they are scored
    FOLDER/lock              held while pairs are run
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlxhog.arena.child import Child, Failed, Lane
from mlxhog.checkpoint import formats
from mlxhog.checkpoint import run as runs
from mlxhog.config import limits
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.config.quantities import Interval
from mlxhog.data import heldout
from mlxhog.data.tokens import TokenFile
from mlxhog.decoding.model import Model, tokenizer_of
from mlxhog.errors import ConfigError, DataError, EnvironmentLacks, RunError, WorkerFailed
from mlxhog.files import durable, plain_json
from mlxhog.files.durable import disk_errors
from mlxhog.models import families
from mlxhog.report.metrics import Result
from mlxhog.theory import paired_test
from mlxhog.theory.paired_test import Outcome
from mlxhog.training import trainer
from mlxhog.training.plan import Plan, make_plan

Tell = Callable[[str, str], None]

WORST_BITS = 8.0
"""What a byte costs who knows nothing of it; a run that diverged has come to that."""

ROWS = 16
SCORING_S = 3600.0
UNEQUAL = 0.02  # part of the training time by which the runs of a pair may differ unnoticed
SAME_FOR_BOTH = ("seed", "out", "name")
"""Options that the comparison sets: they are no difference between its sides."""

ENDS = ("budget", "epochs and early stopping")
"""Groups of options that say when a run ends; in a comparison its terms do."""


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        letter: "a" or "b".
        title: what people call it.
        config: its options; seed, budget and what a comparison does without are set for each run.
    """

    letter: str
    title: str
    config: TrainConfig


@dataclass(frozen=True)
class Terms:
    """What holds for both sides.

    Attributes:
        pairs: most of them.
        time: seconds that each run trains; None where tokens are its budget.
        tokens: that each run trains on; None where time is its budget.
        seed: of the first pair; the next one has the next number.
        eval_tokens: held-out text that every run is scored on.
    """

    pairs: int
    time: float | None
    tokens: int | None
    seed: int
    eval_tokens: int

    @property
    def each(self) -> str:
        """The budget of a run, for people."""
        return f"{self.time:g} s" if self.time is not None else f"{self.tokens:,} tokens"


@dataclass(frozen=True)
class Trained:
    """One run, and what it came to.

    Attributes:
        run: its name in the folder of runs.
        status: as `Result.status`.
        bits_per_byte: on the held-out text of the comparison.
        steps: that it took.
        tokens: in them.
        seconds: of training.
    """

    run: str
    status: str
    bits_per_byte: float
    steps: int
    tokens: int
    seconds: float


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
    a: Trained
    b: Trained

    @property
    def difference(self) -> float:
        """Bits per byte of B less those of A: above zero where A is better."""
        return self.b.bits_per_byte - self.a.bits_per_byte

    @property
    def log_speed(self) -> float:
        """Logarithm of how many times as fast A trained as B."""
        speeds = [one.tokens / one.seconds for one in (self.a, self.b)]
        return math.log(speeds[0] / speeds[1])

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Pair:
        """Take one from its JSON form.

        Raises:
            LookupError, TypeError, ValueError: it is none.
        """
        a, b = (Trained(**line[letter]) for letter in "ab")
        numbers = [float(x) for one in (a, b) for x in (one.bits_per_byte, one.seconds, one.tokens)]
        if not all(math.isfinite(x) and x > 0 for x in numbers):
            raise ValueError("a number in it is not above zero")
        return cls(int(line["seed"]), str(line["first"]), a, b)


class Comparison:
    """Two sides that may be compared, checked before anything is trained.

    Attributes:
        sides: A and B.
        terms: of both.
        plans: of their first runs.
        seq_len: length of the sequences on which both are scored, the longer of theirs.
        eval_tokens: of the held-out text; None is all of it, where tokenizers differ.
        notes: what the user should know of how far the sides are alike.
    """

    def __init__(self, sides: tuple[Side, Side], terms: Terms) -> None:
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
        said = [
            f"{side.letter.upper()} ({side.title}) {one.header['bytes']:,} bytes of "
            f"{side.config.data!r} (val {side.config.val}, SHA-256 {one.digest[:12]})"
            for side, one in zip(self.sides, held_out, strict=True)
        ]
        raise ConfigError(
            f"the two sides have different held-out texts: {said[0]}, {said[1]}; bits per byte of "
            "different texts cannot be compared: give both the same --data and --val"
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
        if not same_tokens:
            yield "tokenizers differ: runs are scored on all of the held-out text"
        if a.config.seq_len != b.config.seq_len:
            yield f"both are scored on sequences of {self.seq_len} tokens"

    def differing(self) -> dict[str, tuple[object, object]]:
        """The options that differ, as people write them: name -> (of A, of B)."""
        a, b = (side.config for side in self.sides)
        return {
            name: (spec.spell(getattr(a, name)), spec.spell(getattr(b, name)))
            for name, spec in options(TrainConfig).items()
            if name not in SAME_FOR_BOTH
            and spec.group not in ENDS
            and getattr(a, name) != getattr(b, name)
        }

    def settings(self, side: Side, number: int, folder: Path) -> TrainConfig:
        """The options of a side's run in a pair, counted from 1."""
        never = Interval()
        budget: dict[str, Any] = {
            spec.name: spec.default for spec in options(TrainConfig).values() if spec.group in ENDS
        }
        budget |= {"time": self.terms.time, "tokens": self.terms.tokens}
        return replace(
            side.config,
            **budget,
            seed=(self.terms.seed + number - 1) % 2**32,
            eval_every=never,
            sample_every=never,
            save_every=never,
            keep_last=1,
            out=str(folder / "runs"),
            name=f"pair-{number:02}-{side.letter}",
        )

    def identity(self) -> dict[str, Any]:
        """All that says what is compared; pairs of another identity are another comparison."""
        sides = {
            side.letter: {
                "title": side.title,
                "options": {
                    name: spec.spell(getattr(side.config, name))
                    for name, spec in options(TrainConfig).items()
                    if name not in (*SAME_FOR_BOTH, "model") and spec.group not in ENDS
                },
                "model": self.plans[side.letter].model.to_dict(),
                "text_sha256": self.plans[side.letter].data.corpus_sha256,
            }
            for side in self.sides
        }
        terms = {name: value for name, value in asdict(self.terms).items() if name != "pairs"}
        return {**sides, **terms, "held_out_sha256": self.held_out_sha256,
                "mlxhog": version("mlxhog")}  # fmt: skip

    def folder_name(self) -> str:
        """A name that the same comparison always has, and no other one."""
        identity = plain_json.dumps(self.identity())
        titles = "-vs-".join(runs.default_name(side.title) for side in self.sides)
        return f"{titles[:60]}-{hashlib.sha256(identity).hexdigest()[:8]}"


class Record:
    """The folder of a comparison: the pairs that are done, whatever has ended it."""

    def __init__(self, folder: Path, comparison: Comparison) -> None:
        """Name the folder; `open` makes or reads it."""
        self.folder, self.comparison = folder, comparison
        self.pairs: list[Pair] = []

    @property
    def outcome(self) -> Outcome:
        """What the pairs so far say."""
        return paired_test.judge(
            [pair.difference for pair in self.pairs], self.comparison.terms.pairs
        )

    @property
    def speed(self) -> Outcome:
        """What they say of the logarithm of how many times as fast A trains as B."""
        told = self.pairs[: self.outcome.pairs]
        return paired_test.look([pair.log_speed for pair in told], self.comparison.terms.pairs)

    def warnings(self) -> Iterator[str]:
        """What the user should know of the runs."""
        for letter in "ab":
            of_side: list[Trained] = [getattr(pair, letter) for pair in self.pairs]
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
                f"{self.pairs[unequal[0] - 1].b.seconds:.1f} s): workers started slowly; give "
                "more --time"
            )

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Hold the folder alone, with the pairs that earlier commands have done.

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
                durable.take(lock)
            except durable.Held as error:
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
                f"this comparison was begun with --pairs {planned}, and what it promises holds for "
                f"that number; leave --pairs at {planned}, or begin another with --seed "
                f"{terms.seed + planned} --pairs {terms.pairs}"
            )

    def _read(self) -> list[Pair]:
        path = self.folder / "pairs.jsonl"
        if not path.exists():
            return []
        pairs: list[Pair] = []
        try:
            for line in limits.read_bytes(path).split(b"\n")[:-1]:
                pairs.append(Pair.read(plain_json.loads(line)))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RunError(
                f"{path} is damaged after {len(pairs)} pairs ({error}); remove {self.folder} to "
                "begin anew"
            ) from error
        return pairs

    def _clear_unfinished(self) -> None:
        """Remove what a command that was ended has left of a pair."""
        kept = {one.run for pair in self.pairs for one in (pair.a, pair.b)}
        for left in runs.list_runs(self.folder / "runs"):
            if left.name not in kept:
                durable.remove(left.directory)

    def add(self, pair: Pair) -> None:
        """Append a pair.

        Raises:
            EnvironmentLacks: it cannot be written; the pairs before are untouched.
        """
        path = self.folder / "pairs.jsonl"
        with disk_errors(f"writing {path}"), path.open("a+b") as file:
            file.truncate(durable.end_of_last_line(file))
            file.write(plain_json.dumps(asdict(pair)) + b"\n")
            file.flush()
            durable.flush(file.fileno())
        self.pairs.append(pair)


def run_pairs(record: Record, tell: Tell, report: Callable[[int, Pair], None]) -> Outcome:
    """Run pairs until they tell, or as many as were planned are done.

    Args:
        record: open; what it holds counts.
        tell: told (part, step).
        report: told the number of each pair and what it came to.

    Raises:
        KeyboardInterrupt: a signal asked to end; the pairs that are done are in the record.
        MlxhogError: as `mlxhog.training.trainer.train`.
        WorkerFailed: a run took no step, or cannot be scored.
    """
    while not record.outcome.ended:
        number = len(record.pairs) + 1
        pair = run_pair(record, number, tell)
        record.add(pair)
        report(number, pair)
    return record.outcome


def run_pair(record: Record, number: int, tell: Tell) -> Pair:
    """Train and score both sides once; the pair is not in the record yet."""
    comparison = record.comparison
    order = comparison.sides if number % 2 else comparison.sides[::-1]
    results: dict[str, Result] = {}
    for side in order:
        part = f"pair {number} of {comparison.terms.pairs}, {side.letter.upper()}"
        results[side.letter] = _train(comparison, side, number, record.folder, part, tell)
    trained = {}
    tell(f"pair {number} of {comparison.terms.pairs}", "scoring both")
    with Child() as child:
        for letter, result in results.items():
            trained[letter] = Trained(
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


def _train(
    comparison: Comparison, side: Side, number: int, folder: Path, part: str, tell: Tell
) -> Result:
    tell(part, "starting")
    settings = comparison.settings(side, number, folder)
    result = trainer.train(
        settings, observer=lambda now: tell(part, f"{now.budget_fraction:.0%}, {now.step} steps")
    )
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if result.status == "unsaved":
        raise EnvironmentLacks(f"{part} cannot be scored: {result.error}")
    if result.status == "diverged" and result.tokens:
        return result
    if not result.steps or result.checkpoint is None:
        raise WorkerFailed(
            f"{side.letter.upper()} ({side.title}) took no step with {comparison.terms.each}; give "
            "more, as in --time 5m"
        )
    return result


def _score(child: Child, comparison: Comparison, letter: str, result: Result) -> float:
    if result.status == "diverged":
        return WORST_BITS
    plan = comparison.plans[letter]
    try:
        bits: float = child.call(
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
    return bits if math.isfinite(bits) else WORST_BITS


def score(
    lane: Lane,
    backend: str,
    checkpoint: Path,
    held_out: Path,
    seq_len: int,
    eval_tokens: int | None,
) -> float:
    """Held-out bits per byte of a checkpoint, on text spread evenly over it; runs in a child.

    Args:
        lane: of the child.
        backend: what computes.
        checkpoint: the model.
        held_out: its token file.
        seq_len: length of a sequence; each begins without a state.
        eval_tokens: about how many labels; None is all of the text.
    """
    opened = formats.open(checkpoint)
    model = Model.without_weights(backend, opened.config, tokenizer_of(opened), checkpoint)
    model.backend.load(opened.config, opened.tensors)
    batches = heldout.batches(
        TokenFile.open(held_out), seq_len=seq_len, batch_size=ROWS, eval_tokens=eval_tokens
    )
    nats, n_bytes = 0.0, 0
    for batch in batches:
        nats, n_bytes = nats + model.backend.evaluate(batch).nats, n_bytes + batch.n_bytes
    return heldout.bits_per_byte(nats, n_bytes)
