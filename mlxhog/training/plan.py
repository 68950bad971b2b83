"""`make_plan(config) -> TextPlan`: everything that a run will be, decided before anything starts.

All errors of the input are found here, and every open option is decided: `make_plan` reads from top
to bottom. A run that may change its strategy has a second plan: the supervisor continues by that,
in the same arena, which has room for both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.arena import Layout
from mlxhog.base import machine
from mlxhog.base.quantities import format_count, parse_count
from mlxhog.checkpoint import checkpoint, formats
from mlxhog.config import plugins
from mlxhog.config.config import TrainConfig
from mlxhog.data import prepare
from mlxhog.data.counts import SAMPLE
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import ConfigError
from mlxhog.models import families, ngrams, registry
from mlxhog.models.families import ModelConfig, param_count, param_spec
from mlxhog.models.registry import load_architecture
from mlxhog.models.sampled_head import SampledHead
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import Optimizer
from mlxhog.report.metrics import is_emulated
from mlxhog.strategies import Strategy
from mlxhog.training import kernel_choice, origin, strategy_plan
from mlxhog.training.job import Plan, plan_layout
from mlxhog.training.kernel_choice import Note
from mlxhog.training.memory import WORKER_BASE_BYTES, Memory, gpu_share
from mlxhog.training.origin import InitialWeights, Resumption
from mlxhog.training.side_jobs import HeldOutPart, TextJobs

if TYPE_CHECKING:
    from mlxhog.data.clients import Division
    from mlxhog.training.batch_size import BatchChoice


@dataclass(frozen=True, kw_only=True)
class TextPlan(Plan):
    """A run of a language model that has passed every check."""

    stored: TrainConfig  # for the run's folder; options that a resume decides again are open
    automatic: tuple[str, ...]  # numbers that `optim.for_model` decided, in this call or the first
    resumption: Resumption | None  # None for a new run
    initial_weights: InitialWeights | None  # of a checkpoint; None draws initial values
    data: prepare.Prepared
    held_out: HeldOutPart  # that evaluations score
    division: Division | None  # of the text among clients; None if all workers share one text
    epoch_tokens: int  # in one pass over the training text
    mean_tokens_per_step: float  # in one update, on average over a budget in steps
    parameters: int  # numbers in the model
    optimizer: Optimizer
    memory: Memory
    batch: BatchChoice | None = None  # of `--batch-size auto`
    other: TextPlan | None = None  # with the strategy that the run may change to

    def changed(self) -> TextPlan:
        """The other plan, whose other is this."""
        assert self.other is not None, "the strategy stays"
        return replace(self.other, other=replace(self, other=None))

    @property
    def _ways(self) -> list[TextPlan]:
        return [self] if self.other is None else [self, self.other]

    @property
    def arena_bytes(self) -> int:
        """Shared memory."""
        return max(way.layout.occupied_bytes for way in self._ways)

    @property
    def worker_bytes(self) -> int:
        """Estimate of the private memory of one worker: a gradient, and the process itself."""
        return WORKER_BASE_BYTES + self.memory.of_batch(self.config.micro_batch)

    @property
    def free_slots(self) -> int:
        """Number of workers that can join."""
        return max(
            0 if way.strategy.fixed else way.layout.max_workers - way.strategy.workers
            for way in self._ways
        )

    @property
    def emulated(self) -> bool:
        """Whether Metal source runs on the CPU, now or before a resume."""
        return is_emulated(self.writers.gpu_write, self.kernels_used) or self.emulated_before

    @property
    def emulated_before(self) -> bool:
        """Whether earlier steps of a resumed run were emulated."""
        earlier = self.resumption
        return earlier is not None and bool(earlier.state["emulated"])

    @property
    def kernels_used(self) -> str:
        """The distinct forms of the model's operations."""
        return ",".join(dict.fromkeys(self.kernels))


