"""torch:mps reads gradients where they lie, after one wait for the GPU, or copies every tensor.

The CPU stands in for the GPU: its work on gradients is pending until somebody waits.
"""

from unittest import mock

import numpy as np
import pytest
import torch

from mlxhog.backends import torch as backend_torch
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.backends.torch import TorchBackend
from mlxhog.errors import LostGPU
from mlxhog.models.families import param_spec
from tests.backends.untrained import batch, lay, values
from tests.models.sample import SMALLEST


class MPS:
    """What torch does with its GPU, counted."""

    def __init__(self):
        self.waits = self.copies = 0  # of `torch.mps.synchronize`, and of tensors to the CPU
        self.pending = False  # a gradient is still being computed
        self.gives_up = False  # Metal ends its work unfinished, so its memory stays as it was
        self._last = ()

    def synchronize(self):
        self.waits += 1
        self.pending = False

    def host_alias(self, storage):
        assert not self.pending, "the CPU looks at what the GPU still writes"
        return storage

    def install(self, monkeypatch):
        grad, cpu, iadd = torch.autograd.grad, torch.Tensor.cpu, torch.Tensor.__iadd__

        def pending_grad(*arguments, **keywords):
            self.pending = True
            if not self.gives_up:
                self._last = grad(*arguments, **keywords)
            return self._last

        def added(tensor, value):
            return tensor if self.gives_up else iadd(tensor, value)

        def copied(tensor):
            self.copies, self.pending = self.copies + 1, False
            return cpu(tensor).clone()

        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        monkeypatch.setattr(torch.mps, "synchronize", self.synchronize)
        monkeypatch.setattr(torch.mps, "_host_alias_storage", self.host_alias, raising=False)
        monkeypatch.setattr(torch.autograd, "grad", pending_grad)
        monkeypatch.setattr(torch.Tensor, "cpu", copied)
        monkeypatch.setattr(torch.Tensor, "__iadd__", added)


@pytest.fixture
def mps(monkeypatch):
    result = MPS()
    result.install(monkeypatch)
    return result


def worker(name="torch:mps"):
    backend = TorchBackend(name, threads=1, kernels="eager", share=GPUShare())
    backend.device = torch.device("cpu")
    return lay(backend)


def assert_same_gradients(backend, other):
    (loss, grads), (expected_loss, expected) = (
        one.loss_and_grads(batch(2, 16)) for one in (backend, other)
    )
    assert loss == expected_loss
    assert all(getattr(grad, "values", grad).flags.c_contiguous for grad in grads.values())
    assert_equal(values(grads), values(expected))


def assert_equal(found, expected):
    for name, grad in expected.items():
        assert np.array_equal(found[name], grad), name


def test_one_wait_serves_all_gradients_no_tensor_is_copied_and_the_param_buffer_is_the_parameters(
    mps, capsys
):
    plain, backend = worker("torch:cpu"), worker()
    assert "gradients of torch:mps are read where they lie" in capsys.readouterr().out
    mps.waits = mps.copies = 0
    backend.loss_and_grads(batch(2, 16))
    assert (mps.waits, mps.copies) == (1, 0)
    assert_same_gradients(backend, plain)
    for one in (backend, plain):
        one.param_buffer[:] *= np.float32(1.5)
    mps.waits = 0
    backend.refresh()
    assert mps.waits == 1, "between writes of the CPU and the next work of the GPU"
    assert_same_gradients(backend, plain)
    backend.param_buffer[:] = 7.0
    assert all((parameter == 7.0).all() for parameter in backend.params.values())


@pytest.mark.parametrize("refusal", [AttributeError, RuntimeError])
def test_an_older_torch_and_memory_of_the_gpu_alone_have_copies(mps, monkeypatch, capsys, refusal):
    if refusal is AttributeError:
        monkeypatch.delattr(torch.mps, "_host_alias_storage")
    else:
        refused = mock.Mock(side_effect=refusal("not backed by a shared-storage MTLBuffer"))
        monkeypatch.setattr(torch.mps, "_host_alias_storage", refused)
    plain, backend = worker("torch:cpu"), worker()
    assert "gradients of torch:mps are copied" in capsys.readouterr().out
    mps.copies = 0
    backend.loss_and_grads(batch(2, 16))
    assert mps.copies == len(param_spec(SMALLEST)) + 2, "every gradient, the loss and the count"
    backend.param_buffer[:] *= np.float32(1.5)
    plain.param_buffer[:] *= np.float32(1.5)
    backend.refresh()
    assert_same_gradients(backend, plain)


@pytest.mark.parametrize("aliased", [True, False])
def test_a_gradient_that_the_gpu_gave_up_is_refused(mps, monkeypatch, aliased):
    if not aliased:
        monkeypatch.delattr(torch.mps, "_host_alias_storage")
    backend = worker()
    yesterday = values(backend.loss_and_grads(batch(2, 16))[1])
    backend.param_buffer[:] *= np.float32(1.5)
    backend.refresh()
    mps.gives_up = True
    with pytest.raises(LostGPU, match="torch:mps lost work: its GPU counted to"):
        backend.loss_and_grads(batch(2, 16))
    monkeypatch.setattr(backend, "_counter", None)  # without it the old gradient would be added
    assert_equal(values(backend.loss_and_grads(batch(2, 16))[1]), yesterday)


@pytest.mark.usefixtures("mps")
def test_a_gradient_is_refused_after_mps_has_written_of_lost_work(tmp_path, monkeypatch):
    earlier = b"Error: command buffer exited with error status.\n"  # of the process before
    (log := tmp_path / "worker-1.log").write_bytes(earlier)
    with log.open("a+b", buffering=0) as stream:
        monkeypatch.setattr(backend_torch, "STDERR", stream.fileno())
        backend = worker()
        stream.write(b"a warning\n")
        backend.loss_and_grads(batch(2, 16))
        stream.write(earlier)
        with pytest.raises(LostGPU, match="MPS says 'command buffer exited with error status'"):
            backend.loss_and_grads(batch(2, 16))
        backend.loss_and_grads(batch(2, 16))
