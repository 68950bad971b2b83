"""The engines of both frameworks give kernels what they declare, and wait where they must.

The frameworks' Metal parts are stood in for (`fake_gpu.py`); the engines' own code is all real.
"""

import re
from dataclasses import replace
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog.errors import EnvironmentLacks, MetalError, ShapeError
from mlxhog.metal import engine_mlx, engines
from mlxhog.metal.engine_mlx import MLXEngine
from mlxhog.metal.engine_torch import MPSEngine
from mlxhog.metal.kernels import conv
from mlxhog.metal.kernels.adds import dense_axpy
from mlxhog.metal.registry import KERNELS
from tests.metal.fake_gpu import FakeMLX, FakeMPS
from tests.models.operators import draw
from tools.samples import sample

N = 100


def fakes(which, monkeypatch):
    """The stand-in of a framework, and an engine over it."""
    if which == "mlx":
        return FakeMLX().install(monkeypatch), MLXEngine()
    return FakeMPS().install(monkeypatch), MPSEngine("cpu")  # "mps", or "torch"


both = pytest.mark.parametrize("which", ["mlx", "mps"])


def axpy(on, g, arena=None, **how):
    """A launch on an arena of the engine's own."""
    arena = on.array(draw(N)) if arena is None else arena
    return dense_axpy(arena, on.array(g), **{"scale": 1.0, "offset": 0, **how})


def results(on, launch):
    """The outputs of a launch of NumPy arrays, and the arrays that it writes, run on copies."""
    inputs = {name: np.array(x) for name, x in launch.inputs.items()}
    for one in launch.kernel.inputs:
        inputs[one.name] = inputs[one.name].item() if one.scalar else on.array(inputs[one.name])
    outputs = on.run(replace(launch, inputs=inputs))
    outputs |= {one.name: inputs[one.name] for one in launch.kernel.inputs if one.writes}
    return {name: np.array(on.host(array)) for name, array in outputs.items()}


def assert_same(on, other, launch, rtol):
    """Fail unless two engines compute the same, relative to the largest value beyond 1."""
    actual, expected = results(on, launch), results(other, launch)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        finite = np.abs(value[np.isfinite(value)])
        atol = rtol * max(1.0, finite.max(initial=0))
        np.testing.assert_allclose(actual[name].reshape(value.shape), value, 0, atol, err_msg=name)


@both
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_every_kernel_gets_its_arguments_from_an_engine(which, name, monkeypatch, emulator):
    _, on = fakes(which, monkeypatch)
    kernel = KERNELS[name]
    for instance in kernel.instances or ("",):
        launch = sample(kernel, np.random.default_rng(0), 3000, instance)
        assert_same(on, emulator, launch, kernel.rtol)


@both
@pytest.mark.parametrize("n", [0, 1, 7, 8, 65])
def test_an_engine_adds_in_place_and_a_launch_without_threads_runs_nothing(which, n, monkeypatch):
    fake, on = fakes(which, monkeypatch)
    before, g = draw(N), draw(n, seed=1)
    arena = on.array(before.copy())
    outputs = on.run(axpy(on, g, arena, scale=-0.5, offset=3))
    before[3 : 3 + n] += np.float32(-0.5) * g
    np.testing.assert_array_equal(on.host(arena), before)
    np.testing.assert_array_equal(on.host(outputs["done"]), [n > 0])
    assert len(fake.calls) == (n > 0)


def test_a_kernel_without_written_inputs_stays_lazy_and_takes_lazy_results(monkeypatch):
    _, on = fakes("mlx", monkeypatch)
    evaluated, evaluate = [], mx.eval
    monkeypatch.setattr(engine_mlx.mx, "eval", lambda *x: evaluated.append(x) or evaluate(*x))
    sums = on.run(conv.FINAL.launch({"part": mx.full((1, 1, 2, 8), 4.0)}, S=1))["dbias"]
    scale = on.run(conv.FINAL.launch({"part": sums.reshape(1, 1, 8, 1)}, S=1))["dbias"]
    # the stand-in evaluates, the engine must not
    assert not [x for x in evaluated if isinstance(x[0], list)]
    arena = on.array(np.zeros(8, np.float32))
    on.run(dense_axpy(arena, mx.ones(8), scale=scale, offset=0))
    np.testing.assert_allclose(on.host(arena), 4.0, rtol=1e-6)


