"""Make this Python look like one on macOS (see `simulation.py`), and MLX and torch with it.

MLX's arrays lie in Metal's memory, which native code refuses; an Apple GPU is the CPU.
"""

import ctypes
import fcntl
import mmap
import os
import platform
import signal
import socket
import sys
import sysconfig
from collections import namedtuple
from contextlib import contextmanager
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace


def after_import(name, change):
    """Call `change` with the module `name` as soon as somebody has imported it."""
    sys.meta_path.insert(0, _Finder(name, change))


class _Finder(MetaPathFinder):
    def __init__(self, name, change):
        self.name, self.change = name, change

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def changed(module):
            execute(module)
            self.change(module)

        spec.loader.exec_module = changed
        return spec


def stand_in(name, **contents):
    """Put a module in the place of one that is not here, or is another system's."""
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(contents, __spec__=ModuleSpec(name, None))


times = namedtuple("pcputimes", "user system children_user children_system")
all_times = namedtuple("scputimes", "user nice system idle")
# As psutil 7.2 sees a process on macOS: its own seconds, not those of its children. This one with
# its children is all that is busy.
stand_in(
    "psutil",
    Error=Exception,
    Process=lambda: SimpleNamespace(
        cpu_times=lambda: times(*os.times()[:2], 0.0, 0.0), children=lambda recursive=False: []
    ),
    cpu_times=lambda: all_times(sum(os.times()[:4]), 0.0, 0.0, 0.0),
    virtual_memory=lambda: SimpleNamespace(total=1 << 33, wired=3 << 31),
    disk_partitions=lambda all=False: [],
)
stand_in("_scproxy", _get_proxy_settings=dict, _get_proxies=dict)  # urllib, and so torch, has it

CPU, METAL = 1, 8  # DLDeviceType
DEVICE_AT = {b"dltensor": 8, b"dltensor_versioned": 40}  # bytes before `device_type`
MEMORY_BYTES = 8 << 30


def change_mlx(mx):
    """Let every array lie in Metal's memory; with FAKE_METAL the CPU computes for a GPU, too.

    The default device is then the GPU, one for all threads. Sources: MLX 0.32, `mlx/device.cpp`,
    `python/src/convert.cpp` (`__dlpack__` names Metal wherever there is Metal, whatever the default
    device); DLPack, `DLManagedTensor`, `DLManagedTensorVersioned`. The file FAKE_MLX_LOG gets a
    line for each process: its id, and the GPU watchdog's variable.
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


CREATORS = "zeros ones empty full arange eye tensor"


def change_torch(torch):
    """With FAKE_METAL a device "mps".

    A tensor on it is a copy of one of the host, and so are its results. NumPy does not read it, and
    no operation but a copy joins it with a tensor of the host that has a dimension. These rules are
    not checked inside `torch.autograd.grad`. Source: torch 2.13, errors of `numpy` and
    `TensorIterator`.
    """
    if "FAKE_METAL" not in os.environ:
        return
    mps, tensor_to = torch.device("mps"), torch.Tensor.to
    plain = torch._C.DisableTorchFunctionSubclass
    device_of = torch.Tensor.device.__get__

    class OnMPS(torch.Tensor):
        """A tensor on the stand-in device."""

        @classmethod
        def __torch_function__(cls, function, types, args=(), keywords=None):
            """Compute on the CPU what the device can compute."""
            if function == device_of:
                return mps
            if function in (torch.Tensor.numpy, torch.Tensor.__array__):
                raise TypeError("can't convert mps:0 device type tensor to numpy")
            if function == torch.Tensor.cpu:
                return moved(args[0], torch.Tensor)
            copies = function == torch.Tensor.copy_
            if not copies and any(not isinstance(x, cls) and x.ndim for x in tensors(args)):
                raise RuntimeError(
                    f"{function.__name__}: Expected all tensors to be on the same device"
                )
            return super().__torch_function__(function, types, args, on_cpu(keywords or {}))

    def tensors(values):
        if isinstance(values, torch.Tensor):
            yield values
        elif isinstance(values, list | tuple):
            for value in values:
                yield from tensors(value)

    def on_cpu(keywords):
        return {name: value for name, value in keywords.items() if name != "device"}

    def moved(x, kind):
        with plain():
            return x.clone().as_subclass(kind)

    def to(x, *args, **keywords):
        places = [one for one in (*args, keywords.get("device")) if is_device(one)]
        if not places:
            return tensor_to(x, *args, **keywords)
        rest = [one for one in args if not is_device(one)]
        kind = OnMPS if torch.device(places[0]) == mps else torch.Tensor
        result = x if isinstance(x, OnMPS) == (kind is OnMPS) else moved(x, kind)
        keywords = on_cpu(keywords)
        return tensor_to(result, *rest, **keywords) if rest or keywords else result

    def is_device(value):
        return isinstance(value, torch.device | str)

    def creator(make):
        @wraps(make)
        def created(*args, device=None, **keywords):
            if device is None or torch.device(device) != mps:
                return make(*args, device=device, **keywords)
            return make(*args, **keywords).as_subclass(OnMPS)

        return created

    for name in CREATORS.split():
        setattr(torch, name, creator(getattr(torch, name)))
    torch.Tensor.to = to
    torch.backends.mps.is_available = lambda: True


sysconfig.get_config_vars()  # reads a module named after the platform, so before the change
sys.platform = "darwin"
mmap.PAGESIZE = mmap.ALLOCATIONGRANULARITY = 16_384
fcntl.F_FULLFSYNC, _fcntl = 51, fcntl.fcntl
fcntl.fcntl = lambda fd, command, *more: 0 if command == 51 else _fcntl(fd, command, *more)
for module, names in {
    os: (
        "posix_fallocate posix_fadvise memfd_create eventfd pidfd_open copy_file_range waitid "
        "sched_getaffinity sched_setaffinity sched_getscheduler sched_setscheduler getrandom splice"
    ),
    signal: "sigtimedwait sigwaitinfo pidfd_send_signal",
    socket: "SO_PEERCRED SOCK_CLOEXEC SOCK_NONBLOCK",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
if "FAKE_METAL" in os.environ:
    platform.machine = lambda: "arm64"
after_import("mlx.core", change_mlx)
after_import("torch", change_torch)
