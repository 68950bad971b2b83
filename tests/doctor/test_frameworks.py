"""Checks of the frameworks: backends, memory between them, and a run whose worker is killed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.arena.child import Failed
from mlxhog.config.config import DEFAULT_MODEL, TrainConfig
from mlxhog.doctor import frameworks
from mlxhog.doctor.checks import CheckResult
from mlxhog.doctor.frameworks import PaceSample, Probe, judge_pace
from mlxhog.errors import EnvironmentLacks
from mlxhog.machine.load import Load
from mlxhog.machine.machine import Machine
from mlxhog.machine.workers import BACKENDS
from mlxhog.training import batch_size
from mlxhog.training.batch_size import BatchChoice
from tests.cli.test_cli import PROGRESS, RESULT, WORKER

QUIET, BUSY = Load(0.0, 2, 0.4), Load(1.8, 2, 9.3)

# -- backends that fail, and bad gradients ---------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("no_apple_gpu")
def test_a_backend_that_does_not_start_fails_and_is_not_measured() -> None:
    mac = Machine("macos", "arm64", 10, 8 << 30, "Apple M4", frozenset({"mlx"}))
    checks, speeds = frameworks.check_backends(mac, gradients=1)
    gpu = next(check for check in checks if check.name == "backend mlx:gpu")
    assert gpu.result == CheckResult.FAIL
    assert "Metal" in gpu.found
    assert "--workers mlx:gpu cannot train here" in gpu.consequence
    assert set(speeds.usual) == {"mlx:cpu"}
    assert speeds.metal == {}


class FakeChild:
    """Measures nothing: tells a speed for each form, and fails where one is asked to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.failing: set[tuple[str, str]] = set()

    def __enter__(self) -> FakeChild:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, limit_s: float, function: object, name: str, kernels: str, seconds: float):
        self.asked.append((name, kernels))
        if (name, kernels) in self.failing:
            raise Failed("the GPU is gone")
        return (300.0 if kernels == "metal" else 200.0), 5.5


MAC = Machine("macos", "arm64", 10, 8 << 30, "Apple M4", frozenset({"mlx", "torch"}))


def test_a_gpu_is_measured_with_both_forms_where_the_kernels_agreed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = FakeChild()
    monkeypatch.setattr(frameworks, "Child", lambda **_: child)
    checks, speeds = frameworks.check_backends(MAC, 4, agreed={"mlx"})
    assert child.asked == [
        ("mlx:gpu", "reference"),
        ("mlx:gpu", "metal"),
        ("mlx:cpu", "auto"),
        ("torch:mps", "reference"),
        ("torch:cpu", "auto"),
    ]
    assert speeds.usual == dict.fromkeys(BACKENDS, 200.0)
    assert speeds.metal == {"mlx:gpu": 300.0}
    assert {check.result for check in checks} == {CheckResult.PASS}


@pytest.mark.parametrize(
    ("kernels", "result", "asked"),
    [("metal", CheckResult.WARN, 2), ("reference", CheckResult.FAIL, 1)],
)
def test_a_form_that_fails_on_a_gpu_is_told_with_what_follows(
    monkeypatch: pytest.MonkeyPatch, kernels: str, result: CheckResult, asked: int
) -> None:
    child = FakeChild()
    child.failing = {("mlx:gpu", kernels)}
    monkeypatch.setattr(frameworks, "Child", lambda **_: child)
    checks, speeds = frameworks.check_backends(MAC, 4, agreed={"mlx", "mps"})
    (bad,) = [check for check in checks if check.result != CheckResult.PASS]
    assert (bad.result, bad.found) == (result, "the GPU is gone")
    assert "mlx:gpu" in bad.consequence
    assert len([name for name, _ in child.asked if name == "mlx:gpu"]) == asked
    assert ("mlx:gpu" in speeds.usual) == (kernels == "metal")
    assert speeds.metal == {"torch:mps": 300.0}


