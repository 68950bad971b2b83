"""Parameter averaging: local SGD and its relatives.

    avg_runs   the mean of all replicas, once at the end
    local_sgd  every H steps the mean of all replicas becomes each replica
    fedprox    the same; local updates are pulled towards the last average
    scaffold   the same; local updates are corrected by control variates
    diloco     every H steps the mean movement of the replicas is an outer step of the parameters

`local.py` has the local steps and the stages of averaging: reduce, commit, broadcast.

    segment                           dtype    meaning
    anchor                            float32  the last average, or theta_s of diloco
    control                           float32  c of scaffold; each worker writes its share
    control.1 .. control.P            float32  c_i
    control.next.1 .. control.next.P  float32  the sum of the round's gradients
    outer.v                           float32  v of diloco; each worker writes its share
    outer.next                        float32  v after the current outer step, likewise
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mlxhog.config.options import option
from mlxhog.errors import ConfigError
from mlxhog.optim import updates
from mlxhog.optim.gradients import Float32, Grads, dense, without_tables
from mlxhog.optim.rule import parameter
from mlxhog.strategies.local import Local, LocalWorker, mean_of
from mlxhog.strategies.strategy import Segments, parameter_copies

if TYPE_CHECKING:
    from mlxhog.arena import Arena
    from mlxhog.arena.layout import Parameter, Slot

AVERAGE_EVERY = 16  # default of the steps of each worker between two averages
ANCHOR: Final = "anchor"
CONTROL: Final = "control"
SUM: Final = "control.next"
VELOCITY: Final = "outer.v"
NEXT: Final = "outer.next"


@dataclass(frozen=True, kw_only=True)
class AvgRuns(Local):
    """Independent runs, averaged (Zinkevich et al. 2010, Parallelized SGD: SimuParallelSGD).

    Every worker trains its own replica on every P-th batch of an epoch; they are averaged in rank
    order once, at the end. The theory is for convex problems. Replicas of a network may leave the
    common basin of their initial values; the average is then worse than each, so a run evaluates
    them, too.
    """

    name: ClassVar[str] = "avg_runs"
    about: ClassVar[str] = "independent runs, averaged once at the end"

    def own_copies(self) -> tuple[str, ...]:
        return () if self.workers == 1 else self.replica_segments()

    def warning(self, average: float, copies: Sequence[float]) -> str | None:
        if (best := min(copies, default=average)) >= average:
            return None
        return (
            f"the average of {len(copies)} runs has {average:.3f} bits per byte, the parameters of "
            f"worker {copies.index(best) + 1} alone {best:.3f}: averaging did not help; average "
            "during training with --strategy local_sgd --average-every 16, or use hogwild or sync"
        )


@dataclass(frozen=True, kw_only=True)
class Averaged(Local):
    """Local methods that average during the run."""

    average_every: int | None = option(
        None,
        f"steps of each worker between two averages of the parameters; auto is {AVERAGE_EVERY}",
        unit="steps", low=1, none="auto",
    )  # fmt: skip

    @property
    def local_steps(self) -> int:
        """H: steps of each worker in a round."""
        return self.average_every or AVERAGE_EVERY

    def check_workers(self) -> None:
        first, (steps, tokens) = self.local_steps * self.workers, self.run.budget
        most = first if steps is None else steps
        if tokens is not None:
            most = min(most, tokens // self.tokens_per_step)
        if first > most:
            raise ConfigError(
                f"average_every is {self.local_steps}, so {self.workers} workers take {first} "
                f"steps before their first average, and the run has {most}; set average_every to "
                f"at most {max(1, most // self.workers)}, give more steps, or take strategy "
                "avg_runs"
            )

    def interval(self, done: int) -> int:
        return self.local_steps

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        super().begin(arena, position)
        if position is None and ANCHOR in self.kept_segments():
            updates.snapshot(arena.segment(ANCHOR), arena.params)

    def commit(self, arena: Arena, rank: int) -> None:
        if ANCHOR in self.kept_segments():
            span = self.share(arena, rank)
            arena.segment(ANCHOR)[span] = arena.params[span]


@dataclass(frozen=True, kw_only=True)
class LocalSGD(Averaged):
    """H steps of each worker on its own, then the average (Stich 2019, arXiv:1805.09767).

    H is `--average-every`. With `--local-after S` the first S steps of the run are averaged one by
    one, as in post-local SGD (Lin et al. 2020, arXiv:1808.07217). One worker is the serial run, and
    each keeps its own optimizer state. It is not always better than synchronous steps that send as
    much (Woodworth et al. 2020, arXiv:2002.07839). `mlxhog research advise` has a rule for H.
    """

    name: ClassVar[str] = "local_sgd"
    about: ClassVar[str] = "some steps of each worker on its own, then the average"

    local_after: int = option(
        0, "average after every step until the run has taken this many (post-local SGD)",
        unit="steps", low=0,
    )  # fmt: skip

    def interval(self, done: int) -> int:
        return 1 if done < self.local_after else self.local_steps


@dataclass(frozen=True, kw_only=True)
class FedProx(Averaged):
    """Local SGD with a proximal term, for workers whose texts differ (`--split`).

    With `w` a worker's parameters, `a` the last average and g a gradient, `--prox` is

        grad       the optimizer gets g + mu (w - a), so that Adam scales the pull as well
        decoupled  w <- w - lr mu (w - a), and then the update for g, as with weight decay

    `--prox-mu 0` is local SGD, bit for bit.
    Source: Li et al. 2020, Federated Optimization in Heterogeneous Networks, arXiv:1812.06127.
    """

    name: ClassVar[str] = "fedprox"
    about: ClassVar[str] = "local_sgd whose updates are pulled towards the last average"

    mu: float = option(
        0.01, "pull of the last average on local updates; 0 is local_sgd", low=0, flat="prox_mu"
    )
    prox: str = option(
        "grad", "the pull is part of the gradient, or decoupled from the optimizer",
        choices=("grad", "decoupled"),
    )  # fmt: skip

    def kept_segments(self) -> tuple[str, ...]:
        return (*super().kept_segments(), ANCHOR)

    def pull(self, one: LocalWorker, slot: Slot) -> Float32 | None:
        """Return `mu (w - a)`, unless the pull is decoupled."""
        if self.prox == "decoupled" or not self.mu:
            return None
        anchor = parameter(one.context.arena.segment(ANCHOR), slot)
        moved: Float32 = self.mu * (parameter(one.copy, slot) - anchor)
        return moved

    def before_step(self, one: LocalWorker, grads: Grads) -> None:
        if self.prox == "decoupled" and self.mu:
            arena = one.context.arena
            span = slice(arena.layout.dense_end)
            moved = one.copy[span] - arena.segment(ANCHOR)[span]
            one.copy[span] -= (one.lr() * self.mu) * moved


@dataclass(frozen=True, kw_only=True)
class Scaffold(Averaged):
    """Local SGD with control variates (Karimireddy et al. 2020, arXiv:1910.06378).

    Where workers train on different text, each one's updates drift towards its own optimum. Here
    worker i has the gradient g - c_i + c: c_i is the mean of its gradients in the last round, and c
    the mean of all c_i. After a round of K steps at the learning rate eta, from x to y_i (Option
    II),

        c_i <- c_i - c + (x - y_i) / (K eta)        x <- mean of y_i        c <- mean of c_i

    With plain SGD at a constant learning rate the first line is the mean of the round's gradients;
    with other optimizers, schedules or clipping that mean itself is used. A worker without a step
    in a round keeps its c_i. They are 0 at first: the first round is local SGD. Clipping is by the
    norm of g - c_i + c.
    """

    name: ClassVar[str] = "scaffold"
    about: ClassVar[str] = "local_sgd corrected by control variates, for texts that differ"
    models_per_average: ClassVar[int] = 2

    def pull(self, one: LocalWorker, slot: Slot) -> Float32 | None:
        """Return `c - c_i`."""
        arena, own = one.context.arena, f"{CONTROL}.{one.context.slot}"
        by: Float32 = parameter(arena.segment(CONTROL), slot) - parameter(arena.segment(own), slot)
        return by

    def before_step(self, one: LocalWorker, grads: Grads) -> None:
        """Sum the gradients of the backend; the update is along the corrected one."""
        arena = one.context.arena
        total, slots = arena.segment(f"{SUM}.{one.context.slot}"), arena.layout.slots
        for name, grad in without_tables(grads, slots).items():
            part = parameter(total, slots[name])
            part += dense(grad, slots[name].shape)

    def kept_segments(self) -> tuple[str, ...]:
        """Add all control variates: a run may be resumed within a round."""
        of_workers = [f"{name}.{k + 1}" for name in (CONTROL, SUM) for k in range(self.workers)]
        return (*super().kept_segments(), CONTROL, *of_workers)

    def segments(self, spec: Mapping[str, Parameter]) -> Segments:
        """Add control variates without those of tables, whose rows few workers share."""
        controls = [name for name in self.kept_segments() if name.startswith(CONTROL)]
        return {**super().segments(spec), **parameter_copies(controls, tables=False)}

    def next_control(self, arena: Arena, rank: int, span: slice) -> Float32:
        """Return a part of a worker's next c_i: the same in all stages but the last."""
        words = self.words(arena)
        steps = words["updates", rank] - words["updates_before", rank]
        if steps == 0:
            return arena.segment(f"{CONTROL}.{rank + 1}")[span]
        total: Float32 = arena.segment(f"{SUM}.{rank + 1}")[span]
        return total * (1.0 / steps)

    def reduce(self, arena: Arena, rank: int) -> None:
        super().reduce(arena, rank)
        span = self.share(arena, rank)
        every = (self.next_control(arena, other, span) for other in range(self.workers))
        arena.segment(CONTROL)[span] = mean_of(every)

    def commit(self, arena: Arena, rank: int) -> None:
        """Store a worker's control variate, and its share of the anchor."""
        super().commit(arena, rank)
        span, own = slice(arena.layout.probe.offset), arena.segment(f"{CONTROL}.{rank + 1}")
        own[span] = self.next_control(arena, rank, span)

    def broadcast(self, arena: Arena, rank: int) -> None:
        arena.segment(f"{SUM}.{rank + 1}").fill(0.0)
        super().broadcast(arena, rank)


