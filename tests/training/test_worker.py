"""A worker follows the supervisor's commands; if a GPU shares no memory, it uses copies."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from mlxhog import TrainConfig, train
from mlxhog.arena import Arena, control, plan
from mlxhog.arena.control import Command
from mlxhog.base.workers import BACKENDS, WorkerSpec
from mlxhog.config.budget import Budget
from mlxhog.config.rules import Slowdown
from mlxhog.errors import EnvironmentLacks
from mlxhog.metal.engine import ReferenceEngine
from mlxhog.optim import Muon, metal_steps, muon
from mlxhog.optim.metal_steps import ADAM
from mlxhog.strategies import Lease, WriteResult, build
from mlxhog.strategies.hogwild import Hogwild
from mlxhog.training import gradients, steps, worker
from mlxhog.training.job import Job
from mlxhog.training.plan import make_plan
from tests.strategies.runs import context, strategy
from tests.training.small import small_config
from tests.training.test_watchdog import job


class OneBatch:
    """A strategy's worker with one batch of a given outcome."""

    def __init__(self, outcome, counts):
        self._outcome, self._counts = outcome, counts

    def claim(self):
        return Lease(0, 0)

    def read(self):
        pass

    def write(self, grads, lease, samples):
        return self._outcome

    def counts_step(self):
        return self._counts


def scripted(one):
    """A strategy with such a worker."""

    class Scripted(Hogwild):
        probes: ClassVar[bool] = False

        def worker(self, context):
            return one

    return strategy(kind=Scripted)


@pytest.mark.parametrize(
    ("outcomes", "dropped", "tokens"),
    [
        ([(True, WriteResult(False)), (False, WriteResult(False))], 1, 20),  # a round
        ([(True, WriteResult(True)), (False, WriteResult(False, too_late=True))], 1, 10),
        ([(True, WriteResult(applied=False, too_late=True))], 1, 10),  # late, and yet a step
    ],
)
def test_a_round_that_is_dropped_counts_once_and_text_that_is_thrown_away_does_not(
    arena, outcomes, dropped, tokens
):
    batch = SimpleNamespace(x=np.zeros((1, 10)), n_tokens=10, n_labels=10, n_bytes=40)
    gradients = SimpleNamespace(
        micro_batches=lambda lease: [batch],
        of=lambda batches: (1.0, {}),
        slow_down=lambda *_: None,
        slowdown=Slowdown(),
        backend=SimpleNamespace(forward_share=None),
    )
    for slot, (counts, outcome) in enumerate(outcomes, start=1):
        of = scripted(OneBatch(outcome, counts))
        one = job(slot=slot, setup=SimpleNamespace(strategy=of, config=TrainConfig()))
        ring = control.Ring(arena.segment(f"ring.{slot}"))
        steps.Steps(one, context(arena, slot, of), ring, gradients).step()
    entries = [arena.workers.entry(slot) for slot in range(1, len(outcomes) + 1)]
    assert [entry.steps for entry in entries] == [1] * len(outcomes)
    assert sum(entry.dropped for entry in entries) == dropped
    counters = arena.counters
    assert (counters.load("steps"), counters.load("tokens")) == (1, tokens)


def test_a_worker_commanded_to_rest_finishes_the_round_that_others_wait_for():
    events = []
    takes_steps = SimpleNamespace(step=lambda: events.append("step"))
    side_jobs = SimpleNamespace(serve=lambda: events.append("side job"))
    work = worker.Work(SimpleNamespace(), takes_steps, side_jobs)
    assert work.follow(Command.REST)  # it asks its strategy before it holds still
    assert events == ["step"]


class Clock:
    """Time that passes in naps only, and a run that is stopped at a given moment."""

    def __init__(self, stops_at_s):
        self.now_s, self.stops_at_s, self.naps = 0.0, stops_at_s, 0

    def nap(self, seconds):
        self.now_s += seconds
        self.naps += 1

    def training(self):
        return self.now_s < self.stops_at_s


@pytest.mark.parametrize(("stops_at_s", "slept_s"), [(9.0, 0.6), (0.3, 0.3)])
def test_a_slowed_gradient_takes_longer_with_signs_of_life_and_ends_with_the_run(
    monkeypatch, arena, stops_at_s, slept_s
):
    clock, beats = Clock(stops_at_s), []
    monkeypatch.setattr(gradients, "monotonic_ns", lambda: round(clock.now_s * 1e9))
    monkeypatch.setattr(gradients.time, "sleep", clock.nap)
    config = TrainConfig(slow="1=4", seed=0)
    setup = SimpleNamespace(config=config, batches=lambda: None)
    entry = SimpleNamespace(beat=lambda: beats.append(clock.now_s))
    backend = SimpleNamespace()
    slowed = gradients.Gradients(job(slot=2, setup=setup), arena, entry, backend)
    slowed.slow_down(200_000_000, 5, clock.training)
    assert clock.now_s == pytest.approx(slept_s, abs=0.02)
    assert len(beats) == clock.naps >= 10


