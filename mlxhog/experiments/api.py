"""The Python API `compare`, and what a comparison answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint import run as runs
from mlxhog.config import plugins
from mlxhog.config.config import TrainConfig, train_config
from mlxhog.config.options import options
from mlxhog.config.sources import ConfigSource, of_keywords, refuse_both, resolve
from mlxhog.data.validation_set import n_labels
from mlxhog.errors import ConfigError, RunError
from mlxhog.experiments import BUDGETS, CompareConfig, paired_test
from mlxhog.experiments.paired_test import PairedResult
from mlxhog.experiments.pairs import SAME_FOR_BOTH, Comparison, RunPair, Side
from mlxhog.experiments.target import not_found, options_of
from mlxhog.models.registry import architectures
from mlxhog.training.supervisor.api import inherited

CALL = "compare()"

INCONCLUSIVE = "inconclusive"
NO_P_VALUE = "there is no p-value, which would count only for a number of pairs fixed before"

OF_CLUSTER = {one.name for one in options(TrainConfig).values() if one.group == "cluster"}

Subject = str | Path | TrainConfig | Mapping[str, object] | None


@dataclass(frozen=True, kw_only=True)
class ComparisonResult:
    """What a comparison found.

    Attributes:
        answer: a sentence.
        verdict: "a", "b" or "inconclusive".
        difference: the mean of B - A in bits per byte; below 0, B is better.
        interval: of the difference; 99 % sure, whenever the comparison stopped.
        pairs: all pairs of runs.
        folder: where they are kept, absolute.
        facts: everything, as `mlxhog compare --json` prints it.
    """

    answer: str
    verdict: str
    difference: float
    interval: tuple[float, float]
    pairs: tuple[RunPair, ...]
    folder: Path
    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return what `mlxhog compare --json` prints."""
        return dict(self.facts)


def compare(
    a: Subject = None,
    b: Subject = None,
    *,
    plugin: str | Path | Sequence[str | Path] | None = None,
    observer: Callable[[RunPair], None] | None = None,
    **values: object,
) -> ComparisonResult:
    """Find out which of two ways to train is better, by a sequential test of paired runs.

        compare({"optimizer": "muon"}, {"optimizer": "adamw"}, model="tiny", time=60).answer
        compare("mine.yaml", "theirs.yaml", tokens="1M")

    The same call continues a comparison that was ended: its pairs are kept in a folder.

    Args:
        a: one way: an architecture, a YAML file of options, a run, of which the options count and
            not the weights, a mapping of options of `train`, or a `TrainConfig`; None is the
            defaults.
        b: the other; None is `a`.
        plugin: Python files with layers, optimizers, strategies.
        observer: called after each pair.
        values: `pairs`, `time`, `tokens` or `steps` of each run, `val_subset_tokens`, `seed`,
            `folder`, `runs_dir`; and options of `train` for both.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input, before any training.
        EnvironmentLacks: memory or a backend is missing.
        WorkerFailed: a run took no step, or cannot be scored.
        KeyboardInterrupt: a signal asked to end; the pairs before it are kept.
    """
    plugins.load_all(plugin)
    own = {name: values.pop(name) for name in options(CompareConfig) if name in values}
    refuse_both(CALL, CompareConfig, [name for name, value in own.items() if value is not None])
    terms, both = resolve(CompareConfig, [of_keywords(CALL, own)]), of_keywords(CALL, values)
    sides = [_side(one, both, Path(terms.runs_dir)) for one in (a, a if b is None else b)]
    folder = None if terms.folder is None else Path(terms.folder)
    comparison = Comparison(sides[0], sides[1], with_budget(terms, sides), folder)
    with comparison.open():
        while not comparison.outcome.ended:
            pair = comparison.run_next(lambda part, step: None)
            if observer is not None:
                observer(pair)
    return result_of(comparison)


def _side(subject: Subject, both: ConfigSource, root: Path) -> Side:
    if isinstance(subject, TrainConfig):
        if both:
            raise ConfigError(
                f"{CALL}: {', '.join(both)}: a TrainConfig has all options; set them there"
            )
        return _from_the_start("config", subject, root)
    if isinstance(subject, Mapping):
        if name := next((one for one in SAME_FOR_BOTH if one in subject), None):
            raise ConfigError(
                f"{CALL}: {name} is not for one side of a comparison, which sets it for both; "
                "leave it out there"
            )
        return find_side(None, [both, of_keywords(CALL, subject)], root)
    return find_side(None if subject is None else str(subject), [both], root)


def find_side(subject: str | None, overrides: Sequence[ConfigSource], root: Path) -> Side:
    """Return a side: the options of a subject, with the overrides; of a run without its weights."""
    title, values = "defaults", ConfigSource()
    if subject is not None and (known := options_of(subject)) is not None:
        title, values = known
    elif subject is not None:
        try:
            run = runs.find(subject, root)
        except RunError as error:
            raise not_found(subject, root, error) from error
        title, values = run.name, inherited(run, overrides, {"follow", *OF_CLUSTER})
        if run.model.is_dir() and values.get("model", ("",))[0] not in architectures():
            values = {**values, "model": (str(run.model), str(run.config_path))}
    return _from_the_start(title, train_config([values, *overrides]), root)


def _from_the_start(title: str, config: TrainConfig, root: Path) -> Side:
    """Return a side whose runs start from the beginning; ConfigError if they would not."""
    if name := next((one for one in ("resume", "follow", "cluster") if getattr(config, one)), None):
        raise ConfigError(
            f"{title}: {name}: both sides start from the beginning, alone, on the same text; leave "
            "it out"
        )
    if config.init_from is not None:  # the runs of a comparison stand in another folder
        config = config.having(init_from=checkpoint.lasting_name(config.init_from, root))
    return Side(title, config)


def with_budget(config: CompareConfig, sides: Sequence[Side]) -> CompareConfig:
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


def _answer(outcome: PairedResult) -> str:
    low, high, sign = outcome.low, outcome.high, outcome.sign
    after = f"after {outcome.pairs} of {outcome.planned} pairs"
    if sign:
        low, high = sorted((sign * low, sign * high))
        by = f"{abs(outcome.mean):.4f} bits per byte ({low:.4f} to {high:.4f})"
        return f"{'A' if sign > 0 else 'B'} is better by {by}, {after}"
    if low == high == 0:
        return f"{INCONCLUSIVE}: A and B ended equal in every pair, {after}"
    by = f"B - A {outcome.mean:+.4f} bits per byte ({low:+.4f} to {high:+.4f})"
    return f"{INCONCLUSIVE}: {by}, {after}"


def result_of(comparison: Comparison) -> ComparisonResult:
    """Return what a comparison has found so far."""
    outcome, terms, by_speed = comparison.outcome, comparison.terms, comparison.speed
    logs = (by_speed.mean, by_speed.low, by_speed.high)  # the bound of few pairs may be large
    speed, low, high = (math.exp(one) if one < 700 else math.inf for one in logs)
    facts: dict[str, Any] = {
        "answer": _answer(outcome),
        "verdict": {1: "a", -1: "b", 0: INCONCLUSIVE}[outcome.sign],
        "difference": outcome.mean,
        "interval": [outcome.low, outcome.high],
        "error_rate": paired_test.ERROR,
        "p_value": None,
        "p_value_reason": NO_P_VALUE,
        "pairs_used": outcome.pairs,
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
    return ComparisonResult(
        answer=facts["answer"], verdict=facts["verdict"], difference=outcome.mean,
        interval=(outcome.low, outcome.high), pairs=tuple(comparison.pairs),
        folder=comparison.folder.absolute(), facts=facts,
    )  # fmt: skip
