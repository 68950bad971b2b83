"""The kernels of a run, for steps and for the model: their choice, promises, and every mention.

No Mac is needed: `metal-emulated` runs the project's Metal source on the CPU.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlxhog import TrainConfig
from mlxhog._native import ops
from mlxhog.base import machine
from mlxhog.base.capabilities import Capability, CapabilityRecord, CellShape, CellTimes, save_cells
from mlxhog.base.machine import Machine
from mlxhog.cli.train import summary
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.models import cells
from mlxhog.models.registry import load_architecture
from mlxhog.training.plan import kernel_choice
from mlxhog.training.supervisor.training import train
from mlxhog.training.worker import process
from tests.base.test_capabilities import kernel
from tests.pairs import each_of
from tests.training.small import Messages, identical, parameters, small_config

UNTESTED = CapabilityRecord(Path("none"), "this machine has not been tested: run `mlxhog doctor`")


def chosen(choose, expected, said, options, backends, record):
    """Check the choice of writers or kernels, as words, and what is said; or a refusal."""
    notes = []

    def choice_of():
        return choose(TrainConfig(**options), backends.split(), record, notes.append)

    if not isinstance(expected, str):
        with pytest.raises(expected, match=said):
            choice_of()
        return
    choice = choice_of()
    words = choice if isinstance(choice, tuple) else (choice.gpu_write, choice.write)
    assert " ".join(words) == expected
    assert said in " ".join(notes)
    assert bool(notes) == bool(said)


class Doctor:
    """A verdict on every question, in place of this machine's record."""

    def __init__(self, ok):
        verdict = Capability(ok, "lost 3 of 9 adds here")
        self.gpu_write = self.live_read = self.kernels = lambda _: verdict


GOOD, BAD = Doctor(True), Doctor(False)
METAL, AUTO, UNCHECKED = {"gpu_write": "metal"}, {"gpu_write": "auto"}, {"safety_checks": False}
LIVE, EMULATED = {"read": "live", "predict": "none"}, {"gpu_write": "metal-emulated"}


@each_of(
    ("backends", "doctor", "options", "expected", "said"),
    [
        ("mlx:gpu mlx:cpu", BAD, {}, "cpu lossless", ""),
        ("mlx:gpu", GOOD, METAL, "metal cas", ""),
        ("mlx:gpu", BAD, {**METAL, **UNCHECKED}, "metal cas", ""),
        ("mlx:gpu", GOOD, AUTO, "metal cas", "auto: metal, no update was lost"),
        ("torch:cpu", BAD, EMULATED, "metal-emulated cas", ""),
        ("mlx:gpu mlx:cpu", GOOD, AUTO, "cpu lossless", "CPU workers update the same parameters"),
        ("mlx:gpu", BAD, AUTO, "cpu lossless", "auto: cpu, because lost 3 of 9 adds here"),
        ("mlx:cpu", GOOD, AUTO, "cpu lossless", "no worker of this run uses a GPU"),
        ("mlx:gpu", GOOD, {**AUTO, "write": "lossless"}, "cpu lossless", "write=lossless was req"),
        ("mlx:cpu torch:cpu", GOOD, METAL, ConfigError, "needs a GPU worker.*metal-emulated"),
        ("mlx:gpu", BAD, METAL, EnvironmentLacks, "lost 3 of 9.*mlxhog doctor.*--no-safety-checks"),
        ("mlx:gpu", BAD, LIVE, EnvironmentLacks,
         "read=live of mlx:gpu.*mlxhog doctor.*--no-safety-checks"),
        ("mlx:gpu", GOOD, {**METAL, "write": "racy"}, ConfigError, "is racy, but beside gpu_write"),
    ],
)  # fmt: skip
def test_a_choice_of_writers_has_one_meaning(backends, doctor, options, expected, said):
    chosen(kernel_choice.choose_writers, expected, said, options, backends, doctor)


MODEL = load_architecture("7to1-tiny")
MLSTM, SLSTM = CellShape("mlstm_cell", (4, 64, 64, 64)), CellShape("slstm_cell", (4, 32))
CONV = [CellShape("causal_conv", (4, channels)) for channels in (128, 256)]
EAGER, METAL_ONES = (2e-3, 3e-3), (3e-3, 2e-3)  # seconds, eager and by Metal


def measured(*times, ok=True, backend="mlx:gpu"):
    """A record of a Mac where the kernels of MLX's engine are right, with times of cells."""
    rows = tuple(CellTimes(backend, cell, *seconds) for cell, seconds in times)
    record = {"kernels": [kernel("mlx", ok=ok)], "tokens_per_s_metal": {"mlx:gpu": 300.0}}
    return CapabilityRecord(Path("record.json"), None, record, rows)


def every(seconds, **others):
    return measured(*((cell, seconds) for cell in (MLSTM, SLSTM, *CONV)), **others)


