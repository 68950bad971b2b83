"""Save an arena at rest as a checkpoint, and fill a new arena by the initialiser or a checkpoint.

A checkpoint may be resumed by another number of workers: `moments` has the optimizer's state.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.ledger import Ledger, Position
from mlxhog.arena.requests import Refused
from mlxhog.arena.workers import State
from mlxhog.base import mapped
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import Run
from mlxhog.cluster.anchor import Anchor
from mlxhog.config import optimizers
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.config.strategy import InRounds, strategy_name
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import CheckpointError, EnvironmentLacks
from mlxhog.models.families import param_spec
from mlxhog.models.spec import ParamSpec, initial_value
from mlxhog.optim.delay_feedback import FEEDBACK
from mlxhog.optim.sparsified import RESIDUAL
from mlxhog.optim.tables import MEANS
from mlxhog.report.monitor import Monitor
from mlxhog.strategies import look_ahead
from mlxhog.training import moments
from mlxhog.training.held_out_watch import HeldOutWatch
from mlxhog.training.plan import Plan
from mlxhog.training.publishing import Publisher
from mlxhog.training.reporting import Reporter
from mlxhog.training.resume import Resumption, score_of, text_kind
from mlxhog.training.session import WorkerSession

SAVE_BYTES_PER_S = 200e6  # written, flushed and read again for its digest
PAUSE_S = 10.0  # least time that workers have to finish their current step


@dataclass(frozen=True)
class Start:
    """The state in which a call to `train`, or another strategy in the middle of it, begins.

    Attributes:
        budget: of the call.
        messages: for the user.
        steps: of the call before.
        network_bytes: see `Strategy.network_bytes`; of these steps.
    """

    budget: Budget
    messages: tuple[str, ...] = ()
    steps: int = 0
    network_bytes: int = 0


def restore(plan: Plan, arena: Arena, ledger: Ledger) -> Start:
    """Write the first parameters, moments and data position into the arena.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another architecture or corpus.
    """
    fill_parameters(plan, arena)
    return begin(plan, arena, ledger)


def fill_parameters(plan: Plan, arena: Arena) -> None:
    """Write the first parameters into the arena; they do not depend on the strategy.

    Raises:
        CheckpointError: the initial weights are damaged.
    """
    if plan.resumption is None:
        _initialise(plan, arena)
        return
    saved = plan.resumption.checkpoint
    for name, value in saved.params.items():
        mapped.copy(value, arena.param(name))
    for kind, sign in ((RESIDUAL, 1.0), (FEEDBACK, -1.0)):
        if kind not in plan.private_state or plan.config.reset_optimizer:
            _settle(arena, saved, kind, sign)  # before a strategy takes copies of the parameters
    if plan.link is not None and "cluster" in saved.state:
        Anchor(arena).resume(
            saved.optimizer,
            saved.state["cluster"],
            seconds=saved.state["used"]["seconds"],
            is_last=_ended_there(plan.resumption),
        )
    arena.counters.store("version", int(saved.state["version"]))


def begin(plan: Plan, arena: Arena, ledger: Ledger) -> Start:
    """Write moments and data position as the plan's strategy needs them.

    Raises:
        CheckpointError: moments have other shapes than in this run.
    """
    strategy = plan.strategy
    start = start_of(plan)
    if plan.resumption is None:
        strategy.begin(arena)
        return start
    saved = plan.resumption.checkpoint
    fresh = Position(epoch=0, watermark=0, done=[], torn=0, n=ledger.n)
    state = {**saved.state, "ledger": plan.resumption.position() or fresh}
    position = strategy.resume(arena, ledger, state)
    if position is not None:
        for segment in strategy.kept_segments():
            if segment in look_ahead.SEGMENTS and plan.config.reset_optimizer:
                continue  # steps of an optimizer that is reset
            moments.fill(arena, segment, [segment], saved.optimizer)
    strategy.begin(arena, position)
    moments.restore_means(plan, arena, saved)
    message = moments.restore(plan, arena, saved)
    strategy.restore_state(arena, state)
    return replace(start, messages=(*start.messages, *filter(None, [message])))


def start_of(plan: Plan) -> Start:
    """The part of a call's start that does not depend on the strategy."""
    if plan.resumption is None:
        return Start(plan.budget)
    state = plan.resumption.checkpoint.state
    used, joined = state["used"], _joined_text(state["joined"], len(plan.workers))
    budget = replace(
        plan.budget,
        steps_before=used["steps"],
        tokens_before=used["tokens"],
        seconds_before=used["seconds"],
    )
    return Start(budget, (_summary(plan.resumption), *filter(None, [joined])))


def _joined_text(joined: int, workers: int) -> str | None:
    """A note that the run begins with its configured workers, if it had others when saved."""
    if not joined:
        return None
    many = f"{abs(joined)} worker{'s' * (abs(joined) > 1)} had {'joined' if joined > 0 else 'left'}"
    return (
        f"{many} when this was saved; the run resumes with the {workers} of its configuration "
        "(mlxhog join adds others)"
    )


