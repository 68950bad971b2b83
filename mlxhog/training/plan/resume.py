"""The run that `--resume` continues: its checkpoint, its remaining budget, checks that it fits.

Its model, tokenizer and text come from its folder, unless options name others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from mlxhog import optim
from mlxhog.arena.ledger import Position
from mlxhog.base.paths import quoted, quoted_paths
from mlxhog.base.quantities import format_count, parse_number
from mlxhog.checkpoint import checkpoint, compatible, hub
from mlxhog.checkpoint.checkpoint import Checkpoint
from mlxhog.checkpoint.run import Run, run_of
from mlxhog.config.budget import Budget
from mlxhog.config.components import OPTIMIZERS, STRATEGIES
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.config.sources import read_yaml
from mlxhog.config.train_options import DEFAULT_TIME_S
from mlxhog.data.batches import Growth
from mlxhog.data.prepare import Prepared
from mlxhog.data.split import KnownText
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.display.views import Tell
from mlxhog.errors import CheckpointError, ConfigError, DataError
from mlxhog.models import families, registry
from mlxhog.models.families import ModelConfig, param_count
from mlxhog.strategies import Serial, Strategy
from mlxhog.training.plan import saved_state
from mlxhog.training.plan.initial_weights import InitialWeights, keeps_vocabulary

MIN_KEPT = 0.5  # share of a run's documents that its text must have when it is resumed


def located(config: TrainConfig) -> TrainConfig:
    """Return the configuration with lasting names of the checkpoints that it begins with."""
    root = Path(config.runs_dir)
    if config.init_from is not None:
        config = config.having(init_from=checkpoint.lasting_name(config.init_from, root))
    if config.resume is not None:
        config = config.having(resume=str(checkpoint.resumable(config.resume, root)[1]))
    return config


def with_model_and_tokenizer(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the model and the tokenizer that `auto` leaves open.

    They are those of the checkpoint that a resumed run continues, or that a new one begins with.
    """
    if config.resume is not None:
        _, path = checkpoint.resumable(config.resume, Path(config.runs_dir))
    elif config.init_from is not None:
        path = checkpoint.locate(config.init_from, Path(config.runs_dir))
    else:
        return config
    if config.model == "auto":
        config = config.having(model=str(path))
    if config.tokenizer == "auto":
        folder = hub.tokenizer_folder(path if path.is_dir() else path.parent)
        if not (folder / "tokenizer.json").is_file():
            raise DataError(
                f"{folder} holds no tokenizer.json, so nothing says what its ids mean; name the "
                "tokenizer of its training text with --tokenizer"
            )
        config = config.having(tokenizer=str(folder))
    return config


def known_text(config: TrainConfig) -> dict[str, Any]:
    """Return what `prepare` is told of the text of the run that is resumed or begun from."""
    if config.resume is not None:
        run, path = checkpoint.resumable(config.resume, Path(config.runs_dir))
        own = stored_options(run).get("tokenizer") in (config.tokenizer, "auto")
        known = KnownText.read(run.directory)
        return {"known": known, "resumes": known is not None, "learned": path if own else None}
    source = None if config.init_from is None else run_of(Path(config.init_from).resolve())
    return {} if source is None else {"known": KnownText.read(source.directory)}


