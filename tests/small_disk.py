"""A disk that fills up: a real one where the system lets us mount it."""

import contextlib
import ctypes
import os

_MNT_DETACH = 2


@contextlib.contextmanager
def small_disk(directory, n_bytes):
    """Mount a tiny tmpfs on a directory meanwhile; False where this process may not."""
    mounted = _mount(directory, n_bytes)
    try:
        yield mounted
    finally:
        if mounted:
            ctypes.CDLL(None).umount2(os.fsencode(directory), _MNT_DETACH)


def _mount(directory, n_bytes):
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"size={n_bytes}".encode()
        return bool(libc.mount(b"none", os.fsencode(directory), b"tmpfs", 0, options) == 0)
    except (OSError, AttributeError):
        return False


@contextlib.contextmanager
def filled(directory):
    """Fill the disk of a directory to its last byte meanwhile."""
    filler = directory / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    try:
        yield
    finally:
        filler.unlink(missing_ok=True)
