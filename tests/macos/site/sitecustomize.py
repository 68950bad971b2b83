"""Make this Python look like one on macOS where Python itself decides (see `simulation.py`)."""

import fcntl
import mmap
import os
import platform
import signal
import socket
import sys
import sysconfig

import metal_arrays
import mps_tensors
from after_import import after_import

sysconfig.get_config_vars()  # reads a module named after the platform, so before the change
sys.platform = "darwin"
mmap.PAGESIZE = mmap.ALLOCATIONGRANULARITY = 16_384


class Mapping(mmap.mmap):
    """Python's mapping: before it maps a file, it has the drive flush its cache (F_FULLFSYNC)."""

    flushes = 0

    def __new__(cls, fileno, *arguments, **keywords):
        """Map a file, or anonymous memory, which has no drive."""
        Mapping.flushes += fileno != -1
        return super().__new__(cls, fileno, *arguments, **keywords)


mmap.mmap = Mapping
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
after_import("mlx.core", metal_arrays.install)
after_import("torch", mps_tensors.install)
if "FAKE_NATIVE_LOG" in os.environ:
    from native_arguments import install  # with NumPy, so only where it is wanted

    after_import("mlxhog._native", install)
