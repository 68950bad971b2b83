"""The self-check of a GPU worker's Metal kernels: what it finds, and what a worker does then.

The emulation stands in for the GPU: kernels compute in it, by the engines' own code.
"""

import inspect
import os
import re
from functools import partial
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from mlxhog import backends
from mlxhog.backends import probes
from mlxhog.backends.probes import ALLOWED, CHECKS, SIZES, Allowed, faults
from mlxhog.doctor.record import sections
from mlxhog.errors import EnvironmentLacks, LostGPU, whole_text
from mlxhog.metal.engine_mlx import MLXEngine
from mlxhog.metal.engine_torch import MPSEngine
from mlxhog.metal.kernels import slstm
from mlxhog.metal.registry import KERNELS
from mlxhog.models.ops import kernels
from mlxhog.models.ops.operators import Ops
from mlxhog.training.plan.job import check_kernels
from tests.backends.test_gpu_worker import gpu
from tests.backends.untrained import batch, lay, values
from tests.metal.fake_gpu import FakeMLX, FakeMPS, FaultyEngine
from tests.pairs import each_of
from tests.test_errors import ERROR, compiler_text

__all__ = ["gpu"]  # the fixture

METAL_OPS = {name: kernels.metal_ops(name) for name in ("mlx", "torch")}
OPERATOR_OF = {"conv": "causal_conv", "mlstm": "mlstm_cell", "slstm": "slstm_cell"}
OF_MODELS = [name for name in KERNELS if name.partition("_")[0] in OPERATOR_OF]


def found(framework, engine):
    return faults(framework, "cpu", METAL_OPS[framework](engine), threads=1)


@pytest.mark.parametrize("framework", METAL_OPS)
def test_right_kernels_pass_with_room(framework, monkeypatch, new_emulator):
    allowed = {
        kind: Allowed(one.atol / 2, one.of_largest / 2, one.of_all / 2)
        for kind, one in ALLOWED.items()
    }
    monkeypatch.setattr(probes, "ALLOWED", allowed)
    assert found(framework, new_emulator()) == {}


def test_the_kernels_that_a_model_will_use_are_compiled_at_its_widths(monkeypatch, new_emulator):
    monkeypatch.setattr(probes, "SIZES", SIZES[:1])
    cells = [
        ("causal_conv", (3, 20)), ("causal_conv", (1, 20)), ("mlstm_cell", (4, 24, 40, 16)),
        ("slstm_cell", (4, 40)),
    ]  # fmt: skip
    engine = new_emulator()
    engine.run, launches, run = lambda one: launches.append(one) or run(one), [], engine.run
    assert faults("mlx", "cpu", METAL_OPS["mlx"](engine), threads=1, cells=cells) == {}
    for kernel in slstm.KERNELS:
        own = [one for one in launches if one.kernel is kernel and one.grid[0] == 40]
        assert {one.instance for one in own} == {"1", "2", "4", "8"}
    widths = {
        (name, one.inputs[name])
        for one in launches
        for name in ("DK", "DV", "K", "CH")
        if name in one.inputs
    }
    assert {("DK", 24), ("DV", 40), ("K", 3), ("K", 1), ("CH", 20)} <= widths


def test_a_head_too_wide_for_a_threadgroup_is_a_fault_of_the_check(monkeypatch, new_emulator):
    monkeypatch.setattr(probes, "CHECKS", {"slstm_cell": CHECKS["slstm_cell"]})
    wide = [("slstm_cell", (1, 1025))]
    found = faults("mlx", "cpu", METAL_OPS["mlx"](new_emulator()), threads=1, cells=wide)
    assert "heads of 1025 units" in found["slstm_cell"]


@each_of("kernel", OF_MODELS)
def test_a_kernel_off_by_a_hundredth_is_found_in_its_operator_and_in_no_other(kernel, monkeypatch):
    monkeypatch.setattr(probes, "SIZES", SIZES[:1])
    ((operator, fault),) = found("mlx", FaultyEngine(kernel)).items()
    assert operator == OPERATOR_OF[kernel.partition("_")[0]]
    assert re.search(r" is off by .* of its largest entry, expected .* at most", fault)


BF16 = [name for name in OF_MODELS if KERNELS[name].variants]