def make_plan(config: TrainConfig, *, progress: bool = False) -> TextPlan:
    """Check a configuration against this machine and its data; starts nothing.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input.
        EnvironmentLacks: a backend, a package or memory is missing.
    """
    if config.batch_size is not None:
        return _plan(config, progress=progress)
    from mlxhog.training import batch_size

    if config.resume is not None:
        run, _ = checkpoint.resumable(config.resume, Path(config.out))
        sequences = origin.stored_options(run).get("batch_size", TrainConfig().micro_batch)
        batch = batch_size.BatchChoice(parse_count(sequences), "the run began with it")
    else:
        alone = _plan(config.having(batch_size=1), progress=progress)
        batch = batch_size.measured(alone, progress=progress)
    plan = _plan(config.having(batch_size=batch.sequences), progress=progress)
    return replace(plan, notes=(*plan.notes, str(batch)), batch=batch)


def _plan(config: TrainConfig, *, progress: bool) -> TextPlan:
    notes: list[str] = []
    note: Note = notes.append
    if config.report_to == "tensorboard":
        from mlxhog.report import tensorboard

        tensorboard.require()

    # Origin and model.
    asked = origin.located(config)
    config = origin.with_model_and_tokenizer(asked)
    weights = None if config.init_from is None else InitialWeights(formats.open(config.init_from))
    if weights is not None and asked.model == "auto":
        model = registry.with_changes(weights.opened.config, config.model, config.set)
    else:
        model = load_architecture(config.model, config.set, config.plugin)
    if files := plugins.remembered([*vars(config).values(), *model.own_layers]):
        config = config.having(plugin=", ".join(files))
    families.check_language_model(model)
    families.check_length(model, config.seq_len)

    # Workers and kernels, then memory before the model's blocks are listed one by one.
    here, of_engines = machine.here(), list[str]()
    workers, writers, forms = kernel_choice.choose(config, here, of_engines.append)
    memory = Memory(here.memory_bytes, config.memory_limit)
    memory.check_parameters(config.model, model)
    resumption = Resumption.of(config, model)
    if resumption is not None:
        config = resumption.config
        notes += resumption.notes(len(workers))

    # Text and vocabulary.
    data = prepare.prepare(
        config.data,
        tokenizer=config.tokenizer,
        width=model.hidden_size,
        text_key=config.text_key,
        loss_on=config.loss_on,
        val=config.val,
        strict=config.strict_data,
        skip_machine_data=config.skip_machine_data,
        progress=progress,
    )
    train, val = data.open(config.seq_len)
    config = config.having(tokenizer=data.spec)
    begin = weights or resumption
    model, weights = origin.with_vocabulary(asked, config, model, data.tokenizer, begin, note)
    if resumption is not None:
        resumption.check_data(data, train.digest, val.digest)
    if train.n_tokens > SAMPLE:
        of_all = f"{format_count(SAMPLE)} of the {format_count(train.n_tokens)} training tokens"
        note(f"counts are of a sample: {of_all}")
    parameters = param_count(model)
    spec, sampled = _parameters(config, model, train, note)
    before = None if resumption is None else int(resumption.state["held_out"]["asked_bytes"])
    held_out = HeldOutPart.of(data, config, parameters, before)
    cut = [rows for file in (train, val) if (rows := file.rows(config.seq_len)) is not None]
    if too_long := sum(rows.cut for rows in cut):
        note(
            f"{too_long} examples are longer than seq_len {config.seq_len}, so the beginning of "
            f"their prompts is cut off; --seq-len {max(rows.longest for rows in cut)} reads them "
            "whole"
        )
    notes += of_engines

    # Each strategy that the run may have, with its optimizer, rates, budget and batches.
    choices = strategy_plan.choices(config, workers, resumption)
    ways = [
        strategy_plan.fields_of(
            asked, config, choice, model, workers, resumption, data, train, len(choices) > 1
        )
        for choice in choices
    ]

    # Layouts of one size, with free slots for workers that join.
    live = memory.keeps_copies(config.live, parameters, note)
    max_workers, segments = config.max_workers, dict[str, tuple[str, int]]()
    if config.cluster is not None:
        from mlxhog.cluster import anchor

        segments = anchor.segments()
        max_workers = None if max_workers is None else max_workers + 1  # the link's slot
    n_tickets, *_ = [way.pop("n_tickets") for way in ways]

    def lay_out(strategy: Strategy, optimizer: Optimizer, most: int | None = None) -> Layout:
        return plan_layout(
            spec, strategy, optimizer, n_tickets, max_workers=most, kept=segments, live=live
        )

    elastic = next((way for way in ways if not way["strategy"].fixed), ways[0])
    elastic["strategy"] = memory.with_free_slots(
        elastic["strategy"], max_workers, partial(lay_out, optimizer=elastic["optimizer"])
    )
    most = max(way["strategy"].slots for way in ways)
    layouts = [lay_out(way["strategy"], way["optimizer"], most) for way in ways]
    arena_bytes = max(layout.total_bytes for layout in layouts)
    link = None
    if config.cluster is not None:
        from mlxhog.cluster.group import identity_of
        from mlxhog.cluster.link import LinkJob

        identity = identity_of(
            config,
            layouts[0],
            tokenizer=data.tokenizer.sha256,
            data=f"{train.digest} in sequences of {config.seq_len}",
            batch_size=config.sequences_per_ticket,
            seed=config.seed,
        )
        link = LinkJob(cluster=config, identity=identity, log=Path("link.log"))
    plans = [
        TextPlan(
            **{**way, "notes": (*notes, *way["notes"])},
            resumption=resumption,
            initial_weights=weights,
            model=model,
            data=data,
            held_out=held_out,
            workers=workers,
            writers=writers,
            kernels=forms,
            layout=replace(layout, total_bytes=arena_bytes),
            parameters=parameters,
            memory=memory.with_gradients(way["config"], model, layout, len(workers)),
            decay=frozenset(name for name, one in spec.items() if one.decay),
            gpu_share=gpu_share(config, workers, writers, layout),
            side_jobs=partial(TextJobs, data.val, data.tokenizer, held_out.asked_bytes),
            sampled=sampled,
            link=link,
        )
        for way, layout in zip(ways, layouts, strict=True)
    ]
    for plan in plans:
        plan.memory.check_gpu(config.micro_batch, plan.gpu_share, workers)
        plan.memory.check_run(plan.arena_bytes, plan.worker_bytes, len(workers))
    first, *others = plans
    return replace(first, other=others[0] if others else None)