def nesterov(
    anchor: Float32, velocity: Float32, mean: Float32, *, lr: float, momentum: float
) -> tuple[Float32, Float32]:
    """Return theta_s (`anchor`) and v after an outer step of `DiLoCo`, element by element.

    Also between machines (`mlxhog/cluster/round.py`).
    """
    velocity = momentum * velocity + mean
    direction: Float32 = mean + momentum * velocity
    return anchor - lr * direction, velocity


@dataclass(frozen=True, kw_only=True)
class DiLoCo(Averaged):
    """Local steps, and an outer step along their mean (Douillard et al. 2023, arXiv:2311.08105).

    Each worker takes H steps (`--average-every`) on one of M replicas (`--replicas`); the P / M
    workers of a replica train it lock-free. Then, with theta_s the parameters at the start of the
    round and v the outer momentum, 0 at first,

        D = mean over m of (theta_s - theta_m)
        v <- beta v + D
        theta_s <- theta_s - eta (D + beta v)        SGD with Nesterov momentum
        theta_m <- theta_s

    Inner optimizers keep their state. The form is that of OpenDiLoCo and torchft. With eta = 1 and
    beta = 0 this is local SGD but for rounding. Related: Lookahead, arXiv:1907.08610.
    """

    name: ClassVar[str] = "diloco"
    about: ClassVar[str] = "some steps of each worker, then an outer step along their mean"
    writes_alone: ClassVar[bool] = False  # the workers of a replica write it side by side

    replicas: int | None = option(
        None,
        "copies of the parameters, each trained lock-free by its workers; auto is one for every "
        "worker",
        low=1, none="auto",
    )  # fmt: skip
    outer_lr: float = option(0.7, "learning rate of the outer step", above=0)
    outer_momentum: float = option(0.9, "Nesterov momentum of the outer step", low=0, below=1)

    @property
    def n_replicas(self) -> int:
        return self.replicas or self.workers

    def check_workers(self) -> None:
        super().check_workers()
        if self.workers % self.n_replicas:
            divisors = [m for m in range(1, self.workers + 1) if self.workers % m == 0]
            raise ConfigError(
                f"replicas is {self.replicas}, which does not divide {self.workers} workers; take "
                f"one of {', '.join(map(str, divisors))}, or another number of workers"
            )
        if self.run.determinism == "rounds" and self.n_replicas < self.workers:
            raise ConfigError(
                f"determinism is rounds, and the {self.workers // self.n_replicas} workers of each "
                "replica train it lock-free; leave replicas out, or determinism"
            )

    def segments(self, spec: Mapping[str, Parameter]) -> Segments:
        return {**super().segments(spec), **parameter_copies([NEXT])}

    def kept_segments(self) -> tuple[str, ...]:
        return (*super().kept_segments(), ANCHOR, VELOCITY)

    def reduce(self, arena: Arena, rank: int) -> None:
        span = self.share(arena, rank)
        anchor, velocity = arena.segment(ANCHOR)[span], arena.segment(VELOCITY)[span]
        mean = mean_of(anchor - replica for replica in self.replicas_in(arena, span))
        rates = {"lr": self.outer_lr, "momentum": self.outer_momentum}
        arena.params[span], arena.segment(NEXT)[span] = nesterov(anchor, velocity, mean, **rates)

    def commit(self, arena: Arena, rank: int) -> None:
        super().commit(arena, rank)
        span = self.share(arena, rank)
        arena.segment(VELOCITY)[span] = arena.segment(NEXT)[span]