@dataclass(frozen=True)
class Resumption:
    """A run, and the checkpoint from which it resumes."""

    config: TrainConfig  # of this call, with the run's own budget if the call has none
    run: Run
    checkpoint: Checkpoint
    own_budget: Budget | None  # rest of the run's own budget, if this call has none
    text: Literal["same", "grown", "changed"] = "same"  # training text, beside the checkpoint's

    @classmethod
    def of(cls, config: TrainConfig, model: ModelConfig) -> Self | None:
        """Load the run that the configuration resumes; None for a new run."""
        if config.resume is None:
            return None
        run, path = checkpoint.resumable(config.resume, Path(config.runs_dir))
        saved = checkpoint.load(path)
        saved_state.check(saved.path, saved.state)
        # Unless the vocabulary is the model's own, the tokenizers are compared instead.
        ignored = set() if keeps_vocabulary(config) else {"vocab_size"}
        compatible.check_architecture(saved, model, ignored)
        config = _with_strategy(_with_optimizer(config, saved, model), saved)
        begins_to_follow = config.follow is not None and not saved.state["followed"]
        if config.has_budget or begins_to_follow:  # the followed text has no end
            return cls(config, run, saved, None)
        left, asked = saved.state["left"], saved.state["budget"]
        own = {unit: asked[unit] for unit in ("steps", "tokens", "time", "epochs")}
        if config.follow is None and not any(own.values()):  # its folder's text had no end
            return cls(replace(config, time=DEFAULT_TIME_S), run, saved, None)
        rest = {unit: left[unit] for unit in ("steps", "tokens", "seconds")}
        # It is zero if the run was stopped after training, during its last evaluation.
        if saved.state["over"] or any(n is not None and n <= 0 for n in rest.values()):
            rest = {unit: None if n is None else 0 for unit, n in rest.items()}
        budget = Budget(**rest)
        asked_for = ", ".join(f"{unit} {n}" for unit, n in own.items() if n is not None)
        if budget.is_used_up and run.read_status().get("status") == "done":
            ended = saved.state["ended"] or f"it has used up its budget, {asked_for}"
            raise ConfigError(
                f"the run {run.directory} is done: {ended}; give "
                "a further budget with --steps, --tokens or --time: mlxhog train --resume "
                f"{quoted(run.directory)} --steps {own['steps'] or 1000}"
            )
        if budget.is_used_up and (newer := _newer_budget(run, own)):
            flags = " ".join(f"--{unit} {n}" for unit, n in newer.items())
            raise ConfigError(
                f"the budget of {path}, {asked_for}, is used up, and the run was continued with "
                f"{flags}, of which nothing is in it; give that budget again: mlxhog train "
                f"--resume {quoted(run.directory)} {flags}"
            )
        return cls(replace(config, **own), run, saved, budget)

    @property
    def state(self) -> Mapping[str, Any]:
        """The state in the checkpoint."""
        return self.checkpoint.state

    @cached_property
    def stored(self) -> dict[str, Any]:
        """The options in the run's folder, by name."""
        return stored_options(self.run)

    def automatic(self) -> dict[str, float]:
        """Return the run's earlier values of options that are "auto"."""
        names = [name for name in self.run.automatic() if self.stored.get(name, "auto") != "auto"]
        values = {}
        for name in names:
            with suppress(ValueError):  # a stranger's run.json may name any option
                values[name] = parse_number(self.stored[name])
        return values

    def budget(self, asked: Budget, batches_per_step: float) -> Budget:
        """The budget of this call: as asked, or the rest of the run's own.

        The rest of epochs or tokens is converted to steps of this number of batches. Further tokens
        of a cluster count from those that its other machines have trained.
        """
        budget, rest = self.own_budget or asked, self.state["left"]
        if self.own_budget is None and budget.tokens is not None and self.config.cluster:
            of_all = self.state.get("cluster", {"tokens": 0, "committed": 0})
            elsewhere = max(0, of_all["tokens"] - of_all["committed"])
            budget = replace(budget, tokens=budget.tokens + elsewhere)
        if self.own_budget is not None and budget.steps is not None and "batches_per_step" in rest:
            ratio = rest["batches_per_step"] / batches_per_step
            budget = replace(
                budget,
                steps=math.ceil(round(budget.steps * ratio, 6)),
                equal_steps_before=rest["steps_before"] * ratio,
            )
        used = {
            f"{unit}_before": self.state["used"][unit] for unit in ("steps", "tokens", "seconds")
        }
        return replace(budget, **used)

    def notes(self, workers: int) -> Iterable[str]:
        """Where the run continues, with this number of workers, and under which name."""
        is_over = self.own_budget is not None and self.own_budget.is_used_up
        only = ", its training is over: only the evaluation is left" * is_over
        yield f"resuming from step {self.state['used']['steps']}{only}"
        if (name := self.config.name) not in (None, self.stored.get("name")):
            yield f"it keeps its name, {self.run.name}: --name {name} is for a new run"
        if joined := self.state["joined"]:
            yield (
                f"{abs(joined)} worker{'s' * (abs(joined) > 1)} had "
                f"{'joined' if joined > 0 else 'left'} when this was saved; the run resumes with "
                f"the {workers} of its configuration (mlxhog join adds others)"
            )

    def position(self, n: int, size: int) -> Position | None:
        """The position at which training continues in the text, of `--data` or of `--follow`.

        A run may alternate between the two; each has its own position. None is the beginning. `n`
        are the batches of an epoch now, of this size. Changed text continues in a new epoch.
        """
        at: Position | None = self.state["ledgers"].get(kind := text_kind(self.config))
        is_same = self.text == "same" or kind == "stream"
        if at is None or is_same or at["n"] != -(-self.state["text"]["rows"] // size):
            return at
        if self.text == "grown":  # tickets of the next epoch have other text now
            return {**at, "done": [one for one in at["done"] if one < at["n"]], "n": n}
        epoch = at["epoch"] + (at["watermark"] > 0 or bool(at["done"]))
        return Position(epoch=epoch, watermark=0, done=[], torn=at["torn"], n=n)

    def grown(self) -> tuple[Growth, ...]:
        """Return when the training text grew in the present epoch, also now."""
        at: Position | None = self.state["ledgers"].get("data")
        if at is None or self.text == "changed" or not (at["watermark"] or at["done"]):
            return ()
        own, epoch = self.state["text"], at["epoch"]
        earlier = [one for value in own["grown"] if (one := Growth(**value)).epoch == epoch]
        now = [Growth(epoch, own["rows"], self.state["tokens_sha256"])] * (self.text == "grown")
        return (*earlier, *now)

    def with_text(self, data: Prepared) -> Self:
        """Return this with the text now; a CheckpointError if tokenizer or text are others."""
        compatible.check_tokenizer(self.checkpoint, data.tokenizer)
        if data.train.digest == self.state["tokens_sha256"]:
            return self
        if data.kept < MIN_KEPT:
            raise self.other_text(data.corpus.in_brackets())
        own = data.train.digest_of(self.state["text"]["documents"])
        return replace(self, text="grown" if own == self.state["tokens_sha256"] else "changed")

    def other_text(self, why: str) -> CheckpointError:
        """Return the refusal of other text than that of the checkpoint."""
        run, data = quoted(str(self.config.resume)), quoted_paths(self.config.data)
        return CheckpointError(
            f"{self.config.resume} was trained with other text than --data {data} holds now{why}; "
            f"begin a new run with its weights: mlxhog train --init-from {run} --data {data}"
        )

    def of_text(self, data: Prepared) -> Iterable[str]:
        """Say what is new in the text."""
        if new := data.added:
            yield (
                f"{new['documents']:,} new documents, {new['val_documents']:,} of them for "
                "validation, join the text; to train on files as they arrive: mlxhog train "
                "--follow FOLDER"
            )
        if self.text == "changed":
            yield "the text of the run has changed, so a new epoch begins"


def stored_options(run: Run) -> dict[str, Any]:
    """The options in a run's folder, by name."""
    stored = read_yaml(run.config_path) if run.config_path.is_file() else {}
    return {name: value for name, (value, _) in stored.items()}


def _newer_budget(run: Run, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the budget in a run's folder if it is another than a checkpoint's own."""
    stored, specs = stored_options(run), options(TrainConfig)
    asked = {unit: stored[unit] for unit in own if unit in stored}
    if all(str(n) == str(specs[unit].to_yaml_value(own[unit])) for unit, n in asked.items()):
        return {}
    return {unit: n for unit, n in asked.items() if n not in (None, "none")}


def text_kind(config: TrainConfig) -> str:
    """The name of the trained text's kind in checkpoints."""
    return "data" if config.follow is None else "stream"


def _with_optimizer(config: TrainConfig, saved: Checkpoint, model: ModelConfig) -> TrainConfig:
    """Use the run's own optimizer unless another is named; refuse moments of another one."""
    own, hidden = saved.state["optimizer"], bool(families.hidden_matrices(model))
    if config.optimizer is None:
        return replace(config, optimizer=optim.by_name(own))
    if config.reset_optimizer:
        return config
    if own in OPTIMIZERS.known():
        own = optim.by_name(own).fitted(hidden=hidden).name
    if own != optim.optimizer_of(config).fitted(hidden=hidden).name:
        raise CheckpointError(
            f"{config.resume} was trained with optimizer {own}, this is {config.optimizer.name}, "
            f"which cannot use its moments; add --optimizer {own}, or --reset-optimizer to "
            "begin without moments"
        )
    return config


def _with_strategy(config: TrainConfig, saved: Checkpoint) -> TrainConfig:
    """Use the run's own strategy unless another is named, or it had a single worker."""
    own = saved.state["strategy"]
    if config.strategy is not None or own["strategy"] in ("auto", Serial.name):
        return config
    chosen = STRATEGIES.find(own["strategy"])
    numbers = {spec.flat for spec in options(chosen).values()} & own.keys()
    choice = STRATEGIES.make(chosen, {name: (own[name], "") for name in numbers})
    assert isinstance(choice, Strategy), "nothing else is registered there"
    return replace(config, strategy=choice)


def with_vocabulary(
    asked: TrainConfig,
    config: TrainConfig,
    model: ModelConfig,
    tokenizer: Tokenizer,
    begin: Resumption | InitialWeights | None,
    note: Tell,
) -> tuple[ModelConfig, InitialWeights | None]:
    """The model over the tokenizer's ids, and the initial weights with its rows.

    A resumed run has its checkpoint's vocabulary; that of a config.json is kept. `asked` are the
    options of the call, `config` the same with the origin's model and tokenizer.
    """
    own, rows, spec = model.vocab_size, tokenizer.vocab_size, config.tokenizer
    if isinstance(begin, Resumption):
        size = begin.checkpoint.model.vocab_size
        return families.for_tokens(model, bos=tokenizer.bos, vocab_size=size), None
    if isinstance(begin, InitialWeights):
        # Without a model of its own it has the checkpoint's, whose rows follow the text.
        follows = not keeps_vocabulary(asked if asked.model == "auto" else config)
        begin, model = begin.fitted(config, model, tokenizer, own=follows)
        for text in begin.notes:
            note(text)
        rows = model.vocab_size
    elif keeps_vocabulary(config):
        if own > rows and registry.is_stored(config.model):
            note(
                f"model {config.model} keeps its vocabulary of {own:,}; tokenizer {spec} needs "
                f"{rows:,} of it (--set vocab_size={rows})"
            )
        rows = own
    if tokenizer.n_ids > rows:
        raise ConfigError(
            f"model {config.model} has vocab_size {rows}, tokenizer {spec} {tokenizer.n_ids} ids, "
            f"one of which is BOS, the start of a document; set vocab_size to at least "
            f"{tokenizer.n_ids} (--set vocab_size={tokenizer.vocab_size}), or choose another model "
            "or tokenizer"
        )
    fitted = families.for_tokens(model, bos=tokenizer.bos, vocab_size=rows)
    if begin is None and own != rows:
        note(
            f"vocabulary {rows:,}, that of tokenizer {spec}, in place of {own:,} of model "
            f"{Path(config.model).name}: {format_count(param_count(fitted))} parameters, not "
            f"{format_count(param_count(model))}"
        )
    return fitted, begin