def _parameters(
    config: TrainConfig, model: ModelConfig, train: TokenFile, note: Note
) -> tuple[dict[str, ParamSpec], SampledHead | None]:
    """The model's parameters, and the sampled words of its training loss, if any.

    Refuses options of tables of n-grams and of a sampled head that do not fit the model.
    """
    spec, tables = dict(param_spec(model)), ngrams.of(model)
    if tables is None and config.ngram_lr != TrainConfig.ngram_lr:
        raise ConfigError(
            f"ngram_lr is {config.ngram_lr}, and model {config.model} has no tables of n-grams; "
            "add some, such as --set ngram_orders=2-8, or leave ngram_lr out"
        )
    if tables is not None:
        rows = sum(one.shape[0] for one in tables.specs.values())
        note(
            f"tables of n-grams, orders {', '.join(map(str, tables.orders))}: {rows:,} rows of "
            f"{tables.dim}, {format_count(tables.floats)} numbers beside the parameters"
        )
    if config.sampled_head is None:
        return spec, None
    if model.tie_word_embeddings:
        raise ConfigError(
            f"sampled_head needs a head of its own, and model {config.model} has its head tied to "
            "the embedding; untie it in the model (tie_word_embeddings or tie_weights: false), or "
            "leave sampled_head out"
        )
    if config.sampled_head >= model.vocab_size:
        raise ConfigError(
            f"sampled_head draws {config.sampled_head} words, and model {config.model} has "
            f"vocab_size {model.vocab_size}; draw fewer, or leave it out for the whole vocabulary"
        )
    head = families.head(model)
    spec[head] = replace(spec[head], kind="rows")  # a step touches few of them
    counts = train.frequencies(model.vocab_size)
    return spec, SampledHead.of_counts(config.sampled_head, counts)