@pytest.mark.parametrize("bad", [np.zeros(3, np.float32), np.array([np.nan], np.float32)])
def test_a_gradient_that_is_zero_or_not_finite_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="gradient of w is not finite, or all zero"):
        frameworks._check_gradients(1.0, {"v": np.ones(2, np.float32), "w": bad})
    with pytest.raises(ValueError, match="the loss is nan"):
        frameworks._check_gradients(float("nan"), {})


# -- sharing host memory with the frameworks: reported failures ------------------------------------


def test_a_machine_without_frameworks_has_nothing_to_try() -> None:
    bare = Machine("linux", "x86_64", 2, 8 << 30, "", frozenset())
    assert frameworks.check_imports(bare, quick=True) == []


def test_a_way_that_fails_names_what_follows_and_the_next_is_tried() -> None:
    broken, good = frameworks._run_probes(
        [
            Probe("memory of MLX", "no_such_module:examine"),
            Probe("memory of MLX", "probes_mlx:examine", (1 << 20,)),
        ]
    )[:2]
    assert (broken.name, broken.result) == ("memory of MLX", CheckResult.FAIL)
    assert "ModuleNotFoundError" in broken.found
    assert "use the defaults" in broken.consequence
    assert good.result == CheckResult.PASS


# -- a short run in which a worker is killed shows whether this machine can train ------------------


@pytest.mark.slow
def test_this_machine_trains_and_replaces_a_killed_worker() -> None:
    run, pace = frameworks.check_training(steps=frameworks.FEWEST_STEPS)
    assert run.result == CheckResult.PASS, run.found
    assert "1 replaced" in run.found
    assert pace.name == "step time"
    assert pace.result != CheckResult.FAIL


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        (4.8, {}),
        (float("inf"), {}),
        (float("nan"), {}),
        (4.0, {"restarts": 0}),
        (4.0, {"status": "diverged"}),
    ],
)
def test_a_run_that_learns_nothing_or_loses_a_worker_fails(
    loss: float, changes: dict[str, object]
) -> None:
    good = replace(RESULT, steps=100, restarts=1)
    assert frameworks.judge_run(good, 4.0, 4.7, "", QUIET).result == CheckResult.PASS
    for load in (QUIET, BUSY):  # enough steps are enough, however long they took
        judged = frameworks.judge_run(replace(good, **changes), loss, 4.7, "", load)
        assert judged.result == CheckResult.FAIL


def test_a_run_with_few_steps_is_not_judged_and_says_how_busy_the_machine_is() -> None:
    few = replace(RESULT, steps=99, restarts=0)
    busy = frameworks.judge_run(few, 5.0, 4.7, "", BUSY)
    assert busy.result == CheckResult.UNCLEAR
    assert busy.found.startswith(
        "cannot be told: busy machine (load average 9.3 on 2 processors): "
    )
    assert frameworks.judge_run(few, 5.0, 4.7, "", QUIET).found.startswith("too few steps in 60 s")


def test_a_run_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise EnvironmentLacks("no memory")

    monkeypatch.setattr(frameworks, "train", refuse)
    (check,) = frameworks.check_training()
    assert (check.result, check.found) == (CheckResult.FAIL, "no memory")


def test_the_pace_is_that_of_a_run_whose_workers_are_all_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(frameworks.os, "kill", lambda pid, number: killed.append(pid))
    watch = frameworks.WorkerKiller()

    def see(seconds: float, state: str, pid: int) -> None:
        worker = replace(WORKER, state=state, pid=pid)
        workers = (replace(WORKER, state="running", pid=1), worker)
        step = int(100 * seconds)
        watch(replace(PROGRESS, elapsed_s=seconds, step=step, workers=workers))

    for seconds, state, pid in (
        (0.0, "running", 2),
        (0.2, "running", 2),  # killed here
        (0.5, "running", 2),  # not noticed yet
        (1.0, "starting", 3),
        (1.5, "running", 3),
        (2.0, "running", 3),
        (2.0, "running", 3),  # training is over, its clock stands
        (2.0, "finished", 3),
    ):
        see(seconds, state, pid)
    assert killed == [2]
    assert watch.samples == [(1.5, 150), (2.0, 200)]


