"""MLX as it is on a Mac, on the CPU: every array lies in Metal's memory, and there may be a GPU.

The default device is the GPU, one for all threads. Sources: MLX 0.32, `mlx/device.cpp`, and
`python/src/convert.cpp` (`__dlpack__` names Metal wherever there is Metal, whatever the default
device); DLPack, `DLManagedTensor`, `DLManagedTensorVersioned`.
"""

import ctypes
import os
from contextlib import contextmanager

CPU, METAL = 1, 8  # DLDeviceType
DEVICE_AT = {b"dltensor": 8, b"dltensor_versioned": 40}  # bytes before `device_type`
MEMORY_BYTES = 8 << 30


def install(mx):
    """Change `mlx.core`; with FAKE_METAL it has a GPU, too, whose arrays the CPU computes.

    The file FAKE_MLX_LOG gets a line for each process: its id, and the GPU watchdog's variable.
    """
    if log := os.environ.get("FAKE_MLX_LOG"):
        with open(log, "a") as lines:
            print(os.getpid(), os.environ.get("AGX_RELAX_CDM_CTXSTORE_TIMEOUT"), file=lines)
    _export_metal(mx.array)
    if "FAKE_METAL" in os.environ:
        _add_gpu(mx)


def _add_gpu(mx):
    of_cpu = mx.device_info()
    of_gpu = {**of_cpu, "max_recommended_working_set_size": MEMORY_BYTES}
    chosen = mx.Device(mx.gpu, 0)

    def choose(device):
        nonlocal chosen
        chosen = mx.Device(mx.gpu if device == mx.gpu else mx.cpu, 0)

    @contextmanager
    def stream(device):
        before = chosen
        choose(device)
        try:
            yield
        finally:
            choose(before)

    def device_info(device=None):
        return of_gpu if (chosen if device is None else device) == mx.gpu else of_cpu

    mx.metal.is_available = lambda: True
    mx.device_info, mx.stream = device_info, stream
    mx.set_default_device, mx.default_device = choose, lambda: chosen
    mx.disable_compile()  # it would start a C++ compiler


def _export_metal(array):
    api = ctypes.pythonapi
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    of_the_host = array.__dlpack__

    def dlpack(self, *, dl_device=None, **keywords):
        capsule = of_the_host(self, **keywords)
        if dl_device is None or dl_device[0] != CPU:
            kind = api.PyCapsule_GetName(capsule)
            tensor = api.PyCapsule_GetPointer(capsule, kind)
            ctypes.c_int32.from_address(tensor + DEVICE_AT[kind]).value = METAL
        return capsule

    array.__dlpack__ = dlpack
    array.__dlpack_device__ = lambda self: (METAL, 0)
