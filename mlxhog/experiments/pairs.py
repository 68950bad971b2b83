"""Two trainings against each other, in pairs of runs that differ in nothing but their settings.

The runs of a pair have one seed: the same initial values for the same model, and the same order of
batches for the same text. A runs first in the first pair, B in the second, so that neither always
has the warmer machine. Both are scored afterwards, by one process, on the same validation text.
`paired_test` decides after each pair whether another follows. Finished pairs are kept in a folder:

FOLDER/comparison.json   identity of the comparison; written before the first pair
FOLDER/pairs.jsonl       one line for each pair that is whole; a torn last line is ignored
FOLDER/runs/             the runs, without their checkpoints once they are scored
FOLDER/lock              held while pairs are run
"""

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from mlxhog.arena.child import Child, Failed
from mlxhog.base import durable, locks, plain_json, typed
from mlxhog.base.durable import disk_errors
from mlxhog.base.processes import require_children
from mlxhog.base.quantities import format_duration, format_share
from mlxhog.checkpoint import run as runs
from mlxhog.checkpoint.new_run import default_name
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import specs_of, yaml_values_of
from mlxhog.data import validation_set
from mlxhog.display.views import TellStep
from mlxhog.errors import ConfigError, DataError, EnvironmentLacks, RunError, WorkerFailed
from mlxhog.experiments import ENDS, CompareConfig, paired_test
from mlxhog.experiments.paired_test import PairedResult
from mlxhog.experiments.short_runs import score, settings_for, train
from mlxhog.models import families
from mlxhog.progress import Progress, Result
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.plan.values import TextPlan

SCORING_S = 3600.0
UNEQUAL = 0.02  # part of the training time; a larger difference within a pair gives a warning
WORST_BITS = 8.0  # bits per byte of a uniform guess; the score of a diverged run
SAME_FOR_BOTH = ("seed", "runs_dir", "name")
"""Options that the comparison sets, so that they do not differ between its sides."""


class Side(NamedTuple):
    """One of the two: a title for people, and its options."""

    title: str
    config: TrainConfig


@dataclass(frozen=True)
class TrainedRun:
    """One run, and its result."""

    run: str  # its name in the folder of runs
    status: str  # as `Result.status`
    bits_per_byte: float  # on the validation text of the comparison
    steps: int  # of training
    tokens: int  # in these steps
    seconds: float  # of training


