"""Which cores macOS gives a worker.

macOS has no affinity: the quality-of-service class of a thread decides, and threads of the default
class were seen on efficiency cores after some minutes (stan-dev/math issues 3277 and 3278).
"""

from __future__ import annotations

import ctypes
import sys

USER_INITIATED = 0x19  # QOS_CLASS_USER_INITIATED of <sys/qos.h>


def keep_performance_cores() -> bool:
    """Ask for performance cores, for this thread and all that it starts later.

    Returns:
        Whether the system took it; False everywhere but on macOS.
    """
    if sys.platform != "darwin":
        return False
    set_class = ctypes.CDLL(None).pthread_set_qos_class_self_np
    set_class.argtypes = [ctypes.c_uint, ctypes.c_int]
    set_class.restype = ctypes.c_int
    return set_class(USER_INITIATED, 0) == 0