def _initialise(plan: Plan, arena: Arena) -> None:
    """Draw the first parameters by two threads (drawing releases the GIL).

    The weights of `init_from`, if any, are written over them.
    """

    def draw(spec: ParamSpec) -> None:
        arena.param(spec.name)[...] = initial_value(spec, plan.config.seed)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(draw, param_spec(plan.model).values()))
    if plan.initial_weights is not None:
        plan.initial_weights.fill(arena, plan.model)


def _shares(config: TrainConfig) -> str:
    """How rounds divide their sequences among workers, if the strategy has rounds."""
    return config.strategy.shares if isinstance(config.strategy, InRounds) else "equal"


def _settle(arena: Arena, saved: checkpoint.Checkpoint, kind: str, sign: float) -> None:
    """Add updates that workers had not written yet, or undo those that they wrote in advance.

    The resumed run would do neither.
    """
    for key, value in saved.optimizer.items():
        segment, _, name = key.partition("/")
        if segment.startswith(f"{kind}."):
            arena.param(name)[...] += np.float32(sign) * value


def _ended_there(resumption: Resumption) -> bool:
    """Whether the run ended with this checkpoint, so that nothing was trained after it."""
    return resumption.run.ended_with(resumption.checkpoint.path)


def _summary(resumption: Resumption) -> str:
    """A message with the step at which the run resumes, and its held-out score."""
    saved, rest = resumption.checkpoint, resumption.own_budget
    score = score_of(resumption.run, saved.path, saved.state)
    held_out = f" ({score})" if score else ""
    is_over = rest is not None and rest.is_used_up
    only = ", its training is over: only the evaluation is left" if is_over else ""
    return f"resuming from step {saved.state['used']['steps']}{held_out}{only}"


def network_bytes(plan: Plan, arena: Arena, start: Start) -> int:
    """Bytes that the whole run would have sent over a network; see `Strategy.network_bytes`."""
    earlier = {} if plan.resumption is None else plan.resumption.checkpoint.state
    return int(earlier.get("network_bytes", 0)) + network_bytes_of_call(plan, arena, start)


def network_bytes_of_call(plan: Plan, arena: Arena, start: Start) -> int:
    """The same, of this call."""
    steps = arena.counters.load("steps") - start.steps
    return start.network_bytes + plan.strategy.network_bytes(arena, steps)


def n_bytes(plan: Plan, n_slots: int | None = None) -> int:
    """Estimate the size of a checkpoint.

    Args:
        plan: of the run.
        n_slots: worker slots with private optimizer state; by default one per worker.
    """
    private = [f"{name}.1" for name in plan.private_state]
    n_slots = len(plan.workers) if n_slots is None else n_slots
    segments = [*n_slots * private, *plan.shared_state, *plan.strategy.kept_segments()]
    tables = sum(slot.size for slot in plan.layout.tables.values())
    return 4 * tables + 4 * sum(
        slot.size for name in ("params", *segments) for slot in plan.layout.parts(name).values()
    )


def save_s(plan: Plan, arena: Arena) -> float:
    """Estimate how long a checkpoint takes with the present workers."""
    return n_bytes(plan, len(plan.strategy.state_slots(arena))) / SAVE_BYTES_PER_S


def pause_limit_s(arena: Arena) -> float:
    """Return how long workers may take to pause.

    This is the sum of their step times (strategy locked runs one at a time) plus the slowest once
    more, at least `PAUSE_S`.
    """
    steps_s = [entry.step_s for entry in arena.workers if entry.state != State.FREE]
    return max(PAUSE_S, sum(steps_s) + max(steps_s, default=0.0))