@pytest.mark.slow
@each_of("kernel", BF16)
def test_a_run_in_bfloat16_finds_a_kernel_of_that_type_that_is_off_by_a_tenth(kernel, monkeypatch):
    operator = OPERATOR_OF[kernel.partition("_")[0]]
    monkeypatch.setattr(probes, "SIZES", SIZES[:1])
    monkeypatch.setattr(probes, "CHECKS", {operator: CHECKS[operator]})
    ops = METAL_OPS["mlx"](FaultyEngine(f"{kernel}_bfloat16", by=0.1))
    assert [*faults("mlx", "cpu", ops, threads=1, bf16=True)] == [operator]
    assert faults("mlx", "cpu", ops, threads=1) == {}


@pytest.mark.parametrize("framework", METAL_OPS)
def test_right_kernels_of_bfloat16_pass_with_room(framework, monkeypatch, new_emulator):
    monkeypatch.setattr(probes, "OF_BF16", {kind: x / 2 for kind, x in probes.OF_BF16.items()})
    ops = METAL_OPS[framework](engine := new_emulator())
    engine.run, ran, run = lambda one: ran.append(one.kernel.name) or run(one), [], engine.run
    assert faults(framework, "cpu", ops, threads=1, bf16=True) == {}
    assert {f"{name}_bfloat16" for name in BF16} <= {*ran}


@pytest.mark.parametrize("framework", METAL_OPS)
def test_a_kernel_that_does_not_run_or_gives_no_number_is_a_fault(framework):
    broken = found(framework, FaultyEngine("mlstm_bwd_out", by=None))
    assert broken == {
        "mlstm_cell": "kernel mlstm_bwd_out does not compile: error: unknown type 'flaot'"
    }
    assert "off by nan" in found(framework, FaultyEngine("conv_forward", by=np.nan))["causal_conv"]


@pytest.mark.parametrize("framework", METAL_OPS)
def test_the_record_has_a_compilers_whole_text_and_the_table_its_error_first(
    framework, gpu, monkeypatch
):
    text = compiler_text()
    if framework == "mlx":
        FakeMLX(breaks=text).install(monkeypatch)
        engine = MLXEngine()
    else:
        FakeMPS(breaks=text).install(monkeypatch)
        engine = MPSEngine("cpu")
    beats = []
    fault = faults(
        framework, "cpu", METAL_OPS[framework](engine), threads=1,
        beat=lambda: beats.append(1),
    )["mlstm_cell"]  # fmt: skip
    assert fault.startswith("kernel mlstm_")
    assert ERROR in fault.splitlines()
    assert fault.count("warning: ") > 15
    assert len(beats) == len(SIZES) * len(CHECKS), "each case is a sign of life"
    row = {"name": "mlstm_cell", "engine": "mlx", "ok": False, "max_error": None, "tolerance": 0.0}
    record = {
        "checks": [], "litmus": [], "reads": [], "kernels": [{**row, "error": fault}],
        "failed": [], "stored": "here", "facts": {"wheels": {}},
        "options": {"workers": {"auto": ""}, "kernels": {}, "gpu_write": {"auto": "cpu"}},
    }  # fmt: skip
    record["options"]["workers"]["why"] = ""
    (shown,) = sections(record)[1].rows
    assert shown[-1].startswith(ERROR)


def test_a_workers_log_has_a_compilers_whole_text_and_its_notice_the_error(capfd):
    whole = whole_text(RuntimeError(compiler_text()))
    assert checked({"mlstm_cell": whole}, requested="auto")
    notice, *log = capfd.readouterr().out.splitlines()
    assert ERROR in notice
    assert len(notice) < 400
    assert ERROR in log
    with pytest.raises(EnvironmentLacks, match=re.escape(ERROR)):
        checked({"mlstm_cell": whole}, requested="metal")
    assert ERROR in capfd.readouterr().out.splitlines()


def test_a_result_that_should_be_zero_and_is_not_is_a_fault():
    zeros, check = {"h": np.zeros(2), "gradient of q": np.zeros(2)}, CHECKS["mlstm_cell"]
    assert probes._worst(check, zeros, zeros, bf16=False)[1] == 0
    for off, name in ((0.5, "h"), (0.5, "gradient of q"), (np.nan, "h")):
        where, error, allowed = probes._worst(
            check, zeros | {name: np.array([0, off])}, zeros, bf16=False
        )
        assert where == name
        assert not error <= allowed