FASTER, SLOWER, WRONG = every(METAL_ONES), every(EAGER), every(METAL_ONES, ok=False)
MIXED = measured((MLSTM, METAL_ONES), (SLSTM, EAGER), *((cell, METAL_ONES) for cell in CONV))
NEW = measured((CellShape("mlstm_cell", (4, 16, 32, 64)), EAGER))  # of tiny, which is not near
OWN = {"kernels": "metal"}


@each_of(
    ("backends", "record", "options", "expected", "said"),
    [
        ("mlx:cpu torch:cpu", UNTESTED, {}, "native native", ""),
        ("mlx:gpu mlx:cpu", UNTESTED, {}, "metal native", "metal on mlx:gpu, which each worker ch"),
        ("mlx:gpu mlx:cpu mlx:gpu", FASTER, {}, "metal native metal",
         "on mlx; causal_conv 4x256 2 ms by Metal, 3 ms eager; mlstm_cell 4x64x64x64 2 ms"),
        ("mlx:gpu", MIXED, {}, "metal", "metal on mlx:gpu without slstm_cell, 1 kernels agree"),
        ("mlx:gpu", SLOWER, {}, "eager", "on mlx; causal_conv 4x256 3 ms by Metal, 2 ms eager"),
        ("mlx:gpu", NEW, {}, "metal", "mlstm_cell 4x64x64x64, causal_conv 4x128, slstm_cell 4x32 "
         "not measured: a worker does that when it starts"),
        ("mlx:gpu", every(EAGER, backend="torch:mps"), {}, "metal", "not measured"),
        ("mlx:gpu", SLOWER, {"determinism": "record"}, "metal", "kernels agree"),
        ("mlx:gpu", WRONG, {}, "eager", "eager on mlx:gpu, because on mlx these differ"),
        ("mlx:gpu", WRONG, {**OWN, **UNCHECKED}, "metal", ""),
        ("mlx:gpu", SLOWER, OWN, "metal", ""),
        ("mlx:cpu", UNTESTED, {"kernels": "metal-emulated"}, "metal-emulated", ""),
        ("mlx:gpu torch:cpu", FASTER, OWN, ConfigError, "which torch:cpu cannot run; use auto"),
        ("mlx:gpu", FASTER, {"kernels": "metal-emulated"}, ConfigError, "mlx:gpu cannot run; use"),
        ("mlx:gpu", WRONG, OWN, EnvironmentLacks,
         "mlx:gpu is not known.*these differ.*--no-safety-checks"),
    ],
)  # fmt: skip
def test_a_choice_of_kernels_has_one_meaning_for_each_worker(
    backends, record, options, expected, said
):
    options = {"dtype": "float32", **options}
    chosen(choose_kernels, expected, said, options, backends, record)


def choose_kernels(config, backends, record, note):
    return kernel_choice.choose_kernels(config, MODEL, backends, record, note)


@each_of(
    ("times", "eager", "unknown"),
    [
        ([], "", "mlstm_cell slstm_cell causal_conv causal_conv"),
        ([(MLSTM, EAGER)], "mlstm_cell", "slstm_cell causal_conv causal_conv"),
        ([(MLSTM, (1.0, 1.0))], "mlstm_cell", "slstm_cell causal_conv causal_conv"),
        # the nearest one decides, up to a factor of 1.5 between two sizes
        ([(CellShape("mlstm_cell", (4, 64, 90, 64)), EAGER)], "mlstm_cell",
         "slstm_cell causal_conv causal_conv"),
        ([(CellShape("mlstm_cell", (4, 64, 90, 64)), EAGER), (MLSTM, METAL_ONES)], "",
         "slstm_cell causal_conv causal_conv"),
        ([(CellShape("mlstm_cell", (4, 64, 97, 64)), EAGER)], "",
         "mlstm_cell slstm_cell causal_conv causal_conv"),
        # an operator is chosen for all its cells, by the time in all layers: 7 have 256 channels
        ([(CONV[0], (9.0, 1.0)), (CONV[1], (1.0, 2.0))], "", "mlstm_cell slstm_cell"),
        ([(CONV[0], (7.0, 1.0)), (CONV[1], (1.0, 2.0))], "causal_conv", "mlstm_cell slstm_cell"),
        ([(CONV[0], EAGER)], "", "mlstm_cell slstm_cell causal_conv"),
    ],
)  # fmt: skip
def test_each_operator_is_chosen_by_the_times_of_the_models_own_cells(times, eager, unknown):
    choice = kernel_choice.choose_cells(measured(*times), "mlx:gpu", cells.cells(MODEL))
    assert " ".join(sorted(choice.eager)) == eager
    assert sorted(cell.operator for cell in choice.unknown) == sorted(unknown.split())
    assert choice.eager | choice.metal == {"mlstm_cell", "slstm_cell", "causal_conv"}


def test_a_model_without_such_cells_is_computed_by_eager_operators_and_nothing_is_said():
    model, notes = load_architecture("mad-attention"), []
    how = TrainConfig(dtype="float32"), model, ["mlx:gpu"], FASTER, notes.append
    assert kernel_choice.choose_kernels(*how) == ("eager",)
    assert notes == []


