"""A worker follows commands, uses copies where a GPU shares no memory, and outlives its GPU.

The tests cause the abort of a GPU worker by macOS: by SIGABRT, as on a Mac, or by the error that
MLX raises. CPU workers stand in for GPU workers.
"""

import itertools
import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog import TrainConfig, backends
from mlxhog.arena import Arena, control, plan
from mlxhog.arena.control import ControlCommand
from mlxhog.arena.workers import WorkerPhase
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.base.workers import BACKENDS, WorkerSpec
from mlxhog.config.budget import Budget
from mlxhog.config.rules import Slowdown
from mlxhog.data.batch import Batch
from mlxhog.errors import EnvironmentLacks, MetalError, WorkerFailed
from mlxhog.metal.emulator.engine import EmulatorEngine
from mlxhog.models.registry import load_architecture
from mlxhog.optim import metal_steps, muon
from mlxhog.strategies import build
from mlxhog.strategies.worker import Lease
from mlxhog.training.plan.job import METAL_EXIT_CODE, Job, live_params
from mlxhog.training.supervisor import handles
from mlxhog.training.supervisor.training import train
from mlxhog.training.worker import background_tasks, process
from mlxhog.training.worker import loop as worker
from mlxhog.training.worker.steps import Gradients, OverlappedSteps
from tests.processes import python
from tests.soak.killer import Killer
from tests.strategies.runs import LR, context, new_arena, strategy
from tests.test_errors import ERROR, compiler_text
from tests.threads import wait_until
from tests.training.small import Messages, small_config


def job(**options):
    return Job(**{**dict.fromkeys(Job.__dataclass_fields__), "notices": [], **options})


def a_job(backend, engine=None, **options):
    config = TrainConfig(**{"strategy": "hogwild", "optimizer": "adamw", **options})
    its_plan = SimpleNamespace(
        config=config,
        strategy=build(config, 1),
        workers=2 * (WorkerSpec(backend, 1),),
        writers=SimpleNamespace(engine=lambda backend: engine),
        decay=frozenset(),
    )
    return job(slot=2, plan=its_plan)


def a_backend(error):
    """A backend that orthogonalizes as the CPU does, but for a relative error."""
    return SimpleNamespace(orthogonalize=lambda *of: [(1 + error) * u for u in muon.on_cpu(*of)])


def test_each_worker_orthogonalizes_where_the_option_says():
    backend = a_backend(1e-6)
    on = {"auto": {"mlx:gpu", "torch:mps"}, "cpu": set(), "worker": set(BACKENDS)}
    for device, name in itertools.product(on, BACKENDS):
        one = a_job(name, optimizer="muon", orthogonalization_device=device)
        expected = backend.orthogonalize if name in on[device] else None
        assert worker.orthogonalize_of_device(one, backend) is expected
    adamw = a_job("mlx:gpu")  # which has nothing to orthogonalize
    assert worker.orthogonalize_of_device(adamw, backend) is None


@pytest.mark.parametrize("error", [0.01, np.nan])
def test_a_device_that_is_too_coarse_is_refused_or_replaced_by_the_cpu_aloud(capsys, error):
    backend = a_backend(error)
    asked = a_job("mlx:cpu", optimizer="muon", orthogonalization_device="worker")
    with pytest.raises(EnvironmentLacks, match="mlx:cpu differ from the CPU's.*MLX_ENABLE_TF32=0"):
        worker.orthogonalize_of_device(asked, backend)
    assert worker.orthogonalize_of_device(a_job("mlx:gpu", optimizer="muon"), backend) is None
    notice = capsys.readouterr().out
    assert notice.startswith("notice: worker 2 orthogonalizes on the CPU: directions of mlx:gpu")


class Unified(EmulatorEngine):
    """An engine that says that it is a GPU's."""

    emulated = False


class Refuses(Unified):
    def wrap(self, host):
        raise EnvironmentLacks("MLX cannot import this")


class Copies(Unified):
    def wrap(self, host):
        return host.copy()


@pytest.fixture
def arena():
    with Arena.create(plan({}, max_workers=2, n_tickets=1), write="cas") as arena:
        yield arena


OF_A_LARGE_PARENT = """
import subprocess, sys
large = b"x" * (600 << 20)
code = "from mlxhog.training.worker.loop import resident_bytes; print(resident_bytes())"
print(subprocess.check_output([sys.executable, "-c", code], text=True))
"""


def test_the_memory_of_a_worker_does_not_begin_with_that_of_its_parent():
    process = python("-c", OF_A_LARGE_PARENT, cwd=Path(__file__).parents[3])
    assert 5 << 20 < int(process.stdout) < 500 << 20


LIVE = a_job("mlx:gpu", read="live", predict="none")
WRITES = a_job("mlx:gpu", "mlx")