def test_a_fault_of_a_result_that_should_be_zero_says_so(monkeypatch):
    def results(device, ops, name, sizes):
        yield CHECKS[name].results[0], np.zeros(2) if isinstance(ops, Ops) else ops

    monkeypatch.setattr(probes, "_results", results)
    fault = faults("mlx", "cpu", np.array([0.0, 0.5]), threads=1)["mlstm_cell"]
    assert fault == "h is off by 5.0e-01, where it should be 0, expected 1.0e-06 at most"


def test_a_lost_gpu_is_no_fault_of_the_operator_that_it_computed(monkeypatch):
    def results(device, ops, name, sizes):
        if not isinstance(ops, Ops):
            raise LostGPU("[METAL] Command buffer execution failed")
        yield CHECKS[name].results[0], np.zeros(2)

    monkeypatch.setattr(probes, "_results", results)
    with pytest.raises(LostGPU):
        faults("mlx", "cpu", None, threads=1)


def test_an_error_of_a_lazy_array_is_raised_where_its_memory_is_read(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.ones(1 << 16, np.float32))
    doubled = 2 * mx.load(str(path))
    os.truncate(path, 200)
    with pytest.raises(RuntimeError, match="Unable to read"):
        probes.Device("mlx", "cpu", 1).host(doubled)


def test_every_operator_with_a_kernel_is_checked():
    metal, plain = METAL_OPS["mlx"], kernels.choose("mlx", "eager", "cpu")
    names = [name for name, one in inspect.getmembers(Ops, callable) if not name.startswith("_")]
    own = {name for name in names if getattr(metal, name) is not getattr(type(plain), name)}
    assert own == set(CHECKS)


@pytest.fixture
def faulty_gpu(gpu, monkeypatch):
    """A GPU with a kernel that computes wrongly; no other test gets its operators."""
    kernels._metal.cache_clear()
    monkeypatch.setattr(mx, "compile", lambda function: function)  # the stand-in evaluates
    yield FakeMLX(engine=FaultyEngine("conv_forward")).install(monkeypatch)
    kernels._metal.cache_clear()


def grads_of(backend):
    return values(lay(backend).loss_and_grads(batch(2, 20))[1])


def test_with_a_fault_the_gradient_is_that_of_the_eager_operators(faulty_gpu):
    backend = backends.create("mlx:gpu", threads=1, kernels="metal")
    wrong = grads_of(backend)
    assert set(backend.check_kernels()) == {"causal_conv"}
    plain = kernels.choose("mlx", "eager", "cpu")
    assert backend._ops().mlstm_cell.__func__ is not type(plain).mlstm_cell, "others stay kernels"
    faulty_gpu.calls.clear()
    checked = grads_of(backend)
    assert not faulty_gpu.calls
    plain = backends.create("mlx:gpu", threads=1, kernels="eager")
    expected = grads_of(plain)
    for name, grad in expected.items():
        np.testing.assert_array_equal(checked[name], grad, err_msg=name)
    assert any(not np.array_equal(wrong[name], grad) for name, grad in expected.items())


FAULTS = {"slstm_cell": "h is off by 1.0e-02 of its largest entry, expected 2.1e-05 at most"}


def checked(faulty, *, requested, safety_checks=True):
    config = SimpleNamespace(kernels=requested, safety_checks=safety_checks)
    spec = SimpleNamespace(backend="mlx:gpu")
    log = {"leave_notice": partial(print, sep="\n"), "log_lines": partial(print, sep="\n")}
    plan = SimpleNamespace(model=None)
    job = SimpleNamespace(config=config, plan=plan, slot=2, spec=spec, **log)
    asked = []
    backend = SimpleNamespace(check_kernels=lambda beat, model: asked.append(True) or faulty)
    check_kernels(job, backend)
    return bool(asked)


def test_a_worker_names_the_kernel_and_what_it_uses_and_refuses_it_where_it_is_requested(capfd):
    assert checked(FAULTS, requested="auto")
    assert capfd.readouterr().out == (
        "worker 2 (mlx:gpu) uses the eager mlx operators slstm_cell, whose Metal kernels failed "
        "their check (slstm_cell: h is off by 1.0e-02 of its largest entry, expected 2.1e-05 at "
        "most)\nslstm_cell: h is off by 1.0e-02 of its largest entry, expected 2.1e-05 at most\n"
    )
    assert checked({}, requested="auto")
    assert capfd.readouterr().out == ""
    with pytest.raises(
        EnvironmentLacks, match=r"slstm_cell: h is off .*--kernels auto.*--no-safety-checks"
    ):
        checked(FAULTS, requested="metal")
    assert not checked(FAULTS, requested="metal", safety_checks=False)