@each_of(
    "processor, dtype, kernels, said",
    [
        ("amx", "auto", "auto", "bf16 matmuls"),
        ("avx512bf16", "auto", "native", "bf16 matmuls"),
        ("avx512", "auto", "auto", ""),
        ("amx", "auto", "eager", ""),
        ("amx", "bfloat16", "auto", ""),
        ("amx", "float32", "auto", ""),
    ],
)
def test_a_run_says_that_its_processor_had_it_choose_bfloat16(
    processor, dtype, kernels, said, monkeypatch
):
    monkeypatch.setattr(ops, "bfloat16_kernel", lambda: processor)
    options, expected = ({"dtype": dtype, "kernels": kernels}, kernels.replace("auto", "native"))
    chosen(choose_kernels, expected, said, options, "torch:cpu", UNTESTED)


def test_workers_on_a_gpu_are_recorded_where_doctor_found_that_they_repeat_or_by_force():
    def check(record, **options):
        workers = (["torch:cpu", "mlx:gpu"], ["native", "eager"])
        kernel_choice.check_recorded(TrainConfig(**options), *workers, record)

    good, bad = (
        CapabilityRecord(Path("none"), None, {"repeats": {"mlx:gpu": {"eager": ok}}})
        for ok in (True, False)
    )
    check(good, determinism="record")
    check(bad, determinism="record", safety_checks=False)
    check(bad)
    for record, reason in ((bad, "differed in their bits"), (UNTESTED, "has not been tested")):
        with pytest.raises(EnvironmentLacks, match=f"mlx:gpu is not known.*{reason}.*doctor"):
            check(record, determinism="record")


def status_of(result):
    return json.loads((Path(result.run) / "run.json").read_text())


@pytest.mark.slow
def test_a_run_through_metal_source_is_resumed_by_native_steps(tmp_path):
    def run(**options):
        return train(small_config(tmp_path, schedule="constant", warmup=0, **options))

    whole, first = run(steps=20, **EMULATED), run(steps=10, **EMULATED)
    result = run(steps=10, resume=first.run)
    assert identical(parameters(result), parameters(whole))
    assert (result.to_json()["gpu_write"], result.to_json()["emulated"]) == ("cpu", True)
    assert "earlier steps of this run came from Metal source on the CPU" in summary(result)
    assert status_of(result)["emulated"] is True


@pytest.mark.slow
def test_a_run_multiplies_in_the_type_that_it_is_given(tmp_path):
    how = {"strategy": "serial", "workers": "torch:cpu", "steps": 3}
    first, other = (
        train(small_config(tmp_path, dtype=dtype, **how)) for dtype in ("float32", "bfloat16")
    )
    assert (first.kernels, other.kernels) == ("native", "native")
    assert not identical(parameters(first), parameters(other))


def on_a_stand_in(pipe, job):
    """A worker whose GPU is the CPU, with a kernel for small batches only; children import it."""
    import mlx.core as mx

    from mlxhog.backends import probes
    from tests.metal.fake_gpu import FakeMLX, FaultyEngine

    probes.SIZES = probes.SIZES[:1]  # the CPU computes all kernels; these have smaller batches
    changed = mx
    changed.gpu = mx.cpu
    changed.device_info = lambda *_: {"max_recommended_working_set_size": 8 << 30}
    changed.set_memory_limit = changed.set_cache_limit = changed.set_wired_limit = lambda _: None
    mx.disable_compile()  # the stand-in evaluates
    engine = FaultyEngine(kernel="mlstm_out", by=None, only={"B": 4})
    FakeMLX(engine=engine).install(pytest.MonkeyPatch())
    process.main(pipe, job)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("known", "says"),
    [
        (False, "uses the eager operator mlstm_cell: its Metal kernels do not compute mlstm_cell "),
        (True, "uses eager operators only: its Metal kernels"),  # since it measures no cell
    ],
)
def test_a_worker_whose_kernels_cannot_compute_the_model_trains_by_eager_operators_and_says_so(
    tmp_path, monkeypatch, known, says
):
    here = replace(machine.here(), chip="Apple M4 Pro")
    monkeypatch.setattr(Machine, "apple_gpu", True)
    monkeypatch.setattr(machine, "here", lambda: here)
    monkeypatch.setattr(process, "main", on_a_stand_in)
    on_gpu = {"steps": 4, "workers": "mlx:gpu", "strategy": "serial", "batch_size": 4}
    of_model = cells.cells(load_architecture(small_config(tmp_path).model))
    if known:
        save_cells([CellTimes("mlx:gpu", cell, 2.0, 1.0) for cell in of_model])
    messages = Messages()
    faulty = train(small_config(tmp_path, **on_gpu), observer=messages)
    plain = train(small_config(tmp_path, **on_gpu, kernels="eager"))
    assert identical(parameters(faulty), parameters(plain))
    (said,) = status_of(faulty)["notices"]
    assert said.startswith(f"worker 1 (mlx:gpu) {says}")
    assert "mlstm_out does not compile" in said
    assert said in messages
    assert status_of(plain)["notices"] == []