@pytest.mark.parametrize("threads", [1, 2])
def test_the_threads_of_a_worker_are_those_of_its_optimizer_and_its_passes(
    monkeypatch, tmp_path, threads
):
    config = small_config(tmp_path, strategy="serial", optimizer="muon", threads=threads)
    plan = make_plan(config)
    backend = SimpleNamespace(bind=lambda *_: None)
    monkeypatch.setattr(worker.backends, "create", lambda *_, **__: backend)
    monkeypatch.setattr(worker, "live_params", lambda *_: None)
    with Arena.create(plan.layout) as arena:
        job = Job(
            setup=plan.for_workers(), handle=arena.handle(), slot=1, budget=Budget(steps=1),
            step_limit=1, run_dir=tmp_path,
        )  # fmt: skip
        backend = worker.start_backend(job, arena, job.kernels)
        context = worker.make_context(job, arena, arena.workers.entry(1), backend)
        assert isinstance(context.optimizer, Muon)
        assert context.optimizer.threads == threads
        assert context.threads == context.target(1).threads == threads


# -- unified memory --------------------------------------------------------------------------------


class Refuses(ReferenceEngine):
    def adopt(self, host):
        raise EnvironmentLacks("MLX cannot import this")


class RefusesLater(ReferenceEngine):
    """Imports the parameters and `more` segments, then fails."""

    def __init__(self, more):
        super().__init__()
        self._left = more + 1

    def adopt(self, host):
        self._left -= 1
        if self._left < 0:
            raise EnvironmentLacks("MLX cannot import one more")
        return super().adopt(host)


class Copies(ReferenceEngine):
    def adopt(self, host):
        return host.copy()


@pytest.fixture
def arena():
    with Arena.create(
        plan(
            {},
            max_workers=2,
            private=("m", "v"),
            shared=("s",),
            n_tickets=1,
            extra={f"ring.{slot}": ("uint8", control.RING_BYTES) for slot in (1, 2)},
        ),
        write="cas",
    ) as arena:
        yield arena


def a_job(backend, engine=None, **options):
    config = TrainConfig(**{"strategy": "hogwild", "optimizer": "adamw", **options})
    return job(
        slot=2,
        setup=SimpleNamespace(
            config=config,
            strategy=build(config, 1),
            workers=2 * (WorkerSpec(backend, 1),),
            writers=SimpleNamespace(engine=lambda backend: engine),
            decay=frozenset(),
        ),
    )


def with_engine(monkeypatch, engine):
    monkeypatch.setattr(metal_steps.engines, "create", lambda name, **_: engine)


def a_backend(error):
    """A backend that orthogonalises as the CPU does, but for a relative error."""

    def polar(xs, scales, coefficients):
        return [(1 + error) * u for u in muon.polar_references(xs, scales, coefficients)]

    return SimpleNamespace(polar=polar)


@pytest.mark.parametrize(
    ("device", "of"),
    [
        ("auto", {"mlx:gpu", "torch:mps"}),
        ("cpu", set()),
        ("worker", {"mlx:gpu", "torch:mps", "mlx:cpu", "torch:cpu"}),
    ],
)
def test_each_worker_orthogonalises_where_the_option_says(device, of):
    backend = a_backend(1e-6)
    for name in BACKENDS:
        one = a_job(name, optimizer="muon", orthogonalization_device=device)
        expected = backend.polar if name in of else None
        assert worker.polar_of_device(one, backend) is expected
    assert worker.polar_of_device(a_job("mlx:gpu"), backend) is None  # AdamW has nothing to do


@pytest.mark.parametrize("error", [0.01, np.nan])
def test_a_device_that_is_too_coarse_is_refused_or_replaced_by_the_cpu_aloud(capsys, error):
    backend = a_backend(error)
    asked = a_job("mlx:cpu", optimizer="muon", orthogonalization_device="worker")
    with pytest.raises(EnvironmentLacks, match="mlx:cpu differ from the CPU's.*MLX_ENABLE_TF32=0"):
        worker.polar_of_device(asked, backend)
    assert worker.polar_of_device(a_job("mlx:gpu", optimizer="muon"), backend) is None
    notice = capsys.readouterr().out
    assert notice.startswith("notice: worker 2 orthogonalises on the CPU: directions of mlx:gpu")