@dataclass(frozen=True)
class RunPair:
    """Two runs that differ in their side only."""

    seed: int  # of both
    first: str  # letter of the side that ran first
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
    """Two sides, checked before any training, and the folder of their pairs.

    `folder` None is one in comparisons/ that no other comparison has. `sides` and `plans` of their
    first runs are by letter, "a" and "b". Both are scored on the token files `validation`, which
    have the same text, in sequences of `seq_len`, the longer of theirs.

    Raises:
        ConfigError, DataError, CheckpointError: bad input, or different validation texts.
        EnvironmentLacks: memory or a backend is missing.
    """

    def __init__(self, a: Side, b: Side, terms: CompareConfig, folder: Path | None = None) -> None:
        self.sides, self.terms, self.pairs = {"a": a, "b": b}, terms, list[RunPair]()
        self.folder, self.plans = Path(), dict[str, TextPlan]()
        for letter, side in self.sides.items():
            try:
                self.plans[letter] = make_plan(self.settings(letter, 1))
            except (ConfigError, DataError) as error:
                raise type(error)(f"{letter.upper()} ({side.title}): {error}") from error
        self.validation = [plan.data.val for plan in self.plans.values()]
        texts = {(plan.data.corpus_sha256, plan.data.rule) for plan in self.plans.values()}
        if not self._same_tokens and len(texts) > 1:
            each = [
                f"{letter.upper()} ({side.title}) {one.header['bytes']:,} bytes of "
                f"{side.config.data!r} (val {side.config.val}, SHA-256 {one.digest[:12]})"
                for (letter, side), one in zip(self.sides.items(), self.validation, strict=True)
            ]
            raise ConfigError(
                f"the two sides have different validation texts: {', '.join(each)}; bits per byte "
                "of different texts cannot be compared: give both the same --data and --val"
            )
        self.seq_len = max(plan.config.seq_len for plan in self.plans.values())
        for plan in self.plans.values():
            families.check_length(plan.model, self.seq_len)
        digest = hashlib.sha256(plain_json.dumps(self._identity())).hexdigest()
        titles = "-vs-".join(default_name(side.title) for side in self.sides.values())
        self.folder = folder or Path("comparisons") / f"{titles[:60]}-{digest[:8]}"

    @property
    def _same_tokens(self) -> bool:
        return self.validation[0].digest == self.validation[1].digest

    @property
    def val_subset_tokens(self) -> int | None:
        """Tokens of the validation text that are scored; None is all, for unequal tokenizers."""
        return self.terms.val_subset_tokens if self._same_tokens else None

    def settings(self, letter: str, number: int) -> TrainConfig:
        """The options of a side's run in a pair, counted from 1."""
        budget = {unit: getattr(self.terms, unit) for unit in ("time", "tokens", "steps")}
        return settings_for(
            self.sides[letter].config,
            self.folder / "runs",
            f"pair-{number:02}-{letter}",
            **budget,
            seed=(self.terms.seed + number - 1) % 2**32,
            keep_last=1,
        )

    def differing(self) -> dict[str, tuple[object, object]]:
        """The options that differ, as people write them: name -> (of A, of B)."""
        a, b = map(_options_of, self.sides.values())
        both = {
            name: (
                a.get(name, spec.to_yaml_value(spec.default)),
                b.get(name, spec.to_yaml_value(spec.default)),
            )
            for name, spec in {**specs_of(TrainConfig, b), **specs_of(TrainConfig, a)}.items()
            if name in a or name in b
        }
        return {name: (of_a, of_b) for name, (of_a, of_b) in both.items() if of_a != of_b}

    def notes(self) -> Iterator[str]:
        """Yield remarks for the user: on differences of the sides, and on the runs."""
        a, b = self.plans.values()
        if not self.differing() and a.model == b.model:
            yield "A and B have the same options"
        of_a, of_b = (
            (plan.data.train.digest, plan.config.seq_len,
             plan.config.sequences_per_ticket)
            for plan in (a, b)
        )  # fmt: skip
        if of_a != of_b:
            yield "pairs share seeds but not batches: text, --seq-len or --batch-size differ"
        per_step = [plan.mean_tokens_per_step for plan in (a, b)]
        if self.terms.steps is not None and per_step[0] != per_step[1]:
            yield f"a step of A has {per_step[0]:,.0f} tokens, of B {per_step[1]:,.0f}"
        if not self._same_tokens:
            yield "tokenizers differ: runs are scored on all of the validation text"
        if a.config.seq_len != b.config.seq_len:
            yield f"both are scored on sequences of {self.seq_len} tokens"
        for side in self.sides:
            if n := sum(getattr(pair, side).status == "diverged" for pair in self.pairs):
                yield (
                    f"{side.upper()} diverged in {n} of {len(self.pairs)} runs, each of which "
                    f"counts as {WORST_BITS:g} bits per byte"
                )
        unequal = sum(abs(pair.a.seconds / pair.b.seconds - 1) > UNEQUAL for pair in self.pairs)
        if unequal and self.terms.time is not None:
            yield (
                f"in {unequal} pairs the runs trained for unequal times, as a step is long; give "
                "more --time"
            )

    def _identity(self) -> dict[str, Any]:
        """Return all that identifies a comparison; it has no pairs of another identity."""
        sides = {
            letter: {
                "title": side.title,
                "options": {k: x for k, x in _options_of(side).items() if k != "model"},
                "model": self.plans[letter].model.to_dict(),
                "text_sha256": self.plans[letter].data.corpus_sha256,
            }
            for letter, side in self.sides.items()
        }
        names = ("time", "tokens", "steps", "pairs", "seed", "val_subset_tokens")
        terms = {name: getattr(self.terms, name) for name in names}
        return {**sides, **terms, "val_sha256": self.validation[0].digest,
                "mlxhog": version("mlxhog")}  # fmt: skip

    # -- the folder ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Lock the folder, and read the pairs of earlier commands.

        Raises:
            RunError: another process holds it, it is another comparison's, or it is damaged.
            EnvironmentLacks: it cannot be written.
        """
        require_children()
        with disk_errors(f"making {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)

        def refusal(why: str) -> RunError:
            return RunError(f"the comparison in {self.folder} {why}, or name another --folder")

        with locks.lock(self.folder, refusal):
            try:
                self._read()
            except (OSError, ValueError) as error:
                raise RunError(
                    f"{self.folder} is damaged after {len(self.pairs)} pairs ({error}); remove "
                    "it to start from the beginning"
                ) from error
            whole = {one.run for pair in self.pairs for one in (pair.a, pair.b)}
            for run in runs.list_runs(self.folder / "runs"):
                if run.name not in whole:  # of a pair that is not
                    durable.remove(run.directory)
            yield

    def _read(self) -> None:
        path = self.folder / "comparison.json"
        identity = plain_json.loads(plain_json.dumps(self._identity()))
        stored = plain_json.read(path) if path.exists() else None
        # Unfinished runs are removed from the folder, so it has to be this comparison's.
        if stored != identity and (stored or runs.list_runs(self.folder / "runs")):
            raise RunError(
                f"{self.folder} holds another comparison, or runs that no comparison made; name "
                "another folder with --folder"
            )
        if stored is None:
            with disk_errors(f"writing {path}"):
                durable.replace_file(path, plain_json.dumps(identity, indent=1) + b"\n")
        with contextlib.suppress(FileNotFoundError):
            for entry in plain_json.objects(self.folder / "pairs.jsonl"):
                self.pairs.append(typed.read(RunPair, entry))

    # -- the pairs -------------------------------------------------------------------------------

    @property
    def outcome(self) -> PairedResult:
        """The result of the pairs so far."""
        return paired_test.decide([pair.difference for pair in self.pairs], self.terms.pairs)

    @property
    def speed(self) -> PairedResult:
        """The result of these pairs for the logarithm of A's speed over B's."""
        pairs = self.pairs[: self.outcome.pairs]
        return paired_test.look([pair.log_speed for pair in pairs], self.terms.pairs)

    def run_next(self, tell: TellStep) -> RunPair:
        """Train and score both sides once more, and append the pair; the folder is open.

        Raises:
            KeyboardInterrupt, MlxhogError: as `run_pair`.
            EnvironmentLacks: the pair cannot be written; those before are untouched.
        """
        pair = self.run_pair(len(self.pairs) + 1, tell)
        line = plain_json.dumps(asdict(pair)) + b"\n"
        durable.append_lines(self.folder / "pairs.jsonl", line, synced=True)
        self.pairs.append(pair)
        return pair

    def run_pair(self, number: int, tell: TellStep) -> RunPair:
        """Train and score both sides once, as pair `number` from 1 on.

        Raises:
            KeyboardInterrupt: a signal asked to end.
            MlxhogError: as `mlxhog.training.supervisor.training.train`.
            WorkerFailed: a run took no step, or cannot be scored.
        """
        part, order = f"pair {number} of {self.terms.pairs}", "ab" if number % 2 else "ba"
        after = 2 * (self.terms.pairs - number)  # runs of later pairs
        results = {
            letter: self._train(letter, number, f"{part}, {letter.upper()}", after + later, tell)
            for letter, later in zip(order, (1, 0), strict=True)
        }
        tell(part, "scoring both")
        with Child(store={"validation": self.validation}) as child:  # who may outlive the cache
            a, b = (self._scored(child, letter, results[letter]) for letter in "ab")
        for result in results.values():
            durable.remove(Path(result.run) / "checkpoints")
        return RunPair(self.settings("a", number).seed, order[0], a, b)

    def _train(self, letter: str, number: int, part: str, after: int, tell: TellStep) -> Result:
        tell(part, "starting")
        result = train(
            self.settings(letter, number), observer=lambda now: tell(part, _how_far(now, after))
        )
        if result.status == "unsaved":
            raise EnvironmentLacks(f"{part} cannot be scored: {result.error}")
        if result.status == "diverged" and result.tokens:
            return result
        if not result.steps or result.checkpoint is None:
            raise WorkerFailed(
                f"{letter.upper()} ({self.sides[letter].title}) took no step with "
                f"{self.terms.each}; give more, as in --time 5m"
            )
        return result

    def _scored(self, child: Child, letter: str, result: Result) -> TrainedRun:
        bits = WORST_BITS
        if result.status != "diverged":
            try:
                nats, n_bytes = child.call(
                    SCORING_S,
                    score,
                    self.plans["a"].workers[0].backend,
                    Path(str(result.checkpoint)),
                    self.plans[letter].data.val,
                    self.seq_len,
                    self.val_subset_tokens,
                    self.plans[letter].config.base_weights,
                )
            except Failed as failure:
                raise WorkerFailed(f"{result.run} cannot be scored: {failure}") from failure
            bits = validation_set.bits_per_byte(float(nats.sum()), int(n_bytes.sum()))
        return TrainedRun(
            run=Path(result.run).name,
            bits_per_byte=min(WORST_BITS, bits),  # NaN counts as the worst
            **{name: getattr(result, name) for name in ("status", "steps", "tokens", "seconds")},
        )


def _options_of(side: Side) -> dict[str, object]:
    """A side's options as people write them, without those that the comparison sets."""
    values = yaml_values_of(side.config)
    specs = specs_of(TrainConfig, values)
    return {
        name: value
        for name, value in values.items()
        if name not in SAME_FOR_BOTH and specs[name].group not in ENDS
    }


def _how_far(now: Progress, runs_after: int) -> str:
    """A run's progress, and the most time that it and all runs after it take, each as long."""
    share = format_share(now.budget_fraction)
    if now.eta_s is None:
        return share
    all_s = now.eta_s + runs_after * (now.elapsed_s + now.eta_s)
    left = format_duration(now.eta_s)
    return f"{share}, {left} left; all pairs: at most {format_duration(all_s)}"
