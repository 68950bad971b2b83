"""Make this Python look like one on macOS where Python itself decides (see `simulation.py`)."""

import mmap
import os
import platform
import signal
import socket
import sys
import sysconfig

import metal_arrays
from after_import import after_import

sysconfig.get_config_vars()  # reads a module named after the platform, so before the change
sys.platform = "darwin"
mmap.PAGESIZE = mmap.ALLOCATIONGRANULARITY = 16_384
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
if "FAKE_NATIVE_LOG" in os.environ:
    from native_arguments import install  # with NumPy, so only where it is wanted

    after_import("mlxhog._native", install)