def test_a_gpu_reads_the_parameters_themselves_where_both_sides_are_one_memory(monkeypatch, arena):
    monkeypatch.setattr(metal_steps.engines, "create", lambda name, **_: Unified())
    assert np.shares_memory(live_params(LIVE, arena), arena.params)
    assert live_params(a_job("mlx:gpu"), arena) is None  # not requested
    assert worker.gpu_steps(WRITES, arena) is not None
    assert worker.gpu_steps(a_job("mlx:gpu"), arena) is None
    monkeypatch.setattr(metal_steps.engines, "create", pytest.fail)
    on_cpu = a_job("torch:cpu", read="live", predict="none")
    assert live_params(on_cpu, arena) is not None


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        (Refuses, "MLX cannot import this"),
        (Copies, "does not see the writes of the other"),
        (Unified, "segment params has"),  # several pieces of macOS
    ],
)
def test_a_gpu_that_cannot_share_memory_falls_back_aloud(monkeypatch, arena, capsys, engine, why):
    monkeypatch.setattr(metal_steps.engines, "create", lambda name, **_: engine())
    if engine is Unified:
        monkeypatch.setattr(type(arena.layout), "straddles", lambda self, name: name == "params")
    assert live_params(LIVE, arena) is None
    assert worker.gpu_steps(WRITES, arena) is None
    live, writes = capsys.readouterr().out.splitlines()
    its = "notice: worker 2 (mlx:gpu)"
    assert live.startswith(f"{its} reads snapshots, not live parameters: ")
    assert writes.startswith(f"{its} lets the CPU apply its updates, not the GPU: ")
    assert why in live
    assert why in writes


def test_a_worker_has_heartbeats_through_its_start_and_logs_why_its_kernels_do_not_compile(
    monkeypatch, capsys
):
    events, config = [], TrainConfig(kernels="auto", determinism="none", read="snapshot")
    backend = SimpleNamespace(
        check_kernels=lambda beat, model: [events.append("check"), beat()] and {},
        make_eager=lambda operators: events.append(set(operators)),
        bind=lambda *of, **how: events.append("bind"),
        close=lambda: None,
    )
    monkeypatch.setattr(backends, "create", lambda *of, **how: events.append("import") or backend)
    outcomes = iter([MetalError(f"kernel slstm failed: {compiler_text()}"), None])

    class FirstGradient:
        def __init__(self, *of):
            self.backend = backend

        def warm_up(self):
            events.append("gradient")
            if (error := next(outcomes)) is not None:
                raise error

    monkeypatch.setattr(worker, "Gradients", FirstGradient)
    its_plan = SimpleNamespace(
        config=config, model=load_architecture("mad-attention"), layout=None, sampled=None,
        base=None, gpu_share=None, kernels=["metal"], workers=(WorkerSpec("mlx:gpu", 1),),
    )  # fmt: skip
    monkeypatch.setattr(Job, "gpu_share", None)
    entry = SimpleNamespace(beat=lambda phase: events.append(phase))
    own = job(slot=1, plan=its_plan)
    worker.start_gradients(own, SimpleNamespace(params=None), entry)
    beat = WorkerPhase.STARTING
    rest = ["bind", beat, "gradient"]
    assert events == ["import", beat, "check", beat, set(), *rest, "import", beat, *rest]
    (notice,) = own.notices
    assert ERROR in notice
    assert ERROR in capsys.readouterr().out.splitlines()