def save(
    plan: Plan,
    run: Run,
    arena: Arena,
    ledger: Ledger,
    start: Start,
    monitor: Monitor,
    watch: HeldOutWatch,
) -> Path:
    """Save the state that `restore` reads, after the strategy has settled the arena.

    No process may write parameters meanwhile; workers may read them.

    Raises:
        EnvironmentLacks: the disk is full; the previous checkpoint is whole.
    """
    counters, layout, budget = arena.counters, arena.layout, start.budget
    state = moments.of_arena(plan, arena)
    means = {MEANS: arena.segment(MEANS)} if layout.tables else {}
    link, cluster = Anchor(arena).saved() if plan.link is not None else ({}, None)
    config, stored = plan.config, plan.resolution.stored
    position = ledger.position()
    earlier = {} if plan.resumption is None else plan.resumption.checkpoint.state
    seconds = monitor.seconds()
    used = dict(zip(("steps", "tokens", "seconds"), monitor.totals(), strict=True))
    version = counters.load("version")
    rest = {
        "steps": None if budget.steps is None else budget.steps - counters.load("steps"),
        "tokens": None if budget.tokens is None else budget.tokens - counters.load("tokens"),
        "seconds": None if budget.seconds is None else budget.seconds - seconds,
    }
    strategy_state = plan.strategy.state(arena)
    if budget.steps is not None and config.steps is None:  # converted from passes or tokens
        went_async = strategy_state["went_async"]
        rest["batches_per_step"] = plan.strategy.mean_batches_per_step(went_async=went_async)
        rest["steps_before"] = budget.progress_before + counters.load("steps")
    return checkpoint.save(
        run,
        step=version,
        params={name: arena.param(name) for name in (*layout.slots, *layout.tables)},
        model_config=plan.model.to_dict(),
        optimizer={**state.arrays, **means, **link},
        state={
            "version": version,
            **({} if cluster is None else {"cluster": cluster}),
            "optimizer": optimizers.of(config).name,
            "strategy": {"strategy": strategy_name(stored), "sync_shares": _shares(stored)},
            "regime": plan.strategy.name if plan.measured else None,
            **({} if state.since is None else {"moments_since": state.since}),
            "used": used,
            "budget": {
                unit: getattr(config, unit) for unit in ("steps", "tokens", "time", "epochs")
            },
            "left": rest,
            "over": monitor.over,
            "network_bytes": network_bytes(plan, arena, start),
            "val_bits_per_byte": monitor.evaluation.val_bits_per_byte,
            "val_step": monitor.evaluation.val_step,
            "held_out": plan.held_out.to_json(),
            "best": watch.to_json(),
            "ended": watch.ended,
            "ledger": position,
            "followed": config.follow is not None,
            "ledgers": {
                **earlier.get("ledgers", {}),
                text_kind(config): position,
            },
            **strategy_state,
            "writers": {"gpu_write": plan.writers.gpu_write, "write": plan.writers.write},
            "emulated": plan.emulated,
            "joined": (counters.load("workers") or len(plan.workers)) - len(plan.workers),
            "opt_steps": {str(slot): steps for slot, steps in state.steps.items()},
            "tokens_sha256": TokenFile.open(plan.data.train).digest,
            "held_out_sha256": TokenFile.open(plan.data.val).digest,
        },
        tokenizer=plan.data.tokenizer,
        keep_last=plan.keep_last,
    )


class Saver:
    """Saves the checkpoints of one run.

    Attributes:
        newest: the last checkpoint; None before the first.
        start: the state in which the call began.
    """

    def __init__(
        self,
        session: WorkerSession,
        reporter: Reporter,
        start: Start,
        watch: HeldOutWatch,
        publisher: Publisher | None,
    ) -> None:
        """Prepare; this saves nothing."""
        self.newest: Path | None = None
        self._session, self._reporter, self.start = session, reporter, start
        self._watch, self._publisher = watch, publisher

    def save(self) -> Path:
        """Save the present state of the run; see the function `save`."""
        session, reporter = self._session, self._reporter
        self.newest = save(
            reporter.plan,
            reporter.run,
            session.arena,
            session.ledger,
            self.start,
            reporter.monitor,
            self._watch,
        )
        reporter.record("checkpoint", path=self.newest)
        return self.newest

    def save_while_training(self) -> Path:
        """Pause every worker after its step, save, and continue; returns the checkpoint.

        Raises:
            Refused: the workers did not pause, or the checkpoint cannot be written (training
                continues); or the run is ending.
        """
        limit_s = pause_limit_s(self._session.arena)
        with self._session.paused(limit_s) as still:
            if not still and self._session.interrupts():
                raise Refused("the run is ending and saves a checkpoint then")
            if not still:
                raise Refused(f"workers did not finish their step and pause within {limit_s:.0f} s")
            self._session.settle()
            if self._publisher is not None:  # readers get the checkpoint's weights
                self._publisher.publish_at_rest()
            try:
                return self.save()
            except (EnvironmentLacks, CheckpointError) as error:
                raise Refused(str(error), error.exit_code) from error

    def save_now_and_then(self) -> None:
        """Save while training, unless the run ends soon: it saves a checkpoint then anyway."""
        monitor, took_s = self._reporter.monitor, save_s(self._reporter.plan, self._session.arena)
        limit_s = monitor.budget.seconds
        if limit_s is not None and monitor.seconds() + took_s >= limit_s:
            return
        try:
            self.save_while_training()
        except Refused as error:
            if not self._session.interrupts():
                self._session.report(f"no checkpoint: {error}; training continues")

    def save_best(self) -> bool:
        """Save while training, and let checkpoints/best name the checkpoint; whether it does."""
        try:
            checkpoint.mark_best(self._reporter.run, self.save_while_training())
        except (Refused, EnvironmentLacks) as error:
            if not self._session.interrupts():
                self._session.report(f"no best checkpoint: {error}; training continues")
            return False
        return True
