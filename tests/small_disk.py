"""A disk that fills up: a real one where the system lets us mount it."""

import contextlib
import ctypes
import os

_MNT_DETACH = 2


@contextlib.contextmanager
def small_disk(directory, n_bytes):
    """Mount a tiny tmpfs on a directory meanwhile; False where this process may not."""
    libc, path, options = ctypes.CDLL(None), os.fsencode(directory), f"size={n_bytes}".encode()
    is_linux = hasattr(libc, "umount2")
    mounted = is_linux and libc.mount(b"none", path, b"tmpfs", 0, options) == 0
    try:
        yield mounted
    finally:
        if mounted:
            libc.umount2(path, _MNT_DETACH)


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