ENDS = """
import sys, types
from pathlib import Path
from mlxhog.errors import MetalError
from mlxhog.training.worker import process
from tests.test_errors import compiler_text

def run(pipe, job):
    error = RuntimeError(compiler_text())
    raise MetalError(f"kernel slstm failed: {error}") if sys.argv[2] == "ours" else error

sys.modules["mlxhog.training.worker.loop"] = types.SimpleNamespace(run=run)
run_dir = Path(sys.argv[1])
job = types.SimpleNamespace(run_dir=run_dir, log=run_dir / "logs" / "worker-1.log")
process.main(None, job)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("whose", "code"), [("ours", METAL_EXIT_CODE), ("mlx's", 1)])
def test_a_compilers_text_that_ends_a_worker_is_whole_in_its_log_and_the_last_line_is_its_error(
    whose, code, tmp_path
):
    root = Path(__file__).parents[3]
    assert python("-c", ENDS, str(tmp_path), whose, cwd=root).returncode == code
    lines = (tmp_path / "logs" / "worker-1.log").read_text().splitlines()
    assert ERROR in lines
    assert sum("warning: unused" in line for line in lines) > 10
    assert ERROR in lines[-1]


@pytest.fixture
def gpu(monkeypatch):
    """Workers of MLX on the CPU count as GPU workers."""
    monkeypatch.setattr(handles, "GPU_BACKENDS", ("mlx:cpu",))


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_an_aborted_gpu_worker_computes_half_as_much_at_a_time_and_the_run_is_done(tmp_path):
    messages, killer = Messages(), Killer(kills=2, number=signal.SIGABRT)
    result = killer.train(small_config(tmp_path, batch_size=4, steps=20), observer=messages)
    assert (result.status, result.restarts) == ("done", 2)
    first, second = [text for text in messages if "SIGABRT" in text and "macOS" in text]
    assert "micro-batches of 2 sequences" in first
    assert "MLX_MAX_OPS_PER_BUFFER=8" in first
    assert "micro-batches of 1 sequence." in second
    log = (Path(result.run) / "logs" / "worker-1.log").read_text()
    sizes = [line for line in log.splitlines() if line.startswith("micro-batch ")]
    assert sizes == [f"micro-batch {n}" for n in (4, 2, 1)]


MLX_SAYS = (
    "[METAL] Command buffer execution failed: Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)."
)
AFTER = 3  # gradients


def that_loses_its_gpu(pipe, job):
    """A worker that fails with more than one sequence at a time; children import it."""
    gradient, calls = Gradients.of, itertools.count()

    def ended(self, batches):
        if job.micro_batch > 1 and next(calls) >= AFTER:
            if job.micro_batch > 2:
                raise RuntimeError(MLX_SAYS)
            raise MetalError("kernel mlstm_out failed") from RuntimeError(MLX_SAYS)
        return gradient(self, batches)

    Gradients.of = ended
    process.main(pipe, job)


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_a_worker_whose_error_comes_from_mlx_computes_half_as_much_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "main", that_loses_its_gpu)
    messages = Messages()
    result = train(small_config(tmp_path, batch_size=4, steps=40), observer=messages)
    assert (result.status, result.restarts) == ("done", 2)
    first, second = [message for message in messages if "micro-batches" in message]
    assert "kIOGPUCommandBufferCallbackErrorImpactingInteractivity" in first
    assert "micro-batches of 2 sequences" in first
    assert "lost its GPU (error: kernel mlstm_out failed)" in second
    assert "micro-batches of 1 sequence." in second


def that_has_a_faulty_kernel(pipe, job):
    """A worker whose Metal kernels fail after some steps; children import it."""
    gradient, calls = Gradients.of, itertools.count()

    def ended(self, batches):
        if job.kernels != "eager" and next(calls) >= AFTER:
            raise MetalError("kernel slstm_forward_8 failed when MLX evaluated it: error: 'flaot'")
        return gradient(self, batches)

    Gradients.of = ended
    process.main(pipe, job)


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("kernels", ["auto", "native"])
def test_a_worker_whose_kernel_fails_later_goes_on_eagerly_or_ends_with_all_steps_saved(
    kernels, tmp_path, monkeypatch
):
    monkeypatch.setattr(process, "main", that_has_a_faulty_kernel)
    config = small_config(tmp_path, steps=20, kernels=kernels)
    if kernels != "auto":  # it was asked for, so nothing replaces it
        with pytest.raises(WorkerFailed, match="kernel slstm_forward_8 failed.*--kernels eager"):
            train(config)
        (run,) = Path(config.runs_dir).iterdir()
        assert train(replace(config, resume=str(run), kernels="eager")).status == "done"
        return
    messages = Messages()
    result = train(config, observer=messages)
    assert (result.status, result.steps, result.restarts) == ("done", 20, 1)
    (notice,) = [text for text in messages if "slstm_forward_8" in text]
    assert notice.startswith("worker 1 (mlx:cpu) continues with eager operators only: error: ")
    assert notice in json.loads((Path(result.run) / "run.json").read_text())["notices"]


def that_lacks_memory(pipe, job):
    """A worker whose gradients need more memory than there is; children import it."""

    def ended(self, batches):
        raise MemoryError

    Gradients.of = ended
    process.main(pipe, job)


@pytest.mark.slow
def test_workers_that_lack_memory_say_so_and_the_run_names_the_limit_and_how_to_need_less(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(process, "main", that_lacks_memory)
    words = "the memory is used up: .*log, or use --recompute blocks, fewer .*--model: .* GiB"
    with pytest.raises(WorkerFailed, match=words):
        train(small_config(tmp_path, steps=4, restarts=1))


def test_every_abort_halves_micro_batches_and_chunks_down_to_one():
    its_plan = SimpleNamespace(
        config=SimpleNamespace(micro_batch=6, seq_len=10_000),
        gpu_share=GPUShare(piece_tokens=4096),
        workers=(WorkerSpec("mlx:gpu", 1), WorkerSpec("torch:mps", 1)),
    )
    jobs = [job(plan=its_plan, slot=1, halvings=halvings) for halvings in range(4)]
    assert [job.micro_batch for job in jobs] == [6, 3, 1, 1]
    of_mps = [replace(job, slot=2).micro_batch for job in jobs]
    assert of_mps == [3, 3, 1, 1], "no gradient has more tokens than MPS adds right"
    assert [job.gpu_share.piece_tokens for job in jobs] == [4096, 2048, 1024, 512]


TOKENS = 10


def overlapped(arena, compute=list):
    """Steps of a worker whose gradients are 1, computed while `compute` runs."""
    chosen = strategy(overlap=True)
    one = context(arena, 1, chosen)
    one.budget = Budget(steps=9)

    def gradient(batches):
        compute()
        return 1.0, {"w": np.ones(4, np.float32)}

    batch = SimpleNamespace(x=np.zeros((1, TOKENS)), n_tokens=TOKENS, n_labels=TOKENS, n_bytes=40)
    gradients = SimpleNamespace(
        micro_batches=lambda lease: [batch],
        of=gradient,
        slow_down=lambda *_: None,
        slowdown=Slowdown(),
        backend=SimpleNamespace(forward_share=None),
    )
    its_plan = SimpleNamespace(strategy=chosen, config=TrainConfig(overlap=True))
    ring = control.Ring(np.zeros(control.RING_BYTES, np.uint8))
    return OverlappedSteps(job(slot=1, plan=its_plan), one, ring, gradients)


@pytest.fixture
def of_steps():
    with new_arena(strategy(), steps=4) as result:
        yield result


def test_an_update_is_applied_and_recorded_while_the_next_gradient_is_computed(of_steps):
    gradients = itertools.count()

    def compute():
        before = next(gradients)
        wait_until(lambda: entry.steps == before)

    steps = overlapped(of_steps, compute)
    entry = steps.context.entry
    for _ in range(5):
        steps.step()
    assert (entry.steps, entry.opt_step, entry.phase) == (4, 4, WorkerPhase.IDLE)
    assert (entry.staleness_sum, entry.staleness_max) == (3, 1)
    assert steps.ring.drain()["staleness"].tolist() == [0, 1, 1, 1]
    assert of_steps.param("w").tolist() == [-4 * LR] * 4
    assert of_steps.counters.load("tokens") == 4 * TOKENS


def test_the_share_of_lost_updates_stays_right_beyond_the_steps_that_a_float32_counts(of_steps):
    of_steps.probe.fill(2**24 - 1)
    for entry in of_steps.workers:
        entry.probe_adds = 2**23
    of_steps.workers.entry(1).probe_adds -= 1
    steps = overlapped(of_steps)
    for _ in range(4):
        steps.step()
    steps.context.settle()
    assert steps.context.entry.steps == 4
    assert of_steps.probe.tolist() == [2**24] * 64
    assert of_steps.lost_update_rate() == 0.0


def test_the_arena_is_quiesced_at_a_pause_and_before_any_request(of_steps):
    steps = overlapped(of_steps)
    steps.step()
    assert (steps.context.entry.steps, of_steps.counters.load("version")) == (0, 0)
    of_steps.counters.store("pause", 1)
    steps.step()
    assert (steps.context.entry.phase, steps.context.entry.steps) == (WorkerPhase.WAITING, 1)
    of_steps.counters.store("pause", 0)
    steps.step()
    of_steps.counters.add("eval_asked", 1)
    assert background_tasks.claims_task(steps.context, "eval")
    assert steps.context.entry.steps == of_steps.counters.load("version") == 2
    steps.step()
    jobs = SimpleNamespace(evaluate_end=list)
    assert not worker.obey(ControlCommand.EVALUATE, steps, jobs)
    assert steps.context.entry.steps == 3
    assert steps.context.entry.staleness_max == 0  # each was read after the last one's write


@pytest.mark.parametrize(("micro_batch", "sizes"), [(8, [8]), (3, [3, 3, 2])])
def test_smaller_micro_batches_give_the_gradient_of_the_same_sequences(micro_batch, sizes):
    x, seen = np.arange(32, dtype=np.int32).reshape(8, 4), []

    def loss_and_grads(batch):
        seen.append(len(batch.x))
        mean = batch.x.mean(dtype=np.float32)
        return float(mean), {"w": np.array([mean], np.float32)}

    data = SimpleNamespace(at=lambda epoch, ticket: Batch(x, x, n_bytes=32))
    one = SimpleNamespace(
        micro_batch=micro_batch, slot=1, config=SimpleNamespace(inject_stragglers=None),
        plan=SimpleNamespace(batches=lambda: data, sidecar=None),
    )  # fmt: skip
    backend, entry = SimpleNamespace(loss_and_grads=loss_and_grads), SimpleNamespace(beat=list)
    gradients = Gradients(one, None, entry, backend)
    loss, grads = gradients.of(gradients.micro_batches(Lease(0, 0)))
    assert (seen, loss, grads["w"]) == (sizes, pytest.approx(15.5), pytest.approx(15.5))