def test_an_interrupt_during_the_run_interrupts_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = replace(RESULT, status="interrupted")
    monkeypatch.setattr(frameworks, "train", lambda **options: interrupted)
    with pytest.raises(KeyboardInterrupt):
        frameworks.check_training()


# -- steps that grow slower are reported; too few steps have no result -----------------------------


def run(*spans: tuple[float, float]) -> list[PaceSample]:
    """Two samples a second of spans (seconds, seconds of a step)."""
    samples = [PaceSample(3.0, 70)]
    for seconds, step_s in spans:
        for _ in range(int(2 * seconds)):
            before = samples[-1]
            samples.append(PaceSample(before.elapsed_s + 0.5, before.steps + round(0.5 / step_s)))
    return samples


@pytest.mark.parametrize(
    ("second", "result"),
    [
        (0.010, CheckResult.PASS),
        (0.0115, CheckResult.PASS),
        (0.005, CheckResult.PASS),
        (0.0125, CheckResult.WARN),
        (9.0, CheckResult.WARN),
    ],
)
def test_a_second_half_a_fifth_slower_than_the_first_is_a_warning(
    second: float, result: CheckResult
) -> None:
    pace = judge_pace(run((3, 0.01), (3, second)), QUIET)
    assert pace.result == result, pace
    assert pace.found.startswith("10.0 ms, then ")
    assert ("pmset -g therm" in pace.consequence) == (result == CheckResult.WARN)


def test_steps_that_grow_slower_beside_other_programs_say_nothing_of_this_machine() -> None:
    pace = judge_pace(run((3, 0.01), (3, 0.03)), BUSY)
    assert pace.result == CheckResult.UNCLEAR
    assert str(BUSY) in pace.found
    assert judge_pace(run((3, 0.01), (3, 0.01)), BUSY).result == CheckResult.PASS


def test_halves_are_halves_of_the_time_not_of_the_steps() -> None:
    pace = judge_pace(run((2, 0.005), (2, 0.02)), QUIET)
    assert pace.found == "5.0 ms, then 20.0 ms (+300%)"


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "0 samples are too few"),
        (run((0.5, 0.001)), "2 samples are too few"),
        (run((2, 0.5), (2, 0.5)), "4 steps are too few"),
    ],
)
def test_a_run_with_few_samples_or_steps_tells_nothing(
    samples: list[PaceSample], message: str
) -> None:
    pace = judge_pace(samples, QUIET)
    assert pace.result == CheckResult.ABSENT
    assert message in pace.found


# -- the batch of the default run ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unkept", "result"), [("", CheckResult.PASS), ("a busy machine", CheckResult.UNCLEAR)]
)
def test_the_batch_of_the_default_run_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, unkept: str, result: CheckResult
) -> None:
    def planned(config: TrainConfig, plan_of: object, *, again: bool) -> tuple[None, BatchChoice]:
        assert again
        assert config.batch_size is None
        assert config.model == DEFAULT_MODEL
        return None, BatchChoice(sequences=8, why="16 change nothing", unkept=unkept)

    monkeypatch.setattr(batch_size, "planned", planned)
    found, row = frameworks.check_batch()
    assert found.result == result
    assert found.found == f"8 for model {DEFAULT_MODEL}: 16 change nothing"
    assert found.consequence == unkept
    assert (row or {}).get("sequences") == (None if unkept else 8)


def test_a_batch_that_cannot_be_measured_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(config: TrainConfig, plan_of: object, *, again: bool) -> None:
        raise EnvironmentLacks("no memory")

    monkeypatch.setattr(batch_size, "planned", planned)
    found, row = frameworks.check_batch()
    assert (found.result, found.found, row) == (CheckResult.WARN, "no memory", None)


def test_no_signal_goes_to_a_seat_without_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(frameworks.os, "kill", lambda pid, _: sent.append(pid))
    killer = frameworks.WorkerKiller()
    for pid in (0, 77):
        killer(SimpleNamespace(loss=None, step=20, workers=[SimpleNamespace(pid=pid)]))  # type: ignore[arg-type]
    assert sent == [77]
