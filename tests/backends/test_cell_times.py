"""Times of cells decide kernels: how they are taken, kept, and what a worker does with them.

Times are given, never measured: the emulation stands in for the GPU.
"""

from functools import partial
from itertools import chain, repeat
from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlxhog import TrainConfig, backends
from mlxhog.backends import cell_times
from mlxhog.base import capabilities
from mlxhog.base.capabilities import CellShape, CellTimes
from mlxhog.errors import MetalError
from mlxhog.models import cells
from mlxhog.models.ops import kernels
from mlxhog.models.registry import load_architecture
from mlxhog.training.plan.job import choose_operators
from tests.backends.test_gpu_worker import gpu
from tests.metal.fake_gpu import FakeMLX

__all__ = ["gpu"]  # the fixture

MODEL = load_architecture("7to1-tiny")
MLSTM, SLSTM = CellShape("mlstm_cell", (2, 8, 16, 8)), CellShape("slstm_cell", (2, 8))
CONV = CellShape("causal_conv", (4, 16))


def clock_of(*seconds):
    """A clock by which passes take so long, of eager and Metal in turns; the first two are warm."""
    ends = chain([0.0, 0.0], chain.from_iterable((0.0, one) for one in seconds), repeat(0.0))
    return partial(next, ends)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(cell_times, "B", 2)
    monkeypatch.setattr(cell_times, "S", 20)


@pytest.mark.parametrize("framework", ["mlx", "torch"])
@pytest.mark.parametrize("cell", [MLSTM, SLSTM, CONV], ids=str)
def test_a_time_is_the_median_of_passes_in_turns_without_the_first(framework, cell):
    ops = kernels.choose(framework, "metal-emulated", "cpu")
    clock, beats = clock_of(3, 7, 30, 4, 1, 90, 2, 8, 4, 9), []
    name = f"{framework}:cpu"
    (times,) = cell_times.measure(
        name, ops, [cell], threads=1, clock=clock, beat=lambda: beats.append(1)
    )
    assert times == CellTimes(name, cell, 3, 8)
    assert len(beats) == cell_times.REPEATS + 1, "each is a sign of life"


def test_a_gpu_worker_measures_its_kernels_and_can_do_without_some(gpu, monkeypatch):
    kernels._metal.cache_clear()
    monkeypatch.setattr(mx, "compile", lambda function: function)  # the stand-in evaluates
    fake = FakeMLX().install(monkeypatch)
    backend = backends.create("mlx:gpu", threads=1, kernels="metal")
    (times,) = backend.measure_cells([SLSTM])
    assert {kernel.name for kernel in fake.launched} == {"slstm_forward", "slstm_backward"}
    assert (times.backend, times.cell) == ("mlx:gpu", SLSTM)
    fake.launched.clear()
    backend.make_eager(["slstm_cell"])
    backend.measure_cells([SLSTM, CONV])
    assert not any(kernel.name.startswith("slstm") for kernel in fake.launched)
    assert fake.launched
    kernels._metal.cache_clear()


class Measured:
    """A backend whose cells take as long as planned; the choice is its list of eager operators."""

    def __init__(self, **planned):
        self.planned, self.asked, self.eager = planned, [], None

    def measure_cells(self, asked, beat):
        self.asked += [str(cell) for cell in asked]
        for cell in asked:
            if isinstance(seconds := self.planned[cell.operator], Exception):
                raise seconds
            yield CellTimes("mlx:gpu", cell, *seconds)

    def make_eager(self, operators):
        self.eager = sorted(operators)


def started(backend, faulty=(), **options):
    """What a worker says of its choice."""
    notices = []
    job = SimpleNamespace(
        config=TrainConfig(**options), plan=SimpleNamespace(model=MODEL), slot=2,
        spec=SimpleNamespace(backend="mlx:gpu"),
        leave_notice=lambda text, *details: notices.append(text),
    )  # fmt: skip
    choose_operators(job, backend, faulty, lambda: None)
    return notices


PLANNED = {"mlstm_cell": (3e-3, 2e-3), "slstm_cell": (1e-3, 4e-3), "causal_conv": (2e-3, 1e-3)}


def test_a_worker_measures_its_cells_once_takes_the_faster_operators_and_says_so():
    first, second = Measured(**PLANNED), Measured()
    (said,) = started(first)
    assert said.startswith("worker 2 (mlx:gpu) measured its cells, kept for later runs: ")
    assert "mlstm_cell 4x64x64x64 2 ms by Metal, 3 ms eager" in said
    assert "slstm_cell 4x32 4 ms by Metal, 1 ms eager" in said
    assert said.endswith("; causal_conv, mlstm_cell by Metal")
    assert first.asked == [str(cell) for cell in cells.cells(MODEL)]
    assert (started(second), second.asked) == ([], [])
    assert first.eager == second.eager == ["slstm_cell"]
    assert [one.cell for one in capabilities.load().cells] == list(cells.cells(MODEL))


def test_an_operator_that_fails_is_eager_with_a_notice_and_measured_again_by_the_next_run():
    error = MetalError("kernel slstm_forward does not compile")
    for _ in range(2):
        backend = Measured(**PLANNED | {"slstm_cell": error})
        notices = started(backend)
        assert backend.eager == ["slstm_cell"]
        assert backend.asked.count("slstm_cell 4x32") == 1
        assert notices[0] == (
            "worker 2 (mlx:gpu) uses the eager operator slstm_cell: its Metal kernels do not "
            "compute slstm_cell 4x32 (kernel slstm_forward does not compile)"
        )
    assert len(notices) == 1, "the others have times"
    lost = RuntimeError("[METAL] Command buffer execution failed: Caused GPU Hang Error")
    with pytest.raises(RuntimeError, match="GPU Hang"):
        started(Measured(slstm_cell=lost))


def test_nothing_is_measured_where_nothing_is_open_and_no_time_of_a_faulty_kernel_is_kept():
    for options in ({"kernels": "metal"}, {"determinism": "record"}):
        backend = Measured()
        assert (started(backend, **options), backend.eager) == ([], None)
    backend = Measured(**PLANNED)
    started(backend, faulty={"slstm_cell"})
    assert not any(name.startswith("slstm") for name in backend.asked)
    assert backend.eager == []


def test_times_that_cannot_be_kept_count_for_the_run(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    backend = Measured(**PLANNED)
    (said,) = started(backend)
    assert "not kept: " in said
    assert "set XDG_CACHE_HOME" in said
    assert backend.eager == ["slstm_cell"]