def test_an_in_place_kernel_inside_a_compiled_function_is_refused(monkeypatch):
    fake, on = fakes("mlx", monkeypatch)
    arena = on.array(draw(N))
    with pytest.raises(MetalError, match=r"cannot run inside mx\.compile"):
        mx.compile(lambda g: on.run(dense_axpy(arena, g, scale=1.0, offset=0))["done"])(mx.ones(8))
    assert not fake.calls


def test_memory_that_would_be_copied_is_never_written(monkeypatch):
    fake, on = fakes("mlx", monkeypatch)
    with pytest.raises(MetalError, match="copy of arena.*whole flat array"):
        on.run(dense_axpy(mx.zeros(2 * N)[::2], mx.ones(8), scale=1.0, offset=0))
    _, mps = fakes("mps", monkeypatch)
    with pytest.raises(ShapeError, match="arena is a Tensor.*row-major"):
        mps.run(dense_axpy(torch.zeros(2 * N)[::2], torch.ones(8), scale=1.0, offset=0))
    assert not fake.calls


@both
def test_a_group_that_is_too_large_and_a_kernel_that_does_not_compile_are_named(which, monkeypatch):
    fake, on = fakes(which, monkeypatch)
    fake.max_threads = 64
    with pytest.raises(MetalError, match=r"dense_axpy .*100 x 1 x 1 .*64.*use --kernels"):
        on.run(axpy(on, draw(N)))
    fake, on = fakes(which, monkeypatch)
    fake.breaks = "program_source:7:3: error: use of undeclared identifier 'arenna'"
    with pytest.raises(MetalError, match=r"kernel dense_axpy failed: .*'arenna'"):
        on.run(axpy(on, draw(9)))


@pytest.mark.parametrize("says", ["program_source:7: error: 'flaot'", "(12) is greater than"])
def test_an_error_of_a_lazy_kernel_has_its_name_at_the_launch(says, monkeypatch):
    """MLX raises it when it evaluates."""
    fake, on = fakes("mlx", monkeypatch)
    launch = sample(KERNELS["slstm_forward"], np.random.default_rng(0), 500)
    inputs = {n: on.array(x) if np.ndim(x) else x for n, x in launch.inputs.items()}
    fake.late = says
    with pytest.raises(MetalError, match="kernel slstm_forward failed: .*" + re.escape(says)):
        on.run(replace(launch, inputs=inputs))
    (trial,) = fake.calls
    assert trial["grid"] == trial["threadgroup"], "so that a launch on zeros costs little"


def test_an_error_of_an_evaluation_names_the_kernels_that_it_may_be_of(monkeypatch):
    _, on = fakes("mlx", monkeypatch)
    x = {"part": mx.ones((1, 1, 2, 8))}

    def failed(says):
        with on.naming():
            raise RuntimeError(says)

    with pytest.raises(RuntimeError, match="^no kernel yet$"):
        failed("no kernel yet")
    on.run(conv.FINAL.launch(x, S=1))
    with pytest.raises(MetalError, match="kernel conv_bwd_final failed .*: a fault"):
        failed("a fault")
    on._kernels["slstm_forward_8"] = None
    with pytest.raises(
        MetalError, match=r"one of conv_bwd_final, slstm_forward_8 failed .*: a fault"
    ):
        failed("a fault")
    with pytest.raises(MetalError, match="kernel slstm_forward_8 failed"):
        failed("Unable to load kernel custom_kernel_mlxhog_slstm_forward_8")
    for says in ("[METAL] Command buffer execution failed: x", "[malloc] out of memory"):
        with pytest.raises(RuntimeError, match=re.escape(says)):  # no kernel's fault
            failed(says)


