"""Two trainings against each other, in pairs of runs that differ in nothing but their settings.

The runs of a pair have one seed: the same initial values for the same model, and the same order of
batches for the same text. They follow each other directly, A first in the first pair, B in the
second, so that neither always has the warmer machine. Both get the same time or the same tokens,
are not evaluated meanwhile, and are scored afterwards, by one process, on the same held-out text.
`paired_test` decides after each pair whether another follows; `pair_runs` runs them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlxhog.checkpoint.creation import default_name
from mlxhog.config.config import TrainConfig
from mlxhog.config.contradictions import choosing
from mlxhog.config.options import options
from mlxhog.config.sources import specs_of, spelt_values_of
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import ConfigError, DataError
from mlxhog.files import plain_json
from mlxhog.files.quantities import Interval, format_duration
from mlxhog.models import families
from mlxhog.training.plan import Plan, make_plan

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
class Terms:
    """Options of both sides.

    Attributes:
        pairs: most pairs.
        time: seconds that each run trains; None if another budget ends it.
        tokens: that each run trains on; None if another budget ends it.
        seed: of the first pair; the next one has the next number.
        eval_tokens: held-out text that every run is scored on.
        steps: that each run takes; None if another budget ends it.
    """

    pairs: int
    time: float | None
    tokens: int | None
    seed: int
    eval_tokens: int
    steps: int | None = None

    @property
    def each(self) -> str:
        """The budget of a run, for people."""
        if self.time is not None:
            return format_duration(self.time)
        if self.steps is not None:
            return f"{self.steps:,} steps"
        return f"{self.tokens:,} tokens"


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

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Pair:
        """Return a pair from its JSON form.

        Raises:
            LookupError, TypeError, ValueError: it is not the form of a pair.
        """
        a, b = (TrainedRun(**line[letter]) for letter in "ab")
        numbers = [float(x) for one in (a, b) for x in (one.bits_per_byte, one.seconds, one.tokens)]
        if not all(math.isfinite(x) and x > 0 for x in numbers):
            raise ValueError("a number in it is not above zero")
        return cls(int(line["seed"]), str(line["first"]), a, b)


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
        never = Interval()
        budget: dict[str, Any] = {
            spec.name: spec.default for spec in options(TrainConfig).values() if spec.group in ENDS
        }
        budget |= {unit: getattr(self.terms, unit) for unit in ("time", "tokens", "steps")}
        return replace(
            side.config,
            **budget,
            seed=(self.terms.seed + number - 1) % 2**32,
            **choosing(TrainConfig, eval_every="off"),
            sample_every=never,
            save_every=never,
            keep_last=1,
            out=str(folder / "runs"),
            name=f"pair-{number:02}-{side.letter}",
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
        unset = {"pairs", *({"steps"} if self.terms.steps is None else ())}
        terms = {name: value for name, value in asdict(self.terms).items() if name not in unset}
        return {**sides, **terms, "held_out_sha256": self.held_out_sha256,
                "mlxhog": version("mlxhog")}  # fmt: skip

    def folder_name(self) -> str:
        """Return a name that the same comparison always has, and no other one."""
        identity = plain_json.dumps(self.identity())
        titles = "-vs-".join(default_name(side.title) for side in self.sides)
        return f"{titles[:60]}-{hashlib.sha256(identity).hexdigest()[:8]}"
