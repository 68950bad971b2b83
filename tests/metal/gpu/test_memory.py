"""Host memory and the GPU's are one: imports, donation, DLPack, tensors inside a storage."""

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog.metal.engine_mlx import adopt
from mlxhog.metal.kernel import whole_text
from mlxhog.metal.kernels.adds import DENSE_AXPY, dense_axpy

pytestmark = pytest.mark.metal


def test_what_the_host_writes_the_gpu_reads_and_the_reverse(engine, pages):
    host = pages(4)
    arena = engine.adopt(host)
    host[7:9] = 3.0, 4.0
    ones = engine.array(np.ones(8, np.float32))
    engine.run(dense_axpy(arena, ones, scale=-1.0, offset=7))
    assert host[6:17].tolist() == [0, 2, 3, -1, -1, -1, -1, -1, -1, 0, 0]


def test_an_import_is_no_copy(pages):
    host = pages(4)
    adopted = adopt(host)
    host[0] = 5.0
    assert mx.sum(adopted).item() == 5.0
    assert np.array(adopted, copy=False).ctypes.data == host.ctypes.data


@pytest.mark.parametrize("operation", ["augmented", "item", "at", "sum of itself"])
def test_no_operation_of_mlx_writes_into_imported_memory(pages, operation):
    host = pages(1)
    host[:] = 1.0
    w = adopt(host)
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
    lent = mx.zeros(4096)
    mx.eval(lent)
    tensor = torch.from_dlpack(lent)
    assert tensor.device.type == "mps"
    tensor[5] = 2.0
    torch.mps.synchronize()
    assert np.array(lent, copy=False)[5] == 2.0
    back = mx.from_dlpack(tensor, copy=False)
    mx.eval(back)
    assert np.array(back, copy=False).ctypes.data == np.array(lent, copy=False).ctypes.data


def test_a_shader_of_pytorch_honours_the_offset_of_a_tensor_in_its_storage(metal_device):
    whole = torch.zeros(4096, device="mps")
    part = whole[100:]
    library = torch.mps.compile_shader(whole_text(DENSE_AXPY))
    status = torch.zeros(1, dtype=torch.uint32, device="mps")
    g = torch.ones(300, device="mps")
    library.dense_axpy(part, g, 0.5, 300, 7, status, threads=[300], group_size=[256])
    torch.mps.synchronize()
    result = whole.cpu().numpy()
    assert (result[107:407] == 0.5).all()
    assert np.count_nonzero(result) == 300
    assert status.cpu().item() == 1