LIVE = {"read": "live", "predict": "none"}


def test_a_gpu_reads_the_parameters_themselves_where_both_sides_are_one_memory(monkeypatch, arena):
    with_engine(monkeypatch, ReferenceEngine())
    params = worker.live_params(a_job("mlx:gpu", **LIVE), arena)
    assert params is not None
    assert np.shares_memory(params, arena.params)
    assert worker.live_params(a_job("mlx:gpu"), arena) is None  # not requested
    monkeypatch.setattr(metal_steps.engines, "create", pytest.fail)
    assert worker.live_params(a_job("torch:cpu", **LIVE), arena) is not None


@pytest.mark.parametrize(
    ("engine", "why"),
    [(Refuses(), "MLX cannot import this"), (Copies(), "does not see the writes of the other")],
)
def test_a_gpu_that_cannot_share_memory_falls_back_aloud(monkeypatch, arena, capsys, engine, why):
    with_engine(monkeypatch, engine)
    assert worker.live_params(a_job("mlx:gpu", **LIVE), arena) is None
    assert worker.gpu_steps(a_job("mlx:gpu", "mlx"), arena, ADAM) is None
    live, writes = capsys.readouterr().out.splitlines()
    assert live.startswith("notice: worker 2 (mlx:gpu) takes snapshots, not live reads: ")
    assert writes.startswith("notice: worker 2 (mlx:gpu) lets the CPU add its steps, not the GPU: ")
    assert live.endswith(why)
    assert writes.endswith(why)


def test_a_gpu_that_shares_memory_adds_its_own_steps(monkeypatch, arena):
    with_engine(monkeypatch, ReferenceEngine())
    before = arena.params.copy()
    assert worker.gpu_steps(a_job("mlx:gpu", "mlx"), arena, ADAM) is not None
    np.testing.assert_array_equal(arena.params, before)
    assert worker.gpu_steps(a_job("mlx:gpu"), arena, ADAM) is None


@pytest.mark.parametrize("more", [0, 1])
def test_moments_that_cannot_be_imported_leave_the_steps_to_the_cpu(
    monkeypatch, arena, capsys, more
):
    with_engine(monkeypatch, RefusesLater(more))
    assert worker.gpu_steps(a_job("mlx:gpu", "mlx"), arena, ADAM) is None
    assert "lets the CPU add its steps, not the GPU: MLX cannot" in capsys.readouterr().out


def test_every_segment_of_the_rule_is_imported_before_the_first_step(monkeypatch, arena):
    with_engine(monkeypatch, RefusesLater(4))
    steps = worker.gpu_steps(a_job("mlx:gpu", "mlx"), arena, ADAM)
    assert steps is not None
    for name in ("m.1", "v.1", "m.2", "v.2"):
        steps.adopt(arena.segment(name))  # as steps do; it is not imported again
    rule = replace(ADAM, private=("m",), shared=("s",))
    with_engine(monkeypatch, RefusesLater(2))
    assert worker.gpu_steps(a_job("mlx:gpu", "mlx"), arena, rule) is None


def test_memory_of_several_pieces_of_macos_is_not_imported(monkeypatch, arena, capsys):
    with_engine(monkeypatch, ReferenceEngine())
    monkeypatch.setattr(type(arena.layout), "straddles", lambda self, name: name == "v.2")
    assert worker.gpu_steps(a_job("mlx:gpu", "mlx"), arena, ADAM) is None
    assert "segment v.2 has" in capsys.readouterr().out
    monkeypatch.setattr(type(arena.layout), "straddles", lambda self, name: name == "params")
    assert worker.live_params(a_job("mlx:gpu", **LIVE), arena) is None
    assert "segment params has" in capsys.readouterr().out


@pytest.mark.slow
def test_the_supervisor_passes_on_notices_of_a_starting_worker(tmp_path, monkeypatch):
    log = tmp_path / "worker-1.log"
    assert worker.read_notices(log, 0) == []
    log.write_text("notice: of an earlier process\n")
    begin = log.stat().st_size
    with log.open("a") as stream:
        stream.write("something else\nnotice: it takes snapshots\n")
    assert worker.read_notices(log, begin) == ["it takes snapshots"]

    messages = []
    monkeypatch.setattr(worker, "read_notices", lambda path, since: [f"notice of {path.name}"])
    train(
        small_config(tmp_path, workers="mlx:cpu*2", steps=2),
        observer=lambda progress: messages.append(progress.message or ""),
    )
    # which worker is up first is the scheduler's choice
    assert sorted(m for m in messages if m.startswith("notice of")) == [
        "notice of worker-1.log",
        "notice of worker-2.log",
    ]
