"""The command `mlxhog`, which is `python -m mlxhog`: the command line, from its first moment on."""

import os
import sys
from contextlib import suppress


def main() -> int:
    """Run the command of this process's arguments, and return its exit code."""
    try:
        from mlxhog.machine.interrupts import ignore_from_now_on, raise_keyboard_interrupt

        raise_keyboard_interrupt()
        _open_standard_streams()
        from mlxhog.cli import main as run

        code = run()
        ignore_from_now_on()
    except KeyboardInterrupt:  # before the command line could answer it, or after it had
        code = _interrupted()
    _leave_a_busy_engine(code)
    return code


def _interrupted() -> int:
    """Say so, and return the exit code; further signals do not change it."""
    with suppress(KeyboardInterrupt):
        from mlxhog.machine.interrupts import ignore_from_now_on

        ignore_from_now_on()
        with suppress(OSError):
            os.write(2, b"interrupted\n")
    return 130


def _leave_a_busy_engine(code: int) -> None:
    """End the process here where the thread of `mlxhog serve` could not be stopped in time.

    The interpreter's end would end that thread where it returns from native code, and C++ aborts
    the process then.
    """
    import threading  # as all that is imported: after `main` has begun to answer signals

    if not any(thread.name == "mlxhog-engine" for thread in threading.enumerate()):
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _open_standard_streams() -> None:
    """Let the null device stand for a standard stream that is closed.

    Otherwise the next file that is opened, which may be the arena, takes its descriptor, and a
    worker's output with it.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor: this one
            os.set_inheritable(null, True)
            setattr(sys, name, open(null, mode, closefd=False))  # noqa: SIM115  lives on


if __name__ == "__main__":
    with suppress(OSError):  # the current directory may be gone
        if sys.path[0] == os.getcwd():  # where `-m` looks for modules first; a command does not
            del sys.path[0]
    sys.exit(main())
