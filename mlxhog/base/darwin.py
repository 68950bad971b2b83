"""macOS: sysctl, scheduling class, displays, sleep.

Only C functions with a fixed list of arguments are called: ctypes passes the arguments of variadic
ones (`open`, `fcntl`, `shm_open`) in the wrong place on Apple silicon.
"""

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_QOS_CLASS_USER_INITIATED = 0x19
PROTECTED = (
    "macOS protects some folders: allow your terminal in System Settings, Privacy & Security, "
    "Files and Folders"
)


@cache
def _system() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def sysctl(name: str) -> bytes | None:
    """Return the raw value of a system setting; None without it, or outside macOS."""
    if sys.platform != "darwin":
        return None
    call = _system().sysctlbyname
    text, pointer, size = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t
    call.argtypes = (text, pointer, ctypes.POINTER(size), pointer, size)
    n_bytes, value = size(0), None
    for _ in range(2):  # its size, then the value
        if call(name.encode(), value, ctypes.byref(n_bytes), None, 0) != 0:
            return None
        value = value or ctypes.create_string_buffer(n_bytes.value)
    return value.raw[: n_bytes.value] if value else None


def sysctl_int(name: str) -> int | None:
    """Return a setting that is a number of 32 or 64 bits."""
    value = sysctl(name)
    return int.from_bytes(value, sys.byteorder) if value else None


def sysctl_text(name: str) -> str:
    """Return a setting that is text; "" without such a setting."""
    return (sysctl(name) or b"").rstrip(b"\0").decode(errors="replace")


def host_uuid() -> str:
    """Return the id of this Mac, whatever its name now is (gethostuuid); "" outside macOS."""
    if sys.platform != "darwin":
        return ""
    call, uuid, wait = _system().gethostuuid, ctypes.create_string_buffer(16), (ctypes.c_long * 2)()
    wait[0] = 1  # a timespec: s, then ns
    call.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
    return "" if call(uuid, ctypes.byref(wait)) != 0 else uuid.raw.hex()


def reason(error: OSError) -> str:
    """Return why the system refuses a file, with the setting of macOS that may allow it.

    A terminal that was once denied ~/Documents, ~/Downloads or a removable disk gets EPERM there.
    """
    text = error.strerror or str(error)
    if sys.platform == "darwin" and error.errno == errno.EPERM:
        text += f" ({PROTECTED})"
    return text


def cores(*, efficiency: bool) -> int:
    """Return the number of efficiency cores, or of all others; 0 if macOS names no levels."""
    return sum(
        sysctl_int(f"hw.perflevel{level}.physicalcpu") or 0
        for level in range(sysctl_int("hw.nperflevels") or 0)
        if (sysctl_text(f"hw.perflevel{level}.name") == "Efficiency") == efficiency
    )


def fast_cores() -> int:
    """Return the number of cores that are not efficiency cores, at least 1."""
    return cores(efficiency=False) or sysctl_int("hw.physicalcpu") or 1


def translated() -> bool:
    """Whether Rosetta translates this process from x86_64."""
    return sysctl_int("sysctl.proc_translated") == 1


def ask_for_performance_cores() -> bool:
    """Keep the calling thread off the efficiency cores; return whether macOS agreed.

    macOS may move threads of the default class there after some minutes of full load (stan-dev/math
    3277), and new threads have the default class (Apple, `sys/qos.h`). The native operators' pool
    gives its threads the class of its caller. No effect on another system.
    """
    if sys.platform != "darwin":
        return False
    call = _system().pthread_set_qos_class_self_np
    call.argtypes = (ctypes.c_uint, ctypes.c_int)
    return int(call(_QOS_CLASS_USER_INITIATED, 0)) == 0


def displays() -> int:
    """Return the number of active displays; a GPU that drives none is never ended for it.

    Raises:
        OSError: this is not macOS, or it does not say.
    """
    graphics = ctypes.CDLL("/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics")
    call, count = graphics.CGGetActiveDisplayList, ctypes.c_uint32(0)
    call.argtypes = (ctypes.c_uint32, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32))
    if call(0, None, ctypes.byref(count)) != 0:
        raise OSError("CoreGraphics does not list displays")
    return count.value


@contextmanager
def awake() -> Iterator[str]:
    """Keep a Mac from falling asleep during the block, or until this process dies.

    Yields a sentence for the user if that fails, else "". A closed or empty Mac sleeps anyway;
    processes continue when it wakes. No effect on another system.
    """
    if sys.platform != "darwin":
        yield ""
        return
    command, nothing = ["caffeinate", "-i", "-w", str(os.getpid())], subprocess.DEVNULL
    try:
        # A session of its own: Ctrl-C in the terminal lets a run finish its step, still awake.
        keeper = subprocess.Popen(
            command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
        )
    except OSError as error:
        yield f"this Mac may fall asleep meanwhile: caffeinate cannot start ({error.strerror})"
        return
    try:
        yield ""
    finally:
        keeper.terminate()
        keeper.wait()