BAD = {
    r"g is of int32; expected a row-major .* array of float32": lambda on, of: of(
        g=on.array(np.zeros(9, np.int32))
    ),
    "g is a ndarray elsewhere": lambda on, of: of(g=np.zeros(9, np.float32)),
    r"scale is an array of shape \(9,\); expected one number": lambda on, of: of(
        scale=on.array(draw(9))
    ),
    "scale is 'one'; expected one number": lambda on, of: of(scale="one"),
}


@both
@pytest.mark.parametrize("message", BAD)
def test_an_argument_that_does_not_fit_is_refused_before_anything_runs(which, message, monkeypatch):
    fake, on = fakes(which, monkeypatch)
    good = axpy(on, draw(9))
    launch = BAD[message](on, lambda **new: replace(good, inputs={**good.inputs, **new}))
    with pytest.raises(ShapeError, match=message):
        on.run(launch)
    assert not fake.calls


def test_mps_wraps_the_memory_that_mlx_lends_it(monkeypatch):
    lender = FakeMLX().install(monkeypatch)
    _, mps = fakes("mps", monkeypatch)
    host = lender.memory(N)
    mps.run(dense_axpy(mps.wrap(host), torch.ones(8), scale=1.0, offset=5))
    assert host[4:7].tolist() == [0, 1, 1]
    with pytest.raises(EnvironmentLacks, match="on cpu, kernels need meta"):
        MPSEngine("meta").wrap(host)
    unsupported = BufferError("Unsupported device type for DLPack")
    monkeypatch.setattr(torch, "from_dlpack", mock.Mock(side_effect=unsupported))
    with pytest.raises(EnvironmentLacks, match=r"Unsupported device.*--gpu-write cpu"):
        mps.wrap(host)


@both
def test_memory_that_cannot_be_wrapped_is_refused_with_the_way_out(which, monkeypatch):
    _, on = fakes(which, monkeypatch)
    with pytest.raises(EnvironmentLacks, match="without a copy.*--gpu-write cpu"):
        on.wrap(np.zeros(4096, np.float32))


def test_what_mlx_gives_instead_of_an_import_is_refused(monkeypatch):
    """As hosted runners do: a buffer of length 0, or one elsewhere, and no error."""
    fake, on = fakes("mlx", monkeypatch)
    host = fake.memory(4096)
    for instead in (mx.zeros(0), mx.zeros(4096), fake.wrapped[host.ctypes.data][:2048]):
        mx.eval(instead)
        fake.wrapped[host.ctypes.data] = instead
        with pytest.raises(EnvironmentLacks, match="it did not import them.*--gpu-write cpu"):
            on.wrap(host)


def test_an_mlx_that_may_donate_wrapped_memory_is_refused(monkeypatch, tmp_path):
    assert engine_mlx.refuses_donation()
    engine_mlx.refuses_donation.cache_clear()
    header = tmp_path / "include" / "mlx" / "array.h"
    header.parent.mkdir(parents=True)
    header.write_text("bool is_donatable() const { return array_desc_.use_count() == 1; }")
    try:
        monkeypatch.setattr(engine_mlx.mx, "__file__", str(tmp_path / "core.so"))
        with pytest.raises(EnvironmentLacks, match="is_owned is missing.*mlx>=0.32.4"):
            engine_mlx.wrap(np.zeros(4096, np.float32))
    finally:
        engine_mlx.refuses_donation.cache_clear()


@pytest.mark.usefixtures("no_apple_gpu")
@both
def test_without_an_apple_gpu_an_engine_says_what_to_use_instead(which):
    with pytest.raises(EnvironmentLacks, match="Apple GPU.*--gpu-write cpu"):
        engines.create(which)
