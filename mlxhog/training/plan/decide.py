"""`make_plan(config) -> TextPlan`: everything that a run will be, decided before anything starts.

All errors of the input are found here, and every open option is decided: `make_plan` reads from top
to bottom, and `regime.py` has what depends on the strategy. A run that may change its strategy has
a second plan: the supervisor continues by that, in the same arena, which has room for both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mlxhog import strategies
from mlxhog.arena import Layout
from mlxhog.base import machine
from mlxhog.base.quantities import format_count, parse_count
from mlxhog.checkpoint import checkpoint, formats
from mlxhog.config import plugins
from mlxhog.config.config import TrainConfig
from mlxhog.data import prepare
from mlxhog.data.tokens import TokenFile
from mlxhog.display.views import StatusLine, Tell
from mlxhog.errors import ConfigError, EnvironmentLacks, shown
from mlxhog.models import families, ngrams, registry
from mlxhog.models.families import ModelConfig, param_count
from mlxhog.models.sampled_softmax import SampledSoftmax
from mlxhog.models.spec import ParamSpec
from mlxhog.strategies import prediction
from mlxhog.training.plan import (
    adapter,
    batch_size,
    initial_weights,
    kernel_choice,
    resume,
    strategy_rule,
)
from mlxhog.training.plan.initial_weights import BigramWeights, InitialWeights
from mlxhog.training.plan.memory import Memory, gpu_share
from mlxhog.training.plan.regime import regime_of
from mlxhog.training.plan.resume import Resumption
from mlxhog.training.plan.validation_subset import ValidationSubset, ValidationText
from mlxhog.training.plan.values import BatchChoice, Regime, TextPlan, plan_layout

LARGE_VOCAB, NEGATIVES = 4096, 1024
"""Vocabulary from which on a costly head has a sampled softmax, and its negatives."""
FREE_SLOTS = 2  # for workers that join, without --max-workers
FREE_SLOTS_SHARE = 1 / 16  # largest part of a run's memory for free slots


def make_plan(config: TrainConfig, *, progress: bool = False) -> TextPlan:
    """Check a configuration against this machine and its data; starts nothing.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input.
        EnvironmentLacks: a backend, a package or memory is missing.
    """
    why = ""
    if config.batch_size is not None:
        plan = _plan(config, progress=progress)
        note = batch_size.proposed(plan)
        return plan if note is None else replace(plan, notes=(*plan.notes, note))
    if config.resume is not None:
        run, _ = checkpoint.resumable(config.resume, Path(config.runs_dir))
        sequences = resume.stored_options(run).get("batch_size", TrainConfig().micro_batch)
        try:
            batch = BatchChoice(parse_count(sequences), "the run began with it")
        except ValueError as error:
            raise ConfigError(
                f"{run.config_path}: batch_size is {shown(sequences)}; {error}; give --batch-size"
            ) from error
    else:
        alone = _plan(config.having(batch_size=1), progress=progress)
        batch = batch_size.measured(alone, progress=progress)
        is_free = (config.recompute, alone.config.recompute) == ("auto", "none")
        if is_free and batch.why in batch_size.FULL:
            recomputing = config.having(recompute="blocks")
            alone = _plan(recomputing.having(batch_size=1), progress=progress)
            larger = batch_size.measured(alone, progress=progress)
            if batch_size.gains(larger, batch):
                why = f"auto: batches of up to {batch.sequences} without it are slower"
                config, batch = recomputing, larger
    plan = _plan(config.having(batch_size=batch.sequences), progress=progress)
    notes = (*plan.notes, *[f"recompute blocks, {why}"] * bool(why), str(batch))
    return replace(plan, notes=notes, batch=batch, recompute_from=why or plan.recompute_from)


def _plan(config: TrainConfig, *, progress: bool) -> TextPlan:
    notes: list[str] = []
    note: Tell = notes.append
    if config.trackers:
        from mlxhog.display import trackers

        trackers.require(config.trackers)

    # Origin and model.
    asked = resume.located(config)
    config = resume.with_model_and_tokenizer(asked)
    weights = None
    if config.init_from is not None:
        path = checkpoint.locate(config.init_from, Path(config.runs_dir))
        weights = InitialWeights(formats.open(path))
    if weights is not None and asked.model == "auto":
        model = registry.with_changes(weights.opened.config, config.model, config.set)
    else:
        model = registry.load_architecture(config.model, config.set, config.plugin)
    if files := plugins.remembered([*vars(config).values(), *model.own_layers]):
        config = config.having(plugin=", ".join(files))
    families.check_language_model(model)
    families.check_length(model, config.seq_len)
    opened = None if weights is None else weights.opened
    config, model = adapter.with_adapter(config, model, opened)

    # Workers and kernels, then memory before the model's blocks are listed one by one.
    here, of_engines = machine.here(), list[str]()
    workers, writers, kernels = kernel_choice.choose(config, model, here, of_engines.append)
    memory = Memory(here.memory_bytes, config.memory_limit, here.memory_limit)
    if config.adapter is None:
        memory.check_parameters(config.model, model)
    resumption = Resumption.of(config, model)
    base = adapter.base_of(config, opened, resumption)
    if resumption is not None:
        config = resumption.config
        notes += resumption.notes(len(workers))

    # Text and vocabulary.
    with StatusLine(sys.stderr, quiet=not progress) as line:
        data = prepare.prepare(
            config.data,
            tokenizer=config.tokenizer,
            width=model.hidden_size,
            strict=config.strict_data,
            show=line.tick,
            **{name: getattr(config, name) for name in prepare.OPTIONS},
            **resume.known_text(config),
        )
    data.check_length(config.seq_len)
    train, val = data.train, data.val
    config = config.having(tokenizer=data.spec)
    begin: Resumption | InitialWeights | None = weights or resumption
    model, weights = resume.with_vocabulary(asked, config, model, data.tokenizer, begin, note)
    if resumption is not None:
        begin = resumption = resumption.with_text(data)
        notes += resumption.of_text(data)
    parameters = param_count(model)
    spec, sampled = _parameters(config, model, train, note)
    if base is not None:
        kept = None if base.weights != "keep" else base.tensors()
        memory = replace(memory, base_bytes=adapter.base_bytes(model, base.weights, kept))
        note(adapter.note(model, base, memory.base_bytes))
    first = weights if begin is not None else BigramWeights.of(config, model, train, note)
    before = None if resumption is None else int(resumption.state["validation"]["asked_bytes"])
    validation = ValidationSubset.of(data, config, parameters, before)
    cut = [rows for file in (train, val) if (rows := file.rows(config.seq_len)) is not None]
    if too_long := sum(rows.cut for rows in cut):
        note(
            f"{too_long} examples are longer than seq_len {config.seq_len}, so the beginning of "
            f"their prompts is cut off; --seq-len {max(rows.longest for rows in cut)} reads them "
            "whole"
        )
    notes += of_engines

    # Each strategy that the run may have, with its optimizer, rates, budget and batches.
    saved = None if resumption is None else resumption.state["regime"]
    choices = strategy_rule.choices(strategies.strategy_of(config), workers, saved)
    begun = asked, config, model, workers, resumption, data
    regimes = [regime_of(choice, *begun, is_open=len(choices) > 1) for choice in choices]

    # Layouts of one size, with free slots for workers that join.
    trained = sum(one.size for one in spec.values() if one.kind != "table")
    live = memory.keeps_snapshots(config.live, trained, note)
    max_workers, segments = config.max_workers, dict[str, tuple[str, int]]()
    if config.cluster is not None:
        from mlxhog.cluster import outer_state

        segments = outer_state.segments()
        max_workers = None if max_workers is None else max_workers + 1  # the sidecar's slot

    def lay_out(regime: Regime, max_slots: int | None = None) -> Layout:
        strategy, optimizer, n_tickets = regime.strategy, regime.optimizer, regimes[0].n_tickets
        return plan_layout(
            spec, strategy, optimizer, n_tickets, max_workers=max_slots, kept=segments, live=live
        )

    elastic = next((k for k, one in enumerate(regimes) if not one.strategy.fixed), 0)
    regimes[elastic] = _with_free_slots(regimes[elastic], max_workers, lay_out, memory)
    if config.max_workers is not None and (why := regimes[elastic].strategy.fixed):
        note(f"max_workers {config.max_workers} has no effect: {why}")
    max_slots = max(one.strategy.slots for one in regimes)
    layouts = [lay_out(one, max_slots) for one in regimes]
    arena_bytes = max(layout.total_bytes for layout in layouts)
    sidecar = None
    if config.cluster is not None:
        from mlxhog.cluster.group import identity_of
        from mlxhog.cluster.sidecar import SidecarJob

        identity = identity_of(
            config,
            layouts[0],
            tokenizer=data.tokenizer.sha256,
            data=f"{train.digest} in sequences of {config.seq_len}",
            batch_size=config.sequences_per_ticket,
            seed=config.seed,
            base=None if base is None else f"{base.digest} in {base.weights}",
        )
        sidecar = SidecarJob(cluster=config, identity=identity, log=Path("sidecar.log"))
    plans = [
        TextPlan(
            **vars(replace(regime, notes=(*notes, *regime.notes))),
            resumption=resumption,
            initial_weights=first,
            model=model,
            data=data,
            validation=validation,
            workers=workers,
            writers=writers,
            kernels=kernels,
            layout=replace(layout, total_bytes=arena_bytes),
            parameters=parameters,
            trained_parameters=trained,
            memory=memory,
            decay=frozenset(name for name, one in spec.items() if one.decay),
            gpu_share=gpu_share(
                config,
                workers,
                writers,
                layout,
                traces=prediction.segments(regime.strategy.run, regime.strategy.slots),
                base_bytes=memory.base_bytes,
            ),
            validation_text=ValidationText(data.val, data.tokenizer, validation),
            sampled=sampled,
            base=base,
            sidecar=sidecar,
        )
        for regime, layout in zip(regimes, layouts, strict=True)
    ]
    plans = _fitting(plans)
    return replace(plans[0], other=plans[1] if len(plans) > 1 else None)


def _fitting(plans: Sequence[TextPlan]) -> list[TextPlan]:
    """Choose whether blocks are recomputed, for all plans of a run; refuse a run that does not fit.

    `auto` recomputes only what does not fit otherwise.
    """
    frameworks = [worker.backend.partition(":")[0] for worker in plans[0].workers]
    variants = list(zip(frameworks, plans[0].kernels, strict=True))

    def fitted(recompute: str, why: str) -> list[TextPlan]:
        changed = [
            replace(
                plan,
                config=plan.config.having(recompute=recompute),
                stored=plan.stored.having(recompute=recompute),
                memory=plan.memory.with_gradients(
                    plan.config,
                    plan.model,
                    plan.layout,
                    variants,
                    recompute=recompute,
                    on_metal=plan.writers.gpu_write != "cpu",
                    negatives=0 if plan.sampled is None else plan.sampled.negatives,
                ),
                recompute_from=why,
            )
            for plan in plans
        ]
        for plan in changed:
            plan.memory.check_gpu(plan.config.micro_batch, plan.gpu_share, plan.workers)
            plan.memory.check_run(plan.arena_bytes, plan.worker_bytes, len(plan.workers))
        return changed

    if (asked := plans[0].config.recompute) != "auto":
        return fitted(asked, "asked for")
    try:
        return fitted("none", "auto: the activations of all blocks fit in memory")
    except EnvironmentLacks as refusal:
        why = f"auto: without it {str(refusal).partition('; ')[0]}"
    return [
        replace(plan, notes=(*plan.notes, f"recompute blocks, {why}"))
        for plan in fitted("blocks", why)
    ]


def _parameters(
    config: TrainConfig, model: ModelConfig, train: TokenFile, note: Tell
) -> tuple[dict[str, ParamSpec], SampledSoftmax | None]:
    """The model's parameters, and the sampled softmax of its training loss, if any.

    Refuses options of n-gram embedding tables and of a sampled softmax that do not fit the model.
    """
    spec, tables = families.trainable_spec(model), ngrams.of(model)
    if tables is None and config.ngram_lr != TrainConfig.ngram_lr:
        raise ConfigError(
            f"ngram_lr is {config.ngram_lr}, and model {config.model} has no n-gram embedding "
            "tables; add some, such as --set ngram_orders=2-8, or leave ngram_lr out"
        )
    if tables is not None:
        rows = sum(one.shape[0] for one in tables.specs.values())
        note(
            f"n-gram embedding tables, orders {', '.join(map(str, tables.orders))}: {rows:,} "
            f"rows of {tables.dim}, {format_count(tables.floats)} floats, not counted as parameters"
        )
    head, drawn = families.head(model), config.sampled_softmax
    if drawn is None:
        costs = 3 * model.vocab_size * model.hidden_size
        is_costly = model.vocab_size >= LARGE_VOCAB and costs >= param_count(model)
        drawn = NEGATIVES if is_costly and not model.tie_word_embeddings else 0
    if not drawn:
        return spec, None
    if model.tie_word_embeddings:
        raise initial_weights.tied("sampled_softmax", config)
    if drawn >= model.vocab_size:
        raise ConfigError(
            f"sampled_softmax draws {drawn} negatives, and model {config.model} has vocab_size "
            f"{model.vocab_size}; draw fewer, or 0 for the full softmax"
        )
    note(
        f"sampled softmax: the batch's targets and {drawn:,} negatives (--sampled-softmax 0 "
        "for the full softmax)"
    )
    if head in spec:
        spec[head] = replace(spec[head], kind="rows")  # a step touches few of them
    counts = train.frequencies(model.vocab_size)
    return spec, SampledSoftmax.of_counts(drawn, counts)


def _with_free_slots(
    regime: Regime, max_workers: int | None, lay_out: Callable[[Regime], Layout], memory: Memory
) -> Regime:
    """Give the strategy of a regime free slots: up to `max_workers`, or while there is room."""

    def with_slots(n: int) -> Regime:
        return replace(regime, strategy=replace(regime.strategy, max_workers=n))

    if regime.strategy.fixed:
        return regime
    if max_workers is not None:
        return with_slots(max_workers)
    max_bytes = lay_out(regime).total_bytes + FREE_SLOTS_SHARE * memory.limit_bytes
    sizes = range(FREE_SLOTS, 0, -1)
    larger = (with_slots(regime.strategy.workers + free) for free in sizes)
    return next((one for one in larger if lay_out(one).total_bytes <= max_bytes), regime)
