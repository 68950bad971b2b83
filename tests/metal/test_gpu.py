"""On an Apple GPU: every kernel computes what it does when emulated; host memory is the GPU's.

Through MLX and PyTorch: imports, donation, DLPack, tensors inside a storage.
"""

import mmap

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog.metal import engines
from mlxhog.metal.engine_mlx import wrap
from mlxhog.metal.kernel import FUSED_RTOL, amalgamated_source
from mlxhog.metal.kernels.adds import DENSE_AXPY, dense_axpy
from tests.metal.test_engines import assert_same
from tools import sanitize

pytestmark = pytest.mark.metal
SAMPLES = {
    f"{sample.kernel.name}-{sample.instance}".rstrip("-"): sample
    for sample in sanitize.samples(n=5000)
}


@pytest.fixture
def metal_device():
    """An Apple GPU that MLX sees, and computes on: other tests have chosen the CPU."""
    if not mx.metal.is_available():
        pytest.skip("no Metal device: mx.metal.is_available() is False")
    before = mx.default_device()
    mx.set_default_device(mx.gpu)
    yield
    mx.set_default_device(before)


@pytest.fixture(params=["mlx", "mps"])
def engine(request, metal_device):
    """Each framework's engine on the GPU."""
    return engines.create(request.param)


@pytest.fixture
def pages(metal_device):
    """Makes host memory that a GPU can import: zeros, whole pages, as an arena has them."""
    return lambda n_pages: np.frombuffer(mmap.mmap(-1, n_pages * mmap.PAGESIZE), np.float32)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_kernel_computes_on_the_gpu_what_it_does_when_emulated(engine, new_emulator, name):
    launch = SAMPLES[name]
    # a GPU also flushes denormals, far below the tolerance
    assert_same(engine, new_emulator(), launch, max(launch.kernel.rtol, FUSED_RTOL))


def test_what_the_host_writes_the_gpu_reads_and_the_reverse(engine, pages):
    host = pages(4)
    arena = engine.wrap(host)
    host[7:9] = 3.0, 4.0
    ones = engine.array(np.ones(8, np.float32))
    engine.run(dense_axpy(arena, ones, scale=-1.0, offset=7))
    assert host[6:17].tolist() == [0, 2, 3, -1, -1, -1, -1, -1, -1, 0, 0]


@pytest.mark.parametrize("operation", ["augmented", "item", "at", "sum of itself"])
def test_no_operation_of_mlx_writes_into_imported_memory(pages, operation):
    host = pages(1)
    host[:] = 1.0
    w = wrap(host)
    if operation == "augmented":
        w += 1.0
    elif operation == "item":
        w[3] = 9.0
    elif operation == "at":
        w = w.at[mx.array([0, 1])].add(1.0)
    else:
        w = w + w
    mx.eval(w)
    mx.synchronize()
    assert (host == 1.0).all()


def test_dlpack_shares_memory_between_mlx_and_mps(metal_device):
    wrapped = mx.zeros(4096)
    mx.eval(wrapped)
    tensor = torch.from_dlpack(wrapped)
    assert tensor.device.type == "mps"
    tensor[5] = 2.0
    torch.mps.synchronize()
    assert np.array(wrapped, copy=False)[5] == 2.0
    back = mx.from_dlpack(tensor, copy=False)
    mx.eval(back)
    assert np.array(back, copy=False).ctypes.data == np.array(wrapped, copy=False).ctypes.data


def test_a_shader_of_pytorch_honours_the_offset_of_a_tensor_in_its_storage(metal_device):
    whole = torch.zeros(4096, device="mps")
    part = whole[100:]
    library = torch.mps.compile_shader(amalgamated_source(DENSE_AXPY))
    status = torch.zeros(1, dtype=torch.uint32, device="mps")
    g = torch.ones(300, device="mps")
    library.dense_axpy(part, g, 0.5, 300, 7, status, threads=[300], group_size=[256])
    torch.mps.synchronize()
    result = whole.cpu().numpy()
    assert (result[107:407] == 0.5).all()
    assert np.count_nonzero(result) == 300
    assert status.cpu().item() == 1
